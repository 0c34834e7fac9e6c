//! PostgreSQL's heap pages, as far as rows with leading columns of fixed length need them.
//!
//! A page of 8 KiB: 24 bytes of header, then line pointers of 4 bytes (15 bits of offset, 2 of state, 15 of length), the rows at the end.
//! A row: a header of 23 bytes (inserting and deleting transaction first, its own place or its successor's at 12, flags at 20, the length of
//! the header at 22), then the columns. Little-endian, as on every machine that heatfs runs on (`storage/bufpage.h`, `access/htup_details.h`).

const PAGE_BYTES: usize = 8192;
const PAGE_HEADER: usize = 24;
const ROW_HEADER: usize = 23;
/// State of a line pointer that leads to a row.
const NORMAL: u32 = 1;
/// Bits of a row's flags: the inserting transaction failed, unless the other bit says frozen; the deleting one failed, or there is none.
const INSERT_FAILED: u16 = 0x0200;
const INSERT_FROZEN: u16 = 0x0300;
const NOT_DELETED: u16 = 0x0800;

/// The columns of one row.
pub(super) struct Row {
    columns: Vec<u8>,
    /// As far as the row itself tells, nothing has replaced it.
    pub is_latest: bool,
}

impl Row {
    pub fn number(&self, at: usize) -> Option<u32> {
        self.columns.get(at..at + 4).map(|bytes| whole_numbers(bytes)[0])
    }

    pub fn byte(&self, at: usize) -> Option<u8> {
        self.columns.get(at).copied()
    }

    /// A name that is filled up with zeros.
    pub fn text(&self, at: usize, len: usize) -> Option<String> {
        let bytes = self.columns.get(at..at + len)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(len);
        std::str::from_utf8(bytes.get(..end)?).ok().map(str::to_owned)
    }
}

/// Little-endian words; a rest is left out.
pub(super) fn whole_numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// All rows of a file that were not given up by the transaction that made them.
pub(super) fn rows(file: &[u8]) -> Vec<Row> {
    file.chunks_exact(PAGE_BYTES).flat_map(rows_of_page).collect()
}

fn rows_of_page(page: &[u8]) -> Vec<Row> {
    let lower = page.get(12..14).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let pointers = page.get(PAGE_HEADER..lower.min(PAGE_BYTES)).unwrap_or_default();
    let found = whole_numbers(pointers).into_iter().filter_map(|pointer| {
        let part = |bits: u32| usize::try_from(bits & 0x7fff).ok();
        let (offset, len) = (part(pointer)?, part(pointer >> 17)?);
        let row = page.get(offset..offset.checked_add(len)?).filter(|_| pointer >> 15 & 3 == NORMAL)?;
        let flags = u16::from_le_bytes([*row.get(20)?, *row.get(21)?]);
        if flags & INSERT_FROZEN == INSERT_FAILED {
            return None;
        }
        let columns = row.get(usize::from(*row.get(22)?).max(ROW_HEADER)..)?.to_vec();
        let deleter = row.get(4..8).map_or(0, |bytes| whole_numbers(bytes)[0]);
        Some(Row { columns, is_latest: deleter == 0 || flags & NOT_DELETED != 0 })
    });
    found.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::{NOT_DELETED, PAGE_BYTES, PAGE_HEADER, rows};

    /// A page with these rows, none deleted.
    pub fn page(rows: &[Vec<u8>]) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        let (mut lower, mut upper) = (PAGE_HEADER, PAGE_BYTES);
        for columns in rows {
            let len = 24 + columns.len();
            upper -= len.next_multiple_of(8);
            page[upper + 20..upper + 22].copy_from_slice(&NOT_DELETED.to_le_bytes());
            page[upper + 22] = 24;
            page[upper + 24..upper + len].copy_from_slice(columns);
            let pointer = u32::try_from(upper).unwrap() | 1 << 15 | u32::try_from(len).unwrap() << 17;
            page[lower..lower + 4].copy_from_slice(&pointer.to_le_bytes());
            lower += 4;
        }
        page[12..14].copy_from_slice(&u16::try_from(lower).unwrap().to_le_bytes());
        page
    }

    #[test]
    fn rows_are_found_and_what_failed_is_left_out() {
        let mut bytes = page(&[vec![1, 0, 0, 0, b'a', 0], vec![2, 0, 0, 0, b'b', 0]]);
        let found = rows(&bytes);
        assert_eq!((found.len(), found[1].number(0), found[1].text(4, 2).as_deref()), (2, Some(2), Some("b")));
        assert!(found[0].is_latest && found[0].number(3).is_none());
        let last = PAGE_BYTES - 2 * 32;
        bytes[last + 4] = 9;
        bytes[last + 20..last + 22].copy_from_slice(&0u16.to_le_bytes());
        assert!(!rows(&bytes)[1].is_latest);
        bytes[last + 20..last + 22].copy_from_slice(&0x0200u16.to_le_bytes());
        assert_eq!(rows(&bytes).len(), 1);
    }
}
