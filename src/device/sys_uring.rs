//! Requests of the FUSE kernel module over io_uring, instead of read(2) and write(2) on its device: the part that needs `unsafe`.
//!
//! A ring has slots. Each is lent to the kernel, comes back with a request, and is lent again with the answer to it; in between the kernel may read
//! from a disk into it. While the kernel has a slot nobody here can reach its memory. Layouts and numbers: `include/uapi/linux/fuse.h`, "fuse over io-uring".
#![allow(unsafe_code)]

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::eventfd::EventFd;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// What precedes the payload of a request or an answer.
#[repr(C, align(8))]
pub struct Headers {
    /// `fuse_in_header`, later `fuse_out_header`.
    pub in_out: [u8; 128],
    /// The fixed part of the request.
    pub operation: [u8; 128],
    flags: u64,
    commit_id: u64,
    payload_bytes: u32,
    padding: u32,
    reserved: u64,
}

/// Memory that costs nothing until it is used, page-aligned: what the kernel copies to and from.
pub struct Payload {
    start: NonNull<u8>,
    length: NonZeroUsize,
}

// SAFETY: the mapping belongs to this value alone and is bound to no thread.
unsafe impl Send for Payload {}

impl Payload {
    pub fn new(length: NonZeroUsize) -> io::Result<Payload> {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping replaces nothing.
        let start = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Payload { start: start.cast(), length })
    }

    /// Gives the memory beyond the first `kept` bytes (whole pages) back; it reads as zeros then.
    fn forget_beyond(&mut self, kept: usize) {
        if kept >= self.length.get() || !kept.is_multiple_of(4096) {
            return;
        }
        // SAFETY: within the mapping, which is ours alone; private anonymous pages become zeros.
        unsafe { libc::madvise(self.start.as_ptr().add(kept).cast(), self.length.get() - kept, libc::MADV_DONTNEED) };
    }
}

impl std::ops::Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for as long as this lives, always initialised, borrowed as this is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length.get()) }
    }
}

impl std::ops::DerefMut for Payload {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length.get()) }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        // SAFETY: the whole of our own mapping, to which nothing points any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length.get()) };
    }
}

/// Who may touch a slot's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    Us,
    /// The kernel's module fuse, until it has a request.
    Fuse,
    /// The kernel, until it has read what was asked for.
    Read,
}

struct Slot {
    queue: u16,
    holder: Holder,
    headers: Box<Headers>,
    /// Taken while somebody else fills it.
    payload: Option<Payload>,
    touched_bytes: usize,
    /// What the registration points to.
    vectors: Box<[libc::iovec; 2]>,
}

/// What came back from the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// This slot holds a request.
    Request(usize),
    /// What was to be read into this slot is there: so many bytes, or an error.
    Read(usize, std::result::Result<usize, i32>),
    /// A slot will never hold one again: the filesystem is gone, or was never served this way. With the error's number.
    Over(i32),
    /// Somebody rang the bell.
    Bell,
}

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
const BELL: u64 = u64::MAX;
/// Marks completions of reads; the rest is the slot.
const READ: u64 = 1 << 32;
/// Memory that a slot keeps once a large request is over; those beyond the first few, which are for crowds, keep a sixteenth.
const KEPT_BYTES: usize = 128 << 10;
const KEPT_SLOTS: usize = 4;

/// Belongs to one thread: the one that made it.
pub struct FuseRing {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: Arc<OwnedFd>,
    slots: Vec<Slot>,
    lent: usize,
    reading: usize,
    bell: Arc<EventFd>,
    /// Where the kernel puts the bell's count.
    rung: Box<u64>,
    listening: bool,
}

impl FuseRing {
    /// For at most `slots_max` slots. `bell` is an eventfd. Errors: `ENOSYS`, `EPERM` where io_uring may not be used; `EINVAL` where the kernel is too old.
    pub fn new(device: Arc<OwnedFd>, bell: Arc<EventFd>, slots_max: u32) -> io::Result<FuseRing> {
        let entries = (slots_max + 1).next_power_of_two();
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(entries * 2)
            .build(entries)?;
        Ok(FuseRing {
            ring,
            device,
            slots: Vec::new(),
            lent: 0,
            reading: 0,
            bell,
            rung: Box::default(),
            listening: false,
        })
    }

    /// Adds a slot for requests of one queue of the kernel (one processor's) and lends it. It takes effect with the next [`FuseRing::wait`].
    pub fn add(&mut self, queue: u16, payload_bytes: NonZeroUsize) -> io::Result<()> {
        let headers = Box::new(Headers {
            in_out: [0; 128],
            operation: [0; 128],
            flags: 0,
            commit_id: 0,
            payload_bytes: 0,
            padding: 0,
            reserved: 0,
        });
        let payload = Payload::new(payload_bytes)?;
        let vector = |base: *mut libc::c_void, length| libc::iovec { iov_base: base, iov_len: length };
        let vectors = Box::new([
            vector((&raw const *headers).cast_mut().cast(), size_of::<Headers>()),
            vector(payload.start.as_ptr().cast(), payload_bytes.get()),
        ]);
        self.slots.push(Slot { queue, holder: Holder::Us, headers, payload: Some(payload), touched_bytes: 0, vectors });
        self.lend(self.slots.len() - 1, REGISTER)
    }

    /// The request in a slot, and what follows its fixed part. None while the kernel has the slot.
    pub fn request(&self, slot: usize) -> Option<(&Headers, &[u8])> {
        let slot = self.slots.get(slot).filter(|slot| slot.holder == Holder::Us)?;
        let length = usize::try_from(slot.headers.payload_bytes).unwrap_or(usize::MAX);
        Some((&slot.headers, slot.payload.as_ref().and_then(|payload| payload.get(..length)).unwrap_or_default()))
    }

    /// What the slot will be answered with. None while the kernel has the slot.
    pub fn payload(&mut self, slot: usize) -> Option<&mut Payload> {
        self.slots.get_mut(slot).filter(|slot| slot.holder == Holder::Us)?.payload.as_mut()
    }

    /// To be filled elsewhere, and given back before the slot is answered. None if it was taken already, or the kernel has it.
    pub fn take_payload(&mut self, slot: usize) -> Option<Payload> {
        self.slots.get_mut(slot).filter(|slot| slot.holder == Holder::Us)?.payload.take()
    }

    /// Gives the slot's payload back; only one that came from it fits.
    pub fn give_payload(&mut self, slot: usize, payload: Payload) {
        let slot = &mut self.slots[slot];
        if slot.vectors[1].iov_base == payload.start.as_ptr().cast() {
            slot.payload = Some(payload);
        }
    }

    /// Answers the slot's request: `header` is a `fuse_out_header`, `write_body` fills the payload and tells how much of it counts. Takes effect with the next [`FuseRing::wait`].
    pub fn answer(
        &mut self,
        slot: usize,
        header: &[u8],
        write_body: impl FnOnce(&mut Payload) -> usize,
    ) -> io::Result<()> {
        let answered = &mut self.slots[slot];
        let Some(payload) = &mut answered.payload else { return Err(io::ErrorKind::ResourceBusy.into()) };
        let requested = usize::try_from(answered.headers.payload_bytes).unwrap_or(usize::MAX);
        let length = write_body(payload).min(payload.length.get());
        answered.touched_bytes = answered.touched_bytes.max(requested).max(length);
        let kept_bytes = if slot < KEPT_SLOTS { KEPT_BYTES } else { KEPT_BYTES / 16 };
        if length <= kept_bytes && answered.touched_bytes > kept_bytes {
            payload.forget_beyond(kept_bytes);
            answered.touched_bytes = kept_bytes;
        }
        answered.headers.payload_bytes = u32::try_from(length).unwrap_or(0);
        answered.headers.in_out[..header.len()].copy_from_slice(header);
        self.lend(slot, COMMIT_AND_FETCH)
    }

    /// Reads from a file, at `offset`, the first `length` bytes of the slot's payload. Takes effect with the next [`FuseRing::wait`], which will tell of it
    /// with [`Event::Read`]; until then the caller keeps the descriptor open. Errors: the payload is not there, or is too small.
    pub fn read(&mut self, slot: usize, from: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<()> {
        let index = slot;
        let slot = &mut self.slots[index];
        let Some(payload) = slot.payload.as_ref().filter(|_| slot.holder == Holder::Us) else {
            return Err(io::ErrorKind::ResourceBusy.into());
        };
        let length = u32::try_from(length.min(payload.length.get())).unwrap_or(u32::MAX);
        slot.touched_bytes = slot.touched_bytes.max(usize::try_from(length).unwrap_or(usize::MAX));
        let read = opcode::Read::new(types::Fd(from.as_raw_fd()), payload.start.as_ptr(), length).offset(offset);
        slot.holder = Holder::Read;
        self.reading += 1;
        self.push(read.build().user_data(READ | index as u64).into())
    }

    /// Slots that are being read into.
    pub fn reading(&self) -> usize {
        self.reading
    }

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Slots in the kernel's hands.
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// Hands over what was added and answered, waits until something comes back, and tells what.
    pub fn wait(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        if !self.listening {
            let read = opcode::Read::new(types::Fd(self.bell.as_fd().as_raw_fd()), (&raw mut *self.rung).cast(), 8);
            self.push(read.build().user_data(BELL).into())?;
            self.listening = true;
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => return Ok(()),
            Err(error) => return Err(error),
        }
        for completion in self.ring.completion() {
            if completion.user_data() == BELL {
                self.listening = false;
                events.push(Event::Bell);
                continue;
            }
            let Ok(slot) = usize::try_from(completion.user_data() & !READ) else { continue };
            let Some(returned) = self.slots.get_mut(slot) else { continue };
            returned.holder = Holder::Us;
            if completion.user_data() & READ != 0 {
                self.reading -= 1;
                let outcome = usize::try_from(completion.result()).map_err(|_| -completion.result());
                events.push(Event::Read(slot, outcome));
                continue;
            }
            self.lent -= 1;
            events.push(match completion.result() {
                0 => Event::Request(slot),
                error => Event::Over(-error),
            });
        }
        Ok(())
    }

    /// Hands over what was added and answered, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => Err(error),
            _ => Ok(()),
        }
    }

    fn lend(&mut self, index: usize, command: u32) -> io::Result<()> {
        let slot = &mut self.slots[index];
        // struct fuse_uring_cmd_req: flags, commit id, queue.
        let mut arguments = [0_u8; 80];
        arguments[8..16].copy_from_slice(&slot.headers.commit_id.to_ne_bytes());
        arguments[16..18].copy_from_slice(&slot.queue.to_ne_bytes());
        let built = opcode::UringCmd80::new(types::Fd(self.device.as_fd().as_raw_fd()), command)
            .cmd(arguments)
            .addr(Some(slot.vectors.as_ptr() as u64))
            .build();
        let mut entry = built.user_data(index as u64);
        // SAFETY: an entry is 128 plain bytes with the layout of `struct io_uring_sqe`, where `len` is at 24; the crate has no name for it in commands.
        unsafe { (&raw mut entry).cast::<u8>().add(24).cast::<u32>().write_unaligned(2) };
        slot.holder = Holder::Fuse;
        self.lent += 1;
        self.push(entry)
    }

    fn push(&mut self, entry: squeue::Entry128) -> io::Result<()> {
        // SAFETY: all that entries point to (the slot's headers, vectors and payload; the bell's count) is in boxes and mappings that stay where
        // they are, are touched by nobody while the kernel may use them (`holder`, `listening`), and outlive the ring (see Drop).
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::ResourceBusy)?;
        }
        Ok(())
    }
}

impl Drop for FuseRing {
    /// What the kernel may still write to is never given back.
    fn drop(&mut self) {
        for slot in self.slots.drain(..).filter(|slot| slot.holder != Holder::Us) {
            std::mem::forget(slot);
        }
        if self.listening {
            std::mem::forget(std::mem::take(&mut self.rung));
        }
    }
}
