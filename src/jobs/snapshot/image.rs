//! What a capture needs to go on after its daemon has ended: what was said around the moment, and all names as they were then. The bytes are in the
//! volume's keeping as long as the mark is pending.
//!
//! An LZ4 frame of rows, each a length (u32, little-endian) and so many bytes of postcard: first a [`Head`], then a path and an [`Entry`] for each
//! name, in order of paths. The engine keeps it beside the mark, and checks it (`ondisk::image`).

use crate::error::{Error, Result};
use crate::repository::Entry;
use lz4_flex::frame::{FrameDecoder, FrameEncoder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// Longest row: a path and its attributes, in bytes.
const ROW_BYTES_MAX: u32 = 64 << 20;

/// What was said around the moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub labels: BTreeMap<String, String>,
    /// What the database said of its backup mode, encoded; None: it took no part.
    pub backup_label: Option<Vec<u8>>,
    /// What failed of the hooks after the moment.
    pub trouble: Option<String>,
}

pub(super) struct ImageWriter {
    rows: FrameEncoder<Vec<u8>>,
}

impl ImageWriter {
    pub fn begin(head: &Head) -> Result<ImageWriter> {
        let mut writer = ImageWriter { rows: FrameEncoder::new(Vec::new()) };
        writer.row(head)?;
        Ok(writer)
    }

    pub fn add(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        self.row(&(path, entry))
    }

    fn row(&mut self, row: &impl Serialize) -> Result<()> {
        let bytes = postcard::to_stdvec(row).map_err(|e| malformed(&e.to_string()))?;
        let len = u32::try_from(bytes.len()).map_err(|_| malformed("a name with too many attributes"))?;
        self.rows.write_all(&len.to_le_bytes()).map_err(|e| malformed(&e.to_string()))?;
        self.rows.write_all(&bytes).map_err(|e| malformed(&e.to_string()))
    }

    pub fn finish(self) -> Result<Vec<u8>> {
        self.rows.finish().map_err(|e| malformed(&e.to_string()))
    }
}

pub(super) struct ImageReader<'a> {
    rows: FrameDecoder<&'a [u8]>,
}

impl<'a> ImageReader<'a> {
    pub fn open(image: &'a [u8]) -> Result<(Head, ImageReader<'a>)> {
        let mut reader = ImageReader { rows: FrameDecoder::new(image) };
        let head = reader.row()?.ok_or_else(|| malformed("it is empty"))?;
        Ok((head, reader))
    }

    /// The next name.
    pub fn next(&mut self) -> Result<Option<(Vec<u8>, Entry)>> {
        self.row()
    }

    fn row<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let mut len = [0; 4];
        let first = loop {
            match self.rows.read(&mut len[..1]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                got => break got,
            }
        };
        let whole = first.and_then(|got| match got {
            0 => Ok(None),
            _ => {
                self.rows.read_exact(&mut len[1..])?;
                let mut row = Vec::new();
                let len = u32::from_le_bytes(len);
                if len > ROW_BYTES_MAX || (&mut self.rows).take(len.into()).read_to_end(&mut row)? != len as usize {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(Some(row))
            }
        });
        let Some(row) = whole.map_err(|e| malformed(&e.to_string()))? else { return Ok(None) };
        postcard::from_bytes(&row).map(Some).map_err(|e| malformed(&e.to_string()))
    }
}

fn malformed(why: &str) -> Error {
    Error::SnapshotFailed { why: format!("what was kept of its names cannot be used: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::EntryKind;
    use crate::units::{FileId, WallNs};

    fn entry(kind: EntryKind) -> Entry {
        let at = WallNs(7);
        Entry { kind, mode: 0o640, uid: 1, gid: 2, atime: at, mtime: at, ctime: at, xattrs: vec![], link: 0 }
    }

    type Names = Vec<(Vec<u8>, Entry)>;

    fn made() -> (Head, Names, Vec<u8>) {
        let labels = BTreeMap::from([("why".to_owned(), "test".to_owned())]);
        let head = Head { labels, backup_label: Some(vec![1, 2]), trouble: None };
        let names: Names = vec![
            (Vec::new(), entry(EntryKind::Directory)),
            (b"base/\xff".to_vec(), entry(EntryKind::File { file: FileId(5) })),
            (b"link".to_vec(), entry(EntryKind::Symlink { target: b"base".to_vec() })),
        ];
        let mut writer = ImageWriter::begin(&head).unwrap();
        names.iter().for_each(|(path, entry)| writer.add(path, entry).unwrap());
        (head, names, writer.finish().unwrap())
    }

    #[test]
    fn what_was_kept_is_read_back() {
        let (head, names, image) = made();
        let (read, mut rows) = ImageReader::open(&image).unwrap();
        assert_eq!(read, head);
        let mut found = Vec::new();
        while let Some(name) = rows.next().unwrap() {
            found.push(name);
        }
        assert_eq!(found, names);
    }

    #[test]
    fn what_is_cut_short_is_an_error_never_fewer_names() {
        let (_, names, image) = made();
        for len in 0..image.len() {
            let read = ImageReader::open(&image[..len]).and_then(|(_, mut rows)| {
                let mut count = 0;
                while rows.next()?.is_some() {
                    count += 1;
                }
                Ok(count)
            });
            assert!(read.as_ref().is_err() || *read.as_ref().unwrap() == names.len(), "{len}: {read:?}");
        }
    }
}
