//! The prediction as a line protocol, for simulators: it sees an epoch's accesses, answers what it expects of the next, and never sees the future.
//!
//! ```text
//! F id path class                     before a file's first use
//! A ts_ms op file offset len seq      an access: op R or W, seq 1 when it is sequential
//! END e epoch_ms period_ms            an epoch ends; period 0: no known cycle
//! ```
//!
//! The answer to `END` is lines `file block score`, of 64 KiB blocks, with the expected non-sequential accesses in epoch e+1 relative to the mean block, and then
//! `END`. What is not named scores 0. The gate says whose scores these are, judged by a fast tier of a tenth of the blocks seen so far.

use crate::error::{Error, Result};
use crate::heat::forecast::{Access, EpochClock, FileClass, Forecast, ForecastSettings, Predictor};
use crate::jobs::replay::refuse_endless;
use crate::policy::gate::{Contender, Gate};
use crate::units::FileId;
use std::io::{BufRead, BufWriter, Write};

/// The fast tier that predictors are judged by: one in so many of the blocks with a score.
const FAST_ONE_IN: usize = 10;

type LineResult<T> = std::result::Result<T, String>;

/// One line understood.
enum Line {
    File(FileId, FileClass),
    Access(Access),
    End(EpochClock),
}

/// Serves until the input ends. A bad line is `Invalid`, with its number.
pub fn serve(input: impl BufRead, output: impl Write) -> Result<()> {
    let mut output = BufWriter::new(output);
    let settings = ForecastSettings::default();
    let mut forecast = Forecast::new(settings);
    let mut gate = Gate::new(Contender::of(Predictor::all(), 0));
    for (number, line) in (1u64..).zip(input.split(b'\n')) {
        let line = line.map_err(|source| Error::io("read", "standard input", source))?;
        let text = std::str::from_utf8(&line).map_err(|_| "it is no text".to_owned());
        let bad = |why: String| Error::Invalid(format!("standard input, line {number}: {why}"));
        match text.and_then(|text| understand(text.trim_end())).map_err(bad)? {
            None => {}
            Some(Line::File(file, class)) => forecast.note_class(file, class),
            Some(Line::Access(access)) => {
                forecast.observe(&access);
                if !access.is_sequential {
                    access.blocks(settings.block_bytes).for_each(|block| gate.observe(access.file, block));
                }
            }
            Some(Line::End(clock)) => {
                answer(&mut forecast, &mut gate, clock, &mut output)
                    .map_err(|source| Error::io("write", "standard output", source))?;
            }
        }
    }
    Ok(())
}

fn answer(forecast: &mut Forecast, gate: &mut Gate, clock: EpochClock, output: &mut impl Write) -> std::io::Result<()> {
    let scores = forecast.end_epoch(clock);
    gate.end_epoch(&scores, scores.blocks.len().div_ceil(FAST_ONE_IN));
    let by = gate.choice().predictor.index();
    for scored in &scores.blocks {
        let score = scored.scores.get(by).copied().unwrap_or_default();
        if score > 0.0 {
            writeln!(output, "{} {} {score}", scored.file.0, scored.block.0)?;
        }
    }
    writeln!(output, "END")?;
    output.flush()
}

/// None for an empty line.
fn understand(text: &str) -> LineResult<Option<Line>> {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    match kind {
        "" if rest.trim().is_empty() => Ok(None),
        "F" => file(rest).map(Some),
        "A" => access(rest).map(Some),
        "END" => {
            let [number, epoch_ms, period_ms] = fields(rest, "END e epoch_ms period_ms")?;
            let clock = EpochClock {
                number: whole("e", number)?,
                epoch_ms: whole("epoch_ms", epoch_ms)?,
                period_ms: whole("period_ms", period_ms)?,
            };
            Ok(Some(Line::End(clock)))
        }
        other => Err(format!("`{other:.40}`: F, A or END is wanted")),
    }
}

/// A path may have spaces, and a class may be missing.
fn file(rest: &str) -> LineResult<Line> {
    let (id, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let class = rest.rsplit(' ').next().unwrap_or_default();
    Ok(Line::File(FileId(whole("id", id)?), FileClass::named(class)))
}

fn access(rest: &str) -> LineResult<Line> {
    let [ts_ms, op, file, offset, len, sequential] = fields(rest, "A ts_ms op file offset len seq")?;
    whole("ts_ms", ts_ms)?;
    let is_write = match op {
        "R" => false,
        "W" => true,
        other => return Err(format!("op = `{other:.40}`: R or W is wanted")),
    };
    let is_sequential = match sequential {
        "0" => false,
        "1" => true,
        other => return Err(format!("seq = `{other:.40}`: 0 or 1 is wanted")),
    };
    let (file, offset, len) = (FileId(whole("file", file)?), whole("offset", offset)?, whole("len", len)?);
    refuse_endless(offset, len)?;
    Ok(Line::Access(Access { file, offset, len, is_write, is_sequential }))
}

fn fields<'a, const N: usize>(text: &'a str, wanted: &str) -> LineResult<[&'a str; N]> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    fields.try_into().map_err(|found: Vec<&str>| format!("{} fields follow; wanted is `{wanted}`", found.len()))
}

fn whole(name: &str, text: &str) -> LineResult<u64> {
    text.parse().map_err(|_| format!("{name} = `{text:.40}`: a whole number is wanted, from 0 to {}", u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(input: &str) -> Result<String> {
        let mut output = Vec::new();
        serve(input.as_bytes(), &mut output)?;
        Ok(String::from_utf8(output).unwrap())
    }

    #[test]
    fn each_end_is_answered_and_the_hotter_block_scores_more() {
        let mut input = "F 3 base/5/a b heap\nF 4 vdisk0\n".to_owned();
        for epoch in 0..20 {
            for read in 0..4 {
                input += &format!("A {read} R 3 {} 8192 0\n", 65_536 * (read % 2 * 10) + 8192 * read);
                input += "A 5 W 3 0 10 0\r\n\nA 5 R 4 4096 8192 1\n";
            }
            input += &format!("END {epoch} 1000 0\n");
        }
        let output = said(&input).unwrap();
        let epochs: Vec<&str> = output.split("END\n").collect();
        assert_eq!((epochs.len(), epochs[20]), (21, ""));
        let score = |block: &str| {
            let line = epochs[19].lines().find(|line| line.starts_with(&format!("3 {block} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f32>().unwrap()
        };
        assert!(score("0") > 2.0 * score("10"), "{}", epochs[19]);
        assert!(!output.contains("4 0 "), "a sequential access is no heat");
    }

    #[test]
    fn odd_but_legal_input_is_served() {
        let odd = "END 0 0 0\nA 18446744073709551615 W 18446744073709551615 18446744073709551615 18446744073709551615 0\n\
                   A 0 R 9 0 0 0\nEND 18446744073709551615 18446744073709551615 18446744073709551615\nF 9  \nEND 3 5 2\nEND 3 5 0\n";
        assert_eq!(said(odd).unwrap().matches("END\n").count(), 4);
        assert_eq!(said("").unwrap(), "");
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        for bad in [
            "B",
            "END",
            "END 1 2",
            "A 1 R 0 0 1",
            "A 1 S 0 0 1 0",
            "A 1 R 0 0 1 2",
            "A 1 R 0 -1 1 0",
            "A 1 R 0 0 18446744073709551615 0",
            "F x y heap",
            "END 1 NaN 0",
        ] {
            let error = said(&format!("F 1 a heap\n{bad}\n")).unwrap_err();
            assert!(
                matches!(&error, Error::Invalid(why) if why.starts_with("standard input, line 2: ")),
                "{bad}: {error}"
            );
        }
    }
}
