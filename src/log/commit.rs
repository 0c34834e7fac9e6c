//! Commit: close, write, publish. One group is in flight at any time; who writes it holds the `in_flight` token.

use super::{ClosedGroup, FLUSH_INTERVAL, Log, SegmentStart, Waiter};
use crate::device::clock;
use crate::error::{Error, Result};
use crate::ondisk::group::GroupHeader;
use crate::ondisk::summary;
use crate::sync::atomic::Ordering;
use crate::units::{Lsn, PAGE, PAGE_BYTES};

impl Log {
    /// Writes groups while somebody waits for them. The caller has set `in_flight`.
    pub(super) fn lead(&self) {
        loop {
            let closed = {
                let mut state = self.state.lock();
                if state.closed.is_empty() {
                    self.close_open(&mut state);
                }
                match state.closed.pop_front() {
                    Some(closed) => {
                        state.closed_bytes -= (1 + closed.payload_pages) * PAGE;
                        closed
                    }
                    None => {
                        state.in_flight = false;
                        let waiters = std::mem::take(&mut state.waiters);
                        drop(state);
                        // Nothing is open or queued, so whatever these waited for is durable or lost.
                        self.answer(waiters);
                        return;
                    }
                }
            };
            if let Err(error) = self.write_group(closed) {
                self.fail(&error);
                return;
            }
            let mut state = self.state.lock();
            let durable = self.durable_address();
            let (ready, waiting): (Vec<_>, Vec<_>) =
                std::mem::take(&mut state.waiters).into_iter().partition(|waiter| waiter.lsn.0 < durable);
            state.waiters = waiting;
            let more = !state.waiters.is_empty() || !state.closed.is_empty();
            let hand_over = more && state.committer;
            if !more || hand_over {
                state.in_flight = false;
            }
            drop(state);
            self.room.notify_all();
            for waiter in ready {
                (waiter.done)(Ok(()));
            }
            if hand_over {
                self.work.notify_one();
            }
            if !more || hand_over {
                return;
            }
        }
    }

    fn answer(&self, waiters: Vec<Waiter>) {
        for waiter in waiters {
            let result = match self.check_alive() {
                Ok(()) if waiter.lsn.0 < self.durable_address() => Ok(()),
                Ok(()) => Err(Error::ReadOnly { why: "a record vanished from the log's buffers".to_string() }),
                Err(error) => Err(error),
            };
            (waiter.done)(result);
        }
    }

    /// Completes the header, writes header and payloads with one call, and publishes the new durable address.
    fn write_group(&self, closed: ClosedGroup) -> Result<()> {
        self.check_alive()?;
        let mut chain = self.chain.lock();
        let started = clock::monotonic_now();
        let start = closed.group.start;
        let (segment_seq, offset) = (self.geometry.segment_of(start), start % self.geometry.segment_bytes);
        let slot = self.geometry.slot(segment_seq);
        let len = (1 + closed.payload_pages) * PAGE;
        let mut buf = closed.group.buf.write();
        buf.grow(len);
        let payload_crcs: Vec<u32> = buf.chunks_exact(PAGE).skip(1).map(crc32c::crc32c).collect();
        let header = GroupHeader {
            volume: self.volume,
            incarnation: self.incarnation,
            segment_seq,
            offset,
            group_seq: chain.next_group_seq,
            previous_checksum: chain.previous_checksum,
            wall: clock::wall_now(),
            inline_bytes: u32::try_from(closed.inline_bytes).unwrap_or(u32::MAX),
            records: closed.records,
            payload_crcs,
        };
        let page = buf.get_mut(..PAGE).unwrap_or_default();
        let checksum = header.encode_into(page);
        let page_crc = crc32c::crc32c(page);
        drop(buf);
        self.note_crcs(slot, offset, page_crc, &header.payload_crcs);
        self.cache.account(len as u64);
        let path = self.slot_paths.get(slot).cloned().unwrap_or_default();
        let file = self.slots.get(slot).ok_or_else(|| Error::NotFound(format!("no log slot {slot}")))?;
        file.write_all_at(&closed.group.buf.read(), offset).map_err(|e| Error::io("write log segment", path, e))?;
        if offset == 0 {
            chain.starts.push_back(SegmentStart {
                segment_seq,
                first_group_seq: header.group_seq,
                previous_checksum: header.previous_checksum,
            });
        }
        chain.add_to_summary(segment_seq, &header, checksum, page_crc);
        chain.next_group_seq += 1;
        chain.previous_checksum = checksum;
        self.durable.store(start + len as u64, Ordering::Release);
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.counters.written_bytes.fetch_add(len as u64, Ordering::Relaxed);
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.commit_us.fetch_add(took_us, Ordering::Relaxed);
        Ok(())
    }

    fn note_crcs(&self, slot: usize, offset: u64, page_crc: u32, payload_crcs: &[u32]) {
        let Some(crcs) = self.page_crcs.get(slot) else { return };
        let mut crcs = crcs.write();
        let first = usize::try_from(offset / PAGE_BYTES).unwrap_or(0);
        let end = first + 1 + payload_crcs.len();
        if crcs.len() < end {
            crcs.resize(end, 0);
        }
        for (slot, crc) in crcs.iter_mut().skip(first).zip(std::iter::once(&page_crc).chain(payload_crcs)) {
            *slot = *crc;
        }
    }

    /// The log has failed (I5): nothing is written any more, everybody who waits or asks later is told.
    fn fail(&self, error: &Error) {
        self.fail_for(error);
        let mut state = self.state.lock();
        state.in_flight = false;
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        self.room.notify_all();
        self.answer(waiters);
    }

    /// Makes the volume read-only for a reason outside of the log (I5).
    pub fn fail_for(&self, error: &Error) {
        self.failure.lock().get_or_insert_with(|| {
            tracing::error!(%error, "the volume is read-only until it is mounted again");
            error.to_string()
        });
        self.failed.store(true, Ordering::Release);
    }

    /// Makes everything appended so far durable.
    pub fn sync_all(&self) -> Result<()> {
        self.sync_wait(self.last_lsn())
    }

    /// The committer thread: goes on where leaders stop, and closes groups that nobody waits for. Returns after [`Log::stop`].
    pub fn run_committer(&self) {
        self.state.lock().committer = true;
        loop {
            let mut state = self.state.lock();
            if state.stop {
                // From here on leaders leave nothing to this thread; what one has left to it already is still its to do.
                state.committer = false;
                if !state.in_flight && !state.waiters.is_empty() {
                    state.in_flight = true;
                    drop(state);
                    self.lead();
                }
                return;
            }
            let busy = state.in_flight;
            let queued = !state.closed.is_empty() || !state.waiters.is_empty();
            if busy || !queued {
                let timed_out = self.work.wait_for(&mut state, FLUSH_INTERVAL).timed_out();
                let unwritten = state.open.is_some() || !state.closed.is_empty() || !state.waiters.is_empty();
                if state.in_flight || !unwritten || (!timed_out && state.closed.is_empty() && state.waiters.is_empty())
                {
                    continue;
                }
            }
            state.in_flight = true;
            drop(state);
            self.lead();
            if let Err(error) = self.seal_complete() {
                tracing::warn!(%error, "a segment summary could not be written; a remount will read its group headers instead");
            }
        }
    }

    /// Ends [`Log::run_committer`].
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.work.notify_all();
    }

    /// Waits until an append may succeed again, at most for `timeout`.
    pub fn wait_for_room(&self, timeout: std::time::Duration) {
        let mut state = self.state.lock();
        if state.closed_bytes > super::CLOSED_BYTES_MAX && !state.in_flight {
            self.work.notify_one();
        }
        self.room.wait_for(&mut state, timeout);
    }

    /// Are closed groups, rather than segments, what an append has to wait for? Then writing them makes room.
    pub fn flush_closed(&self) -> Result<()> {
        let lsn = self.last_lsn();
        if lsn == Lsn(0) { Ok(()) } else { self.sync_wait(lsn) }
    }
}

impl super::Chain {
    fn add_to_summary(&mut self, segment_seq: u64, header: &GroupHeader, checksum: u64, page_crc: u32) {
        if self.summary.as_ref().is_none_or(|(seq, ..)| *seq != segment_seq)
            && let Some(complete) = self.summary.replace((segment_seq, Vec::new(), 0))
        {
            self.unsealed.push_back(complete);
        }
        if let Some((_, body, groups_end)) = self.summary.as_mut() {
            summary::push_group(body, header, checksum, page_crc);
            *groups_end = header.offset + header.total_len();
        }
    }
}
