//! Drawings of a history, as SVG within the page. Time runs to the right, one step per moment: moments are evenly spaced but for the last.

use super::escaped;
use crate::control::protocol::HistoryReply;
use crate::jobs::migrate::Moment;
use crate::units::{FileId, WallNs};
use std::collections::HashMap;
use std::fmt::Write;

const WIDTH: usize = 1000;
const HEIGHT: usize = 160;
/// Room below for the times.
const FOOT: usize = 18;
/// Height of one stretch of a file.
const CELL: usize = 7;
/// Files drawn.
const FILES: usize = 24;
/// Fastest first; tiers beyond these share the last.
const COLOURS: [&str; 5] = ["#1b7f5c", "#4c9be8", "#b7791f", "#8a5fbf", "#777777"];
/// From lukewarm to hot; what is colder stays white.
const SHADES: [&str; 5] = ["#fee8c8", "#fdbb84", "#fc8d59", "#e34a33", "#b30000"];

fn colour(tier: usize) -> &'static str {
    COLOURS.get(tier).copied().unwrap_or(COLOURS[COLOURS.len() - 1])
}

pub(super) fn legend(tiers: &[String]) -> String {
    let keys = tiers
        .iter()
        .enumerate()
        .map(|(at, name)| format!("<span class=\"key\" style=\"background:{}\"></span>{}", colour(at), escaped(name)));
    format!("<p>{}</p>\n", keys.collect::<String>())
}

/// Where the moment `at` of `count` lies.
fn x(at: usize, count: usize) -> usize {
    at * WIDTH / count.saturating_sub(1).max(1)
}

/// Thousandths of `whole`.
fn thousandths(part: u64, whole: u64) -> usize {
    let found = u128::from(part) * 1000 / u128::from(whole.max(1));
    usize::try_from(found.min(1000)).unwrap_or(1000)
}

fn y(thousandths: usize) -> usize {
    HEIGHT - thousandths * HEIGHT / 1000
}

/// A drawing with its frame, and the times of its first and last moment.
fn framed(moments: &[Moment], height: usize, what: &str, body: &str) -> String {
    let [first, .., last] = moments else { return "<p>There is too little to draw yet.</p>\n".to_owned() };
    let minutes = |at: WallNs| last.at.0.saturating_sub(at.0).max(0) / 60_000_000_000;
    let (bottom, middle) = (height + 13, moments.get(moments.len() / 2).map_or(0, |moment| minutes(moment.at)));
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{what}\">{body}\
         <rect x=\"0\" y=\"0\" width=\"{WIDTH}\" height=\"{height}\" fill=\"none\" stroke=\"#bbb\"/>\
         <text x=\"0\" y=\"{bottom}\">{} min ago</text><text x=\"{}\" y=\"{bottom}\">{middle} min ago</text>\
         <text x=\"{WIDTH}\" y=\"{bottom}\" text-anchor=\"end\">now</text></svg>\n",
        height + FOOT,
        minutes(first.at),
        WIDTH / 2
    )
}

/// Used share of each tier's budget.
pub(super) fn occupancy(history: &HistoryReply) -> String {
    let moments = &history.moments;
    let mut body = String::new();
    for tier in 0..history.tiers.len() {
        let points: String = moments
            .iter()
            .enumerate()
            .filter_map(|(at, moment)| {
                let full = thousandths(*moment.used_bytes.get(tier)?, *moment.budget_bytes.get(tier)?);
                Some(format!("{},{} ", x(at, moments.len()), y(full)))
            })
            .collect();
        let _ = write!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            points.trim_end(),
            colour(tier)
        );
    }
    framed(moments, HEIGHT, "used share of each tier", &body)
}

/// Share of the reads of each interval, one tier upon the other.
pub(super) fn served(history: &HistoryReply) -> String {
    let moments = &history.moments;
    let mut body = String::new();
    for (at, pair) in moments.windows(2).enumerate() {
        let [before, after] = pair else { continue };
        let reads: Vec<u64> =
            after.reads.iter().zip(&before.reads).map(|(after, before)| after.saturating_sub(*before)).collect();
        let all = reads.iter().sum::<u64>();
        let (left, right) = (x(at, moments.len()), x(at + 1, moments.len()));
        let mut below = 0u64;
        for (tier, count) in reads.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (bottom, top) = (y(thousandths(below, all)), y(thousandths(below + count, all)));
            let _ = write!(
                body,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>",
                right - left,
                bottom - top,
                colour(tier)
            );
            below += count;
        }
    }
    framed(moments, HEIGHT, "share of reads served by each tier", &body)
}

/// The files that were hottest over all moments, hottest first.
pub(super) fn hottest(history: &HistoryReply) -> Vec<FileId> {
    let mut sums: HashMap<FileId, f32> = HashMap::new();
    for file in history.moments.iter().flat_map(|moment| &moment.files) {
        *sums.entry(file.file).or_default() += file.heat;
    }
    let mut files: Vec<(FileId, f32)> = sums.into_iter().collect();
    files.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    files.into_iter().take(FILES).map(|(file, _)| file).collect()
}

/// One file's heat: a path for each shade, since thousands of rectangles would make a large page.
pub(super) fn heat(history: &HistoryReply, file: FileId) -> String {
    let moments = &history.moments;
    let mut paths = vec![String::new(); SHADES.len()];
    let mut rows = 1;
    for (at, moment) in moments.iter().enumerate().take(moments.len().saturating_sub(1)) {
        let (left, right) = (x(at, moments.len()), x(at + 1, moments.len()));
        let Some(found) = moment.files.iter().find(|known| known.file == file) else { continue };
        rows = rows.max(found.cells.len());
        for (row, cell) in found.cells.iter().enumerate() {
            // Of all blocks, the lower third is not worth ink.
            let shade = usize::from(cell.saturating_sub(85)) * SHADES.len() / 171;
            if *cell > 85
                && let Some(path) = paths.get_mut(shade)
            {
                let _ = write!(path, "M{left} {}h{}v{CELL}H{left}z", row * CELL, right - left);
            }
        }
    }
    let shaded = paths.iter().zip(SHADES).filter(|(path, _)| !path.is_empty());
    let body: String = shaded.map(|(path, shade)| format!("<path d=\"{path}\" fill=\"{shade}\"/>")).collect();
    framed(moments, rows * CELL, "heat of the file's stretches", &body)
}
