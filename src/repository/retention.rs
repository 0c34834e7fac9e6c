//! Which snapshots to keep. Pure: what there is and the wishes in, verdicts with their reasons out; no clock, no I/O.

use super::ids::SnapshotId;
use crate::units::WallNs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many to keep of each kind: the newest snapshot of each of the last n hours (days, ...) that have one. Time is UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Retention {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    /// Weeks begin on Monday.
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

/// Why a snapshot is kept.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    /// By the ref of this name.
    Pinned(String),
    /// No rule says how many to keep, so all are kept.
    NoRule,
}

/// One snapshot's fate: kept for these reasons, or deleted when there is none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    pub id: SnapshotId,
    pub taken: WallNs,
    pub keep: Vec<Keep>,
}

/// Judges all snapshots of one volume; the answer is newest first. `pins`: refs by the snapshot that they hold.
pub fn judge(
    snapshots: &[(SnapshotId, WallNs)],
    pins: &BTreeMap<SnapshotId, Vec<String>>,
    retention: &Retention,
) -> Vec<Verdict> {
    let mut sorted = snapshots.to_vec();
    sorted.sort_by_key(|(id, taken)| std::cmp::Reverse((*taken, *id)));
    let reasons = |(id, taken): &(SnapshotId, WallNs)| {
        let pinned = pins.get(id).into_iter().flatten().map(|name| Keep::Pinned(name.clone())).collect();
        Verdict { id: *id, taken: *taken, keep: pinned }
    };
    let mut verdicts: Vec<Verdict> = sorted.iter().map(reasons).collect();
    if *retention == Retention::default() {
        verdicts.iter_mut().for_each(|verdict| verdict.keep.push(Keep::NoRule));
        return verdicts;
    }
    let last = usize::try_from(retention.last).unwrap_or(usize::MAX);
    verdicts.iter_mut().take(last).for_each(|verdict| verdict.keep.push(Keep::Last));
    keep_per(&mut verdicts, retention.hourly, &Keep::Hourly, |taken| seconds(taken).div_euclid(3600));
    keep_per(&mut verdicts, retention.daily, &Keep::Daily, day);
    // 1970-01-01 was a Thursday.
    keep_per(&mut verdicts, retention.weekly, &Keep::Weekly, |taken| (day(taken) + 3).div_euclid(7));
    keep_per(&mut verdicts, retention.monthly, &Keep::Monthly, |taken| month(day(taken)));
    keep_per(&mut verdicts, retention.yearly, &Keep::Yearly, |taken| month(day(taken)).div_euclid(12));
    verdicts
}

/// Keeps the newest of each of the newest `count` periods. `verdicts` are newest first.
fn keep_per(verdicts: &mut [Verdict], count: u32, why: &Keep, period: impl Fn(WallNs) -> i64) {
    let mut left = count;
    let mut current = None;
    for verdict in verdicts {
        let this = period(verdict.taken);
        if left > 0 && current != Some(this) {
            current = Some(this);
            left -= 1;
            verdict.keep.push(why.clone());
        }
    }
}

fn seconds(taken: WallNs) -> i64 {
    taken.0.div_euclid(1_000_000_000)
}

fn day(taken: WallNs) -> i64 {
    seconds(taken).div_euclid(86_400)
}

/// Months since the year 0 of a day since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms": civil_from_days).
fn month(day: i64) -> i64 {
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (month, next_year) = if mp < 10 { (mp + 3, 0) } else { (mp - 9, 1) };
    (yoe + era * 400 + next_year) * 12 + month - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn at(seconds: i64) -> (SnapshotId, WallNs) {
        (SnapshotId(u128::try_from(seconds).expect("after 1970")), WallNs(seconds * 1_000_000_000))
    }

    fn kept(snapshots: &[(SnapshotId, WallNs)], retention: Retention) -> Vec<i64> {
        let verdicts = judge(snapshots, &BTreeMap::new(), &retention);
        let kept = verdicts.iter().filter(|verdict| !verdict.keep.is_empty());
        kept.map(|verdict| verdict.taken.0 / 1_000_000_000).collect()
    }

    #[test]
    fn the_newest_of_each_period_is_kept() {
        let every_ten_minutes: Vec<_> = (0..6 * 24 * 3).map(|n| at(n * 600)).collect();
        let last = (6 * 24 * 3 - 1) * 600;
        let hours = kept(&every_ten_minutes, Retention { hourly: 3, ..Retention::default() });
        assert_eq!(hours, [last, last - HOUR, last - 2 * HOUR]);
        let days = kept(&every_ten_minutes, Retention { daily: 10, ..Retention::default() });
        assert_eq!(days, [last, last - DAY, last - 2 * DAY]);
        let newest = kept(&every_ten_minutes, Retention { last: 2, ..Retention::default() });
        assert_eq!(newest, [last, last - 600]);
    }

    #[test]
    fn periods_without_snapshots_do_not_count() {
        let sparse = [at(0), at(100 * DAY), at(400 * DAY)];
        assert_eq!(kept(&sparse, Retention { daily: 2, ..Retention::default() }), [400 * DAY, 100 * DAY]);
    }

    #[test]
    fn months_and_years_begin_where_the_calendar_says() {
        // 2024-02-29, 2024-03-01, 2024-12-31, 2025-01-01, each at noon.
        let days = [19_782, 19_783, 20_088, 20_089].map(|day| at(day * DAY + 12 * HOUR));
        let months = kept(&days, Retention { monthly: 9, ..Retention::default() });
        assert_eq!(months, [20_089, 20_088, 19_783, 19_782].map(|day| day * DAY + 12 * HOUR));
        let years = kept(&days, Retention { yearly: 9, ..Retention::default() });
        assert_eq!(years, [20_089, 20_088].map(|day| day * DAY + 12 * HOUR));
        // 2025-01-05 was a Sunday.
        let week = [at(20_093 * DAY), at(20_094 * DAY)];
        assert_eq!(kept(&week, Retention { weekly: 9, ..Retention::default() }).len(), 2);
        assert_eq!(
            kept(&[at(20_094 * DAY), at(20_100 * DAY)], Retention { weekly: 9, ..Retention::default() }).len(),
            1
        );
    }

    #[test]
    fn pins_hold_and_no_rule_keeps_all() {
        let snapshots: Vec<_> = (0..10).map(|n| at(n * DAY)).collect();
        assert_eq!(kept(&snapshots, Retention::default()).len(), 10);
        let pins = BTreeMap::from([(snapshots[2].0, vec!["law".to_owned()])]);
        let verdicts = judge(&snapshots, &pins, &Retention { last: 1, ..Retention::default() });
        assert_eq!(verdicts[7].keep, [Keep::Pinned("law".to_owned())]);
        assert_eq!(verdicts.iter().filter(|verdict| !verdict.keep.is_empty()).count(), 2);
    }
}
