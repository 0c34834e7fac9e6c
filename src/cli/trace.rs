//! `trace record`: takes records from the daemon bit by bit and writes them as a trace.

use super::out;
use crate::control::client::Client;
use crate::control::protocol::{self, DoneReply, TraceRequest, TracedFiles};
use crate::device::clock::monotonic_now;
use crate::error::Error;
use crate::heat::{TakenTrace, TraceRecord, TracedOperation};
use crate::jobs::replay::TRACE_HEADER;
use crate::policy::profiles::class_of;
use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time between two takings.
const EVERY: Duration = Duration::from_millis(200);

pub(super) fn record(client: &Client, file: &Path, seconds: u64, records: u64, as_json: bool) -> Result<()> {
    let beside = files_beside(file)?;
    let mut out = Writer::create(file)?;
    let _: DoneReply = client.post(protocol::TRACE_START, &TraceRequest { records })?;
    let began = monotonic_now();
    let mut dropped = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(EVERY);
        loop {
            let taken: TakenTrace = client.get(protocol::TRACE)?;
            dropped = taken.dropped;
            out.write(&taken.records)?;
            if !taken.goes_on || taken.records.is_empty() {
                break;
            }
        }
        if out.records >= records {
            break;
        }
    }
    let TracedFiles { rest, paths } = client.post(protocol::TRACE_STOP, &serde_json::json!({}))?;
    out.write(&rest.records)?;
    let (written, numbers) = out.finish()?;
    let mut text = "file,path,class,rel\n".to_owned();
    for (id, number) in &numbers {
        let path = paths.get(id).map_or("(gone)", String::as_str);
        // Commas separate fields here.
        let path = path.replace([',', '\n', '\r'], "_");
        text += &format!("{number},{path},{},\n", class_of(&path).name());
    }
    std::fs::write(&beside, text).with_context(|| format!("writing {}", beside.display()))?;
    let lost = if dropped > 0 { format!(", {dropped} were lost") } else { String::new() };
    let message = format!("{written} records of {} files in {}{lost}", numbers.len(), file.display());
    match as_json {
        true => out::json(&DoneReply { message }),
        false => out::text(&format!("{message}\n")),
    }
}

/// Where the names of the files go.
fn files_beside(file: &Path) -> Result<PathBuf> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.strip_suffix(".csv.gz").or_else(|| name.strip_suffix(".csv")) {
        Some(stem) if !stem.is_empty() => Ok(file.with_file_name(format!("{stem}.files.csv"))),
        _ => Err(Error::Invalid(format!("{}: a name that ends in .csv or .csv.gz is wanted", file.display())).into()),
    }
}

struct Writer {
    out: BufWriter<Box<dyn Finish>>,
    path: PathBuf,
    records: u64,
    /// Small numbers for the files, in the order in which they came.
    numbers: BTreeMap<u64, usize>,
}

/// A sink that may have an end to write.
trait Finish: Write {
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

impl Finish for File {
    fn finish(self: Box<Self>) -> std::io::Result<()> {
        Ok(())
    }
}

impl Finish for GzEncoder<File> {
    fn finish(self: Box<Self>) -> std::io::Result<()> {
        GzEncoder::finish(*self).map(drop)
    }
}

impl Writer {
    fn create(path: &Path) -> Result<Writer> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let is_packed = path.extension().is_some_and(|extension| extension == "gz");
        let sink: Box<dyn Finish> =
            if is_packed { Box::new(GzEncoder::new(file, Compression::default())) } else { Box::new(file) };
        let mut out = BufWriter::new(sink);
        writeln!(out, "{TRACE_HEADER}").with_context(|| format!("writing {}", path.display()))?;
        Ok(Writer { out, path: path.to_owned(), records: 0, numbers: BTreeMap::new() })
    }

    fn write(&mut self, records: &[TraceRecord]) -> Result<()> {
        for one in records {
            let next = self.numbers.len();
            let number = *self.numbers.entry(one.file).or_insert(next);
            let operation = match one.operation {
                TracedOperation::Read => 'R',
                TracedOperation::Write => 'W',
                TracedOperation::Sync => 'S',
                TracedOperation::Truncate => 'T',
            };
            writeln!(self.out, "{},{operation},{number},{},{}", one.at_ms, one.offset, one.len)
                .with_context(|| format!("writing {}", self.path.display()))?;
            self.records += 1;
        }
        Ok(())
    }

    /// Records written, and the files' numbers by id.
    fn finish(self) -> Result<(u64, BTreeMap<u64, usize>)> {
        let sink = self.out.into_inner().map_err(std::io::IntoInnerError::into_error);
        sink.and_then(Finish::finish).with_context(|| format!("writing {}", self.path.display()))?;
        Ok((self.records, self.numbers))
    }
}
