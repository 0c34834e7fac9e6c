//! Between the kernel and the library: requests that no worker serves by itself reach the library through a socket, as if it read them from
//! the device, and its answers come back the same way.

use super::abi;
use super::mailbox::Ticket;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair, sockopt};
use nix::unistd::{read, write};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// The largest request or answer: 1 MiB of data and its headers.
const MESSAGE_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// `FUSE_DESTROY`: each of the library's threads ends when it reads one.
const DESTROY: u32 = 38;

pub struct Bridge {
    device: Arc<OwnedFd>,
    socket: OwnedFd,
    /// Requests that came by a ring, until the library answers.
    pending: Mutex<HashMap<u64, Ticket>>,
    library_threads: usize,
}

impl Bridge {
    /// The other end is for the library, which reads it with so many threads.
    pub fn new(device: Arc<OwnedFd>, library_threads: usize) -> io::Result<(Arc<Bridge>, OwnedFd)> {
        let (socket, library) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        for end in [&socket, &library] {
            setsockopt(end, sockopt::SndBufForce, &(4 * MESSAGE_BYTES_MAX))?;
        }
        let bridge = Bridge { device, socket, pending: Mutex::default(), library_threads };
        Ok((Arc::new(bridge), library))
    }

    /// Asks the library; it answers through the ticket.
    pub fn pass_on(&self, ticket: Ticket, unique: u64, message: [&[u8]; 3]) {
        self.pending.lock().insert(unique, ticket);
        if let Err(errno) = self.send(&message.map(IoSlice::new)) {
            tracing::error!("pass a request on: {errno}");
            // Dropped, it answers EIO.
            self.pending.lock().remove(&unique);
        }
    }

    /// Passes on what the kernel does not send through rings: INIT, then what is not urgent. Returns when the filesystem is gone.
    pub fn read_device(&self) {
        let mut message = vec![0_u8; MESSAGE_BYTES_MAX];
        loop {
            match read(&self.device, &mut message) {
                Ok(length) => {
                    if let Err(errno) = self.send(&[IoSlice::new(&message[..length])]) {
                        tracing::error!("pass a request on: {errno}");
                    }
                }
                Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => {}
                Err(Errno::ENODEV) => return,
                Err(errno) => return tracing::info!("the kernel ended the connection: {errno}"),
            }
        }
    }

    /// Tells the library that nothing follows, and so [`Bridge::read_answers`] too.
    pub fn end(&self) {
        for thread in 0..self.library_threads {
            let header = abi::InHeader {
                length: u32::try_from(size_of::<abi::InHeader>()).unwrap_or(0),
                opcode: DESTROY,
                unique: goodbye(thread),
                node: 0,
                uid: 0,
                gid: 0,
                pid: 0,
                extensions_and_padding: 0,
            };
            if let Err(errno) = self.send(&[IoSlice::new(header.as_bytes())]) {
                tracing::error!("end the session: {errno}");
            }
        }
    }

    /// Brings the library's answers to where the requests came from, until its last thread has ended. `agreed` is called once, after the first, that to INIT: with
    /// the largest payload of a request, or None if the kernel does not offer io_uring after all.
    pub fn read_answers(&self, agreed: impl FnOnce(Option<usize>)) {
        let mut agreed = Some(agreed);
        let mut threads = self.library_threads;
        let mut message = vec![0_u8; MESSAGE_BYTES_MAX];
        while threads > 0 {
            let length = match recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(0) => return,
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return tracing::error!("read an answer: {errno}"),
            };
            let Some((header, body)) = abi::split_answer(&message[..length]) else { continue };
            if header.unique > goodbye(self.library_threads) {
                threads -= 1;
            } else if let Some(ticket) = self.pending.lock().remove(&header.unique) {
                if header.error == 0 { ticket.bytes(body.to_vec()) } else { ticket.error(-header.error) }
            } else if let Some(agreed) = agreed.take() {
                let body = size_of::<abi::OutHeader>()..length;
                let payload_bytes = if header.error == 0 { abi::take_uring(&mut message[body]) } else { None };
                self.write_device(&message[..length]);
                agreed(payload_bytes);
            } else {
                self.write_device(&message[..length]);
            }
        }
    }

    fn write_device(&self, message: &[u8]) {
        match write(&self.device, message) {
            // Whoever asked was interrupted, or the filesystem is gone.
            Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => {}
            Err(errno) => tracing::error!("answer the kernel: {errno}"),
        }
    }

    fn send(&self, message: &[IoSlice<'_>]) -> nix::Result<()> {
        sendmsg::<()>(self.socket.as_raw_fd(), message, &[], MsgFlags::MSG_NOSIGNAL, None).map(drop)
    }
}

/// A number that no request of the kernel has: it counts up from 2.
fn goodbye(thread: usize) -> u64 {
    u64::MAX - thread as u64
}
