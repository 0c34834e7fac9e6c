//! Traces of block accesses: CSV, plain or gzip, with the header `ts_ms,op,file,offset,len`.
//!
//! `op` is R, W, S (sync) or T (truncate; `offset` is the new size). Beside `NAME.csv[.gz]` there may be `NAME.files.csv`, which maps `file` to
//! `path` and `class`, and `meta.json`, which gives the `period_ms` of a known cycle.

use crate::error::{Error, Result};
use crate::heat::forecast::FileClass;
use crate::units::FileId;
use flate2::read::MultiGzDecoder;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The longest access that a trace may have: work grows with the blocks of each, and no program reads or writes more at once.
const ACCESS_BYTES_MAX: u64 = 1 << 30;
/// The first line of a trace.
pub const TRACE_HEADER: &str = "ts_ms,op,file,offset,len";
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Sync,
    Truncate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub ts_ms: u64,
    pub operation: Operation,
    pub file: FileId,
    pub offset: u64,
    pub len: u64,
}

/// A trace in memory: 40 bytes a record.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub records: Vec<Record>,
    pub classes: BTreeMap<FileId, FileClass>,
    /// The files are a database's, with classes. Without them it is a trace of a block device.
    pub has_classes: bool,
    /// 0: no cycle is known.
    pub period_ms: u64,
}

impl Trace {
    /// Reads a trace and what lies beside it. A bad line is `Invalid`, with its number.
    pub fn load(path: &Path) -> Result<Trace> {
        let mut trace = Trace::read(open(path)?, &path.display().to_string())?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = name.trim_end_matches(".gz").trim_end_matches(".csv");
        let files = path.with_file_name(format!("{stem}.files.csv"));
        if files.exists() {
            trace.read_classes(open(&files)?, &files.display().to_string())?;
        }
        let meta = path.with_file_name("meta.json");
        if meta.exists() {
            trace.period_ms = period_ms(open(&meta)?, &meta.display().to_string(), &name)?;
        }
        Ok(trace)
    }

    /// Records alone, from lines; `path` is only for messages.
    pub fn read(lines: impl BufRead, path: &str) -> Result<Trace> {
        Ok(Trace { records: records(lines, path)?, ..Trace::default() })
    }

    fn read_classes(&mut self, lines: impl BufRead, path: &str) -> Result<()> {
        for (number, line) in (1u64..).zip(lines.lines()) {
            let line = line.map_err(|source| Error::io("read", path, source))?;
            let fields: Vec<&str> = line.trim_end().split(',').collect();
            if number == 1 || line.trim().is_empty() {
                self.has_classes |= fields.get(2) == Some(&"class");
                continue;
            }
            let file = fields.first().and_then(|field| field.parse().ok());
            let file = file.ok_or_else(|| bad_line(path, number, "the first field is not the number of a file"))?;
            self.classes.insert(FileId(file), FileClass::named(fields.get(2).copied().unwrap_or_default()));
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let fail = |action| move |source| Error::io(action, path.display().to_string(), source);
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(fail("open"))?);
    let is_gzip = file.fill_buf().map_err(fail("read"))?.starts_with(&GZIP_MAGIC);
    Ok(if is_gzip { Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file))) } else { Box::new(file) })
}

/// What is wrong with a line of an input.
pub(super) fn bad_line(path: &str, number: u64, why: &str) -> Error {
    Error::Invalid(format!("{path}, line {number}: {why}"))
}

fn records(lines: impl BufRead, path: &str) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut number = 0;
    for line in lines.split(b'\n') {
        number += 1;
        let line = line.map_err(|source| bad_line(path, number, &format!("cannot be read: {source}")))?;
        let line = std::str::from_utf8(&line).map_err(|_| bad_line(path, number, "is no text"))?;
        let line = line.trim_end();
        if number == 1 {
            if line != TRACE_HEADER {
                return Err(bad_line(path, number, &format!("the header `{TRACE_HEADER}` is wanted")));
            }
        } else if !line.is_empty() {
            records.push(record(line).map_err(|why| bad_line(path, number, &why))?);
        }
    }
    if number == 0 {
        return Err(bad_line(path, 1, &format!("the header `{TRACE_HEADER}` is wanted")));
    }
    Ok(records)
}

fn record(line: &str) -> std::result::Result<Record, String> {
    let mut fields = line.split(',');
    let mut field = |name: &str| fields.next().ok_or_else(|| format!("`{name}` is missing; wanted are {TRACE_HEADER}"));
    let whole = |name: &str, text: &str| {
        text.parse::<u64>()
            .map_err(|_| format!("{name} = `{text:.40}`: a whole number is wanted, from 0 to {}", u64::MAX))
    };
    let ts_ms = whole("ts_ms", field("ts_ms")?)?;
    let operation = match field("op")? {
        "R" => Operation::Read,
        "W" => Operation::Write,
        "S" => Operation::Sync,
        "T" => Operation::Truncate,
        other => return Err(format!("op = `{other:.40}`: R, W, S or T is wanted")),
    };
    let file = FileId(whole("file", field("file")?)?);
    let (offset, len) = (whole("offset", field("offset")?)?, whole("len", field("len")?)?);
    if fields.next().is_some() {
        return Err(format!("too many fields; wanted are {TRACE_HEADER}"));
    }
    if matches!(operation, Operation::Read | Operation::Write) {
        refuse_endless(offset, len)?;
    }
    Ok(Record { ts_ms, operation, file, offset, len })
}

/// An access of more bytes than anybody makes would be counted block by block for ever.
pub(in crate::jobs) fn refuse_endless(offset: u64, len: u64) -> std::result::Result<(), String> {
    if offset.saturating_add(len) - offset > ACCESS_BYTES_MAX {
        return Err(format!("len = `{len}`: a whole number is wanted, from 0 to {ACCESS_BYTES_MAX}"));
    }
    Ok(())
}

/// The period of a trace by its file's name; 0 when none is told.
fn period_ms(mut text: impl Read, path: &str, trace: &str) -> Result<u64> {
    let mut json = String::new();
    text.read_to_string(&mut json).map_err(|source| Error::io("read", path, source))?;
    let meta: serde_json::Value = serde_json::from_str(&json)
        .map_err(|error| bad_line(path, u64::try_from(error.line()).unwrap_or(1), "is no JSON"))?;
    Ok(meta.get(trace).and_then(|of| of.get("period_ms")).and_then(serde_json::Value::as_u64).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn plain_and_compressed_traces_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let text = "ts_ms,op,file,offset,len\r\n0,R,3,8192,8192\n5,W,4,0,1\n6,S,4,0,0\n7,T,4,100,0\n\n";
        std::fs::write(dir.path().join("a.csv"), text).unwrap();
        let zipped = File::create(dir.path().join("b.csv.gz")).unwrap();
        let mut zip = flate2::write::GzEncoder::new(zipped, flate2::Compression::fast());
        zip.write_all(text.as_bytes()).unwrap();
        zip.finish().unwrap();
        std::fs::write(dir.path().join("b.files.csv"), "file,path,class,rel\n3,base/1/2,heap,t\n").unwrap();
        std::fs::write(dir.path().join("meta.json"), "{\"b.csv.gz\":{\"period_ms\":56200}}").unwrap();
        let plain = Trace::load(&dir.path().join("a.csv")).unwrap();
        let zipped = Trace::load(&dir.path().join("b.csv.gz")).unwrap();
        assert_eq!((plain.records.len(), &plain.records), (4, &zipped.records));
        assert_eq!((plain.has_classes, plain.period_ms), (false, 0));
        assert_eq!((zipped.has_classes, zipped.period_ms), (true, 56_200));
        assert_eq!(zipped.classes[&FileId(3)], FileClass::Heap);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        for (text, line) in [
            ("", 1),
            ("time,op", 1),
            ("ts_ms,op,file,offset,len\n1,R,0,0", 2),
            ("ts_ms,op,file,offset,len\n1,R,0,0,1\n1,X,0,0,1", 3),
            ("ts_ms,op,file,offset,len\n1,R,0,-5,1", 2),
            ("ts_ms,op,file,offset,len\n1,R,0,0,1,9", 2),
            ("ts_ms,op,file,offset,len\n1,R,0,0,18446744073709551615", 2),
            ("ts_ms,op,file,offset,len\nNaN,R,0,0,1", 2),
        ] {
            let error = records(text.as_bytes(), "t.csv").unwrap_err();
            assert!(
                matches!(&error, Error::Invalid(why) if why.starts_with(&format!("t.csv, line {line}: "))),
                "{error}"
            );
        }
        assert!(matches!(records(&b"ts_ms,op,file,offset,len\n\xff\n"[..], "t"), Err(Error::Invalid(_))));
    }
}
