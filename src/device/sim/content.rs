//! The bytes of a simulated file: copy-on-write pages, so that a whole world is cloned for the price of its maps.

use crate::units::{PAGE, PAGE_BYTES};
use std::collections::BTreeMap;
use std::sync::Arc;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// An allocated page. Zeros are common (pre-written logs, reserved space) and cost no memory.
#[derive(Clone)]
enum Page {
    Zeros,
    Bytes(Arc<[u8; PAGE]>),
}

impl Page {
    fn of(bytes: &[u8; PAGE]) -> Page {
        if bytes == &ZEROS { Page::Zeros } else { Page::Bytes(Arc::new(*bytes)) }
    }

    fn bytes(&self) -> &[u8; PAGE] {
        match self {
            Page::Zeros => &ZEROS,
            Page::Bytes(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8; PAGE] {
        if let Page::Zeros = self {
            *self = Page::Bytes(Arc::new(ZEROS));
        }
        match self {
            Page::Bytes(bytes) => Arc::make_mut(bytes),
            Page::Zeros => unreachable!("replaced just above"),
        }
    }
}

/// What one write does to one page.
#[derive(Clone)]
pub(super) struct Piece {
    offset: u64,
    bytes: PieceBytes,
}

#[derive(Clone)]
enum PieceBytes {
    /// The page is shared between the file, its unsynced changes and its durable content.
    Whole(Page),
    Part(Arc<[u8]>),
}

impl Piece {
    /// Cuts a write at page boundaries.
    pub(super) fn cut(mut offset: u64, mut data: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(data.len() / PAGE + 2);
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(PAGE - in_page(offset)));
            let bytes = match now.try_into() {
                Ok(page) => PieceBytes::Whole(Page::of(page)),
                Err(_) => PieceBytes::Part(now.into()),
            };
            pieces.push(Piece { offset, bytes });
            offset += now.len() as u64;
            data = later;
        }
        pieces
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            PieceBytes::Whole(page) => page.bytes(),
            PieceBytes::Part(bytes) => bytes,
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes().len() as u64
    }

    pub(super) fn page(&self) -> u64 {
        self.offset / PAGE_BYTES
    }
}

/// Length and pages; what is in no page reads as zeros. Bytes of the last page beyond the length are zero.
#[derive(Clone, Default)]
pub(super) struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The first run of allocated pages at or after `offset`, in bytes, below the length.
    pub(super) fn next_data(&self, offset: u64) -> Option<(u64, u64)> {
        let (&first, _) = self.pages.range(offset / PAGE_BYTES..).next()?;
        let after = self.pages.range(first..).zip(first..).find(|((page, _), expected)| *page != expected);
        let end = after.map_or_else(|| self.pages.last_key_value().map_or(0, |(page, _)| page + 1), |(_, end)| end);
        let (start, end) = (offset.max(first * PAGE_BYTES), (end * PAGE_BYTES).min(self.len()));
        (start < end).then_some((start, end))
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    pub(super) fn has_page(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    /// Pages of a range that nothing was written to or reserved in yet.
    pub(super) fn missing_pages(&self, offset: u64, len: u64) -> u64 {
        let (first, end) = (offset / PAGE_BYTES, (offset + len).div_ceil(PAGE_BYTES));
        (end - first) - self.pages.range(first..end).count() as u64
    }

    /// Returns the bytes before the end of the file.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let available = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let total = buf.len().min(available);
        let (mut at, mut rest) = (offset, &mut buf[..total]);
        while !rest.is_empty() {
            let start = in_page(at);
            let (now, later) = rest.split_at_mut((PAGE - start).min(rest.len()));
            match self.pages.get(&(at / PAGE_BYTES)) {
                Some(page) => now.copy_from_slice(&page.bytes()[start..start + now.len()]),
                None => now.fill(0),
            }
            at += now.len() as u64;
            rest = later;
        }
        total
    }

    pub(super) fn write(&mut self, piece: &Piece) {
        match &piece.bytes {
            PieceBytes::Whole(page) => {
                self.pages.insert(piece.page(), page.clone());
                self.len = self.len.max(piece.end());
            }
            PieceBytes::Part(bytes) => self.write_within_page(piece.offset, bytes),
        }
    }

    /// Writes those units (aligned, of `unit` bytes) of a piece that `survives` says yes to.
    pub(super) fn write_torn(&mut self, piece: &Piece, unit: usize, mut survives: impl FnMut() -> bool) {
        let (mut at, mut rest) = (piece.offset, piece.bytes());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((unit - in_page(at) % unit).min(rest.len()));
            if survives() {
                self.write_within_page(at, now);
            }
            at += now.len() as u64;
            rest = later;
        }
    }

    fn write_within_page(&mut self, offset: u64, bytes: &[u8]) {
        let page = self.pages.entry(offset / PAGE_BYTES).or_insert(Page::Zeros);
        let start = in_page(offset);
        page.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE_BYTES));
            self.zero_within_page(len, PAGE - in_page(len));
        }
        self.len = len;
    }

    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let (first, last) = (offset.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
        if first > last {
            return self.zero_within_page(offset, in_page(end) - in_page(offset));
        }
        self.zero_within_page(offset, (PAGE - in_page(offset)) % PAGE);
        self.zero_within_page(last * PAGE_BYTES, in_page(end));
        let whole: Vec<u64> = self.pages.range(first..last).map(|(page, _)| *page).collect();
        for page in whole {
            self.pages.remove(&page);
        }
    }

    pub(super) fn allocate(&mut self, offset: u64, len: u64) {
        for page in offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES) {
            self.pages.entry(page).or_insert(Page::Zeros);
        }
        self.len = self.len.max(offset + len);
    }

    /// A page that is not there is zero already.
    fn zero_within_page(&mut self, offset: u64, len: usize) {
        let start = in_page(offset);
        if let Some(page) = self.pages.get_mut(&(offset / PAGE_BYTES))
            && len > 0
        {
            page.bytes_mut()[start..start + len].fill(0);
        }
    }
}

fn in_page(offset: u64) -> usize {
    usize::try_from(offset % PAGE_BYTES).unwrap_or(0)
}
