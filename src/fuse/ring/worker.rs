//! A thread that serves requests of one of the kernel's queues: those that databases live on by itself, all others through the library.

use super::abi::{self, InHeader, OutHeader};
use super::bridge::Bridge;
use super::mailbox::{Answer, Body, Mailbox, Ticket};
use crate::device::sys_uring::{Event, FuseRing, Headers, Payload};
use crate::error::Error;
use crate::fuse::Maintains;
use crate::fuse::adapter::OPENED;
use crate::fuse::errno::{Doing, errno};
use crate::fuse::operations::Operations;
use crate::heat::maintaining;
use crate::namespace::Outcome;
use crate::volume::DirectRead;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub struct Worker<O> {
    pub queue: u16,
    pub payload_bytes: NonZeroUsize,
    pub slots_max: usize,
    pub operations: Arc<O>,
    pub maintains: Maintains,
    pub bridge: Arc<Bridge>,
    pub mailbox: Arc<Mailbox>,
}

/// A request whose bytes the kernel reads into its slot.
struct Reading {
    unique: u64,
    maintains: bool,
    read: DirectRead,
}

/// By slot.
type Readings = HashMap<usize, Reading>;

impl<O: Operations> Worker<O> {
    /// Serves until the filesystem is gone. There are as many slots as requests wait elsewhere at once, and one for the next: a slot more would
    /// only let a request wait here for one that is being served. Errors: the ring itself failed, or the kernel took none of its slots.
    pub fn run(&self, ring: &mut FuseRing) -> io::Result<()> {
        let mut events = Vec::new();
        let mut readings = Readings::new();
        let mut served = false;
        loop {
            self.hand_over(ring)?;
            if ring.lent() == 0 && ring.slots() < self.slots_max {
                ring.add(self.queue, self.payload_bytes)?;
            }
            if !self.mailbox.may_sleep() {
                continue;
            }
            ring.wait(&mut events)?;
            self.mailbox.woke();
            let mut left = events.len();
            for event in events.drain(..) {
                left -= 1;
                match event {
                    Event::Bell => {}
                    Event::Read(slot, outcome) => self.finish(ring, slot, readings.remove(&slot), outcome)?,
                    Event::Request(slot) => {
                        served = true;
                        if self.begin_read(ring, slot, &mut readings)? {
                            continue;
                        }
                        self.serve(ring, slot);
                        if left > 0 {
                            // What is answered by now need not wait for the requests that came with it.
                            self.hand_over(ring)?;
                            ring.submit()?;
                        }
                    }
                    Event::Over(errno) if served || is_end(errno) => return self.leave(ring),
                    Event::Over(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }

    /// After the end: the kernel still holds slots until it has said so for each.
    fn leave(&self, ring: &mut FuseRing) -> io::Result<()> {
        let mut events = Vec::new();
        while ring.lent() + ring.reading() > 0 {
            ring.wait(&mut events)?;
            events.clear();
        }
        Ok(())
    }

    fn hand_over(&self, ring: &mut FuseRing) -> io::Result<()> {
        for Answer { slot, unique, errno, body, payload } in self.mailbox.take() {
            if let Some(payload) = payload {
                ring.give_payload(slot, payload);
            }
            self.answer(ring, slot, unique, errno, &body)?;
        }
        Ok(())
    }

    fn answer(&self, ring: &mut FuseRing, slot: usize, unique: u64, errno: i32, body: &Body) -> io::Result<()> {
        let body_length = match body {
            Body::Bytes(bytes) => bytes.len(),
            Body::Filled(length) => *length,
        };
        let length = u32::try_from(size_of::<OutHeader>() + body_length).unwrap_or(u32::MAX);
        let header = OutHeader { length, error: -errno, unique };
        ring.answer(slot, header.as_bytes(), |payload| write_body(payload, body))
    }

    fn serve(&self, ring: &mut FuseRing, slot: usize) {
        let Some((header, operation)) = ring.request(slot).and_then(|(headers, _)| {
            let (header, _) = abi::split_request(&headers.in_out)?;
            Some((header, headers.operation))
        }) else {
            return tracing::error!("a request without a header");
        };
        let payload = if header.opcode == abi::READ { ring.take_payload(slot) } else { None };
        let ticket = Ticket::new(Arc::clone(&self.mailbox), slot, header.unique, payload);
        let Some((headers, payload)) = ring.request(slot) else { return };
        match header.opcode {
            abi::READ => self.read(&header, &operation, ticket),
            abi::WRITE => self.write(&header, &operation, payload, ticket),
            abi::FSYNC => {
                self.operations
                    .sync(header.node, move |synced| ticket.answer(synced.map(|()| Vec::new()), Doing::Syncing));
            }
            abi::GETATTR => {
                let found = self.operations.attributes(header.node);
                ticket.answer(found.map(|attributes| bytes(&abi::AttrOut::from(&attributes))), Doing::Reading);
            }
            abi::LOOKUP => {
                let found = self.operations.lookup(header.node, name(payload));
                ticket.answer(found.map(|linked| bytes(&abi::EntryOut::from(&linked.attributes))), Doing::Reading);
            }
            abi::OPEN => {
                let opened = |handle| bytes(&abi::Opened { handle, flags: OPENED.bits(), backing: 0 });
                ticket.answer(self.operations.open(header.node).map(opened), Doing::Reading);
            }
            abi::RELEASE => {
                self.operations.release(header.node);
                ticket.bytes(Vec::new());
            }
            _ => self.pass_on(&header, headers, payload, ticket),
        }
    }

    /// Lets the kernel read into the slot, where that is all there is to a request. It costs this thread no wait: meanwhile it serves others.
    fn begin_read(&self, ring: &mut FuseRing, slot: usize, readings: &mut Readings) -> io::Result<bool> {
        let Some((header, transfer)) = ring.request(slot).and_then(|(headers, _)| {
            let (header, _) = abi::split_request(&headers.in_out)?;
            (header.opcode == abi::READ).then_some((header, transfer(&headers.operation)?))
        }) else {
            return Ok(false);
        };
        let Ok(size) = usize::try_from(transfer.size) else { return Ok(false) };
        let Some(read) = self.operations.direct_read(header.node, transfer.offset, size) else { return Ok(false) };
        let Some(from) = read.descriptor() else { return Ok(false) };
        ring.read(slot, from, read.offset(), read.length())?;
        let maintains = (self.maintains)(header.pid);
        readings.insert(slot, Reading { unique: header.unique, maintains, read });
        Ok(true)
    }

    fn finish(
        &self,
        ring: &mut FuseRing,
        slot: usize,
        reading: Option<Reading>,
        outcome: Result<usize, i32>,
    ) -> io::Result<()> {
        let Some(Reading { unique, maintains, read }) = reading else {
            return Err(io::Error::other("a read that nobody asked for"));
        };
        let outcome = outcome.map_err(io::Error::from_raw_os_error);
        let finished = ring.payload(slot).map(|payload| maintaining(maintains, || read.finish(payload, outcome)));
        let (errno, length) = match finished {
            Some(Ok(length)) => (0, length),
            // The kernel's read failed, and what may still answer takes longer than this thread may wait.
            Some(Err(Error::WouldWait)) => {
                self.serve(ring, slot);
                return Ok(());
            }
            Some(Err(error)) => (errno(&error.into(), Doing::Reading), 0),
            None => (libc::EIO, 0),
        };
        self.answer(ring, slot, unique, errno, &Body::Filled(length))
    }

    fn read(&self, header: &InHeader, operation: &[u8], ticket: Ticket) {
        let Some(transfer) = transfer(operation) else { return ticket.error(libc::EINVAL) };
        let Ok(size) = usize::try_from(transfer.size) else { return ticket.error(libc::EINVAL) };
        let maintains = (self.maintains)(header.pid);
        self.operations.read(header.node, transfer.offset, size, maintains, move |read| match read {
            Ok(bytes) => ticket.payload(bytes),
            Err(fault) => ticket.error(errno(&fault, Doing::Reading)),
        });
    }

    fn write(&self, header: &InHeader, operation: &[u8], payload: &[u8], ticket: Ticket) {
        let Some(transfer) = transfer(operation) else { return ticket.error(libc::EINVAL) };
        let data = usize::try_from(transfer.size).ok().and_then(|size| payload.get(..size));
        let Some(data) = data else { return ticket.error(libc::EINVAL) };
        let drops_privileges = transfer.transfer_flags & abi::WRITE_KILLS_PRIVILEGES != 0;
        let maintains = (self.maintains)(header.pid);
        let done = bytes(&abi::Written { size: transfer.size, padding: 0 });
        self.operations.write(header.node, transfer.offset, data, drops_privileges, maintains, move |written| {
            ticket.answer(written.map(|()| done), Doing::Changing);
        });
    }

    /// As it would have been read from the device.
    fn pass_on(&self, header: &InHeader, headers: &Headers, payload: &[u8], ticket: Ticket) {
        let whole = usize::try_from(header.length).unwrap_or(usize::MAX);
        let fixed = whole.checked_sub(size_of::<InHeader>() + payload.len());
        let Some(fixed) = fixed.and_then(|length| headers.operation.get(..length)) else {
            return ticket.error(libc::EINVAL);
        };
        self.bridge.pass_on(ticket, header.unique, [&headers.in_out[..size_of::<InHeader>()], fixed, payload]);
    }
}

impl Ticket {
    fn answer(self, outcome: Outcome<Vec<u8>>, doing: Doing) {
        match outcome {
            Ok(body) => self.bytes(body),
            Err(fault) => self.error(errno(&fault, doing)),
        }
    }
}

fn bytes(body: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    body.as_bytes().to_vec()
}

fn write_body(payload: &mut Payload, body: &Body) -> usize {
    match body {
        Body::Filled(length) => *length,
        Body::Bytes(bytes) => match payload.get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                bytes.len()
            }
            None => 0,
        },
    }
}

fn transfer(operation: &[u8]) -> Option<abi::Transfer> {
    abi::Transfer::read_from_prefix(operation).ok().map(|(transfer, _)| transfer)
}

/// A name as the kernel sends it: it ends with a NUL.
fn name(payload: &[u8]) -> &OsStr {
    OsStr::from_bytes(payload.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// What slots come back with when the filesystem goes.
fn is_end(errno: i32) -> bool {
    matches!(errno, libc::ENOTCONN | libc::ECANCELED | libc::ENODEV | libc::ECONNABORTED)
}
