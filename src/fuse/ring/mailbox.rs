//! Answers on their way to the thread that may hand them to the kernel.

use crate::device::sys_uring::Payload;
use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct Answer {
    pub slot: usize,
    pub unique: u64,
    /// 0 for success.
    pub errno: i32,
    pub body: Body,
    /// The slot's own, if it was lent to whoever answered.
    pub payload: Option<Payload>,
}

pub enum Body {
    Bytes(Vec<u8>),
    /// So many bytes of the payload.
    Filled(usize),
}

pub struct Mailbox {
    answers: Mutex<Vec<Answer>>,
    /// Its owner waits in the kernel, or is about to.
    asleep: AtomicBool,
    bell: Arc<EventFd>,
}

impl Mailbox {
    pub fn new(bell: Arc<EventFd>) -> Mailbox {
        Mailbox { answers: Mutex::default(), asleep: AtomicBool::new(false), bell }
    }

    fn put(&self, answer: Answer) {
        self.answers.lock().push(answer);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Wakes the owner.
    fn ring(&self) {
        if let Err(errno) = self.bell.write(1) {
            tracing::error!("eventfd: {errno}");
        }
    }

    pub fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock())
    }

    /// To be called before waiting: false if something has come meanwhile.
    pub fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let may = self.answers.lock().is_empty();
        if !may {
            self.woke();
        }
        may
    }

    pub fn woke(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// The duty to answer one request, from any thread. Dropped without an answer it answers EIO, so that nobody waits for ever.
pub struct Ticket {
    mailbox: Arc<Mailbox>,
    slot: usize,
    unique: u64,
    payload: Option<Payload>,
    answered: bool,
}

impl Ticket {
    pub fn new(mailbox: Arc<Mailbox>, slot: usize, unique: u64, payload: Option<Payload>) -> Ticket {
        Ticket { mailbox, slot, unique, payload, answered: false }
    }

    pub fn bytes(mut self, body: Vec<u8>) {
        self.put(0, Body::Bytes(body));
    }

    pub fn error(mut self, errno: i32) {
        self.put(errno, Body::Filled(0));
    }

    /// With bytes for the payload that this was made with.
    pub fn payload(mut self, bytes: &[u8]) {
        match self.payload.as_deref_mut().and_then(|payload| payload.get_mut(..bytes.len())) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.put(0, Body::Filled(bytes.len()));
            }
            None => self.error(libc::EIO),
        }
    }

    fn put(&mut self, errno: i32, body: Body) {
        self.answered = true;
        let payload = self.payload.take();
        self.mailbox.put(Answer { slot: self.slot, unique: self.unique, errno, body, payload });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.put(libc::EIO, Body::Filled(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox() -> Arc<Mailbox> {
        Arc::new(Mailbox::new(Arc::new(EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap())))
    }

    #[test]
    fn a_ticket_that_is_dropped_answers() {
        let mailbox = mailbox();
        let payload = Payload::new(std::num::NonZeroUsize::new(8192).unwrap()).unwrap();
        drop(Ticket::new(Arc::clone(&mailbox), 3, 77, Some(payload)));
        let answers = mailbox.take();
        assert_eq!((answers.len(), answers[0].slot, answers[0].unique, answers[0].errno), (1, 3, 77, libc::EIO));
        assert!(answers[0].payload.is_some(), "the slot's memory comes back with it");
    }

    #[test]
    fn the_bell_rings_for_sleepers_alone() {
        let mailbox = mailbox();
        Ticket::new(Arc::clone(&mailbox), 0, 1, None).bytes(Vec::new());
        assert!(!mailbox.may_sleep(), "there is an answer");
        assert_eq!(mailbox.take().len(), 1);
        assert!(mailbox.bell.read().is_err(), "nobody slept");
        assert!(mailbox.may_sleep());
        Ticket::new(Arc::clone(&mailbox), 0, 1, None).bytes(Vec::new());
        Ticket::new(Arc::clone(&mailbox), 0, 2, None).bytes(Vec::new());
        assert_eq!(mailbox.bell.read(), Ok(1), "once");
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_not_half_an_answer() {
        let mailbox = mailbox();
        let payload = Payload::new(std::num::NonZeroUsize::new(4096).unwrap()).unwrap();
        Ticket::new(Arc::clone(&mailbox), 0, 1, Some(payload)).payload(&[1; 4097]);
        assert_eq!(mailbox.take()[0].errno, libc::EIO);
    }
}
