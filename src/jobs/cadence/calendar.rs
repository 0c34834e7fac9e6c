//! Calendar expressions: `hourly`, `daily`, ... or the five fields of cron, in the local time of the machine.

use crate::error::{Error, Result};
use crate::units::WallNs;
use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use std::str::FromStr;

/// Words for the commonest patterns. Weeks begin on Monday, as retention has them.
const WORDS: &[(&str, &str)] = &[
    ("hourly", "0 * * * *"),
    ("daily", "0 0 * * *"),
    ("weekly", "0 0 * * MON"),
    ("monthly", "0 0 1 * *"),
    ("yearly", "0 0 1 1 *"),
];

/// One or more expressions: a moment belongs to the calendar if it does to any of them.
#[derive(Clone, Debug)]
pub struct Calendar {
    texts: Vec<String>,
    patterns: Vec<Cron>,
    zone: TimeZone,
}

impl PartialEq for Calendar {
    fn eq(&self, other: &Calendar) -> bool {
        self.texts == other.texts
    }
}

impl Calendar {
    /// Errors: `Invalid` with the expression that is none.
    pub fn parse(texts: &[String]) -> Result<Calendar> {
        Calendar::in_zone(texts, TimeZone::system())
    }

    fn in_zone(texts: &[String], zone: TimeZone) -> Result<Calendar> {
        let pattern = |text: &String| {
            let word = WORDS.iter().find(|(word, _)| word == text);
            Cron::from_str(word.map_or(text.as_str(), |(_, pattern)| pattern)).map_err(|error| {
                Error::Invalid(format!(
                    "\"{text}\": hourly, daily, weekly, monthly, yearly or cron's \"minute hour day month weekday\" is wanted: {error}"
                ))
            })
        };
        Ok(Calendar { patterns: texts.iter().map(pattern).collect::<Result<_>>()?, texts: texts.to_vec(), zone })
    }

    /// Nothing is ever due.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The expressions as they were given.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The first moment after this one; None: there is none for years to come.
    pub fn after(&self, moment: WallNs) -> Option<WallNs> {
        let start = Timestamp::from_nanosecond(moment.0.into()).ok()?.to_zoned(self.zone.clone());
        let next = |pattern: &Cron| -> Option<Zoned> { pattern.find_next_occurrence(&start, false).ok() };
        let first = self.patterns.iter().filter_map(next).map(|next| next.timestamp().as_nanosecond()).min()?;
        i64::try_from(first).ok().map(WallNs)
    }

    /// The first moments after this one.
    pub fn upcoming(&self, moment: WallNs, count: usize) -> Vec<WallNs> {
        std::iter::successors(self.after(moment), |last| self.after(*last)).take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Calendar;
    use crate::units::WallNs;
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    fn at(text: &str) -> WallNs {
        let at: Timestamp = text.parse().expect("a moment");
        WallNs(i64::try_from(at.as_nanosecond()).expect("near"))
    }

    fn calendar(texts: &[&str], zone: &str) -> Calendar {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Calendar::in_zone(&texts, TimeZone::posix(zone).expect("a zone")).expect("a calendar")
    }

    #[test]
    fn moments_of_the_words_and_of_cron() {
        let cases = [
            ("hourly", "2026-03-05T10:00:00Z", "2026-03-05T11:00:00Z"),
            ("daily", "2026-03-05T10:00:01Z", "2026-03-06T00:00:00Z"),
            ("weekly", "2026-03-05T10:00:01Z", "2026-03-09T00:00:00Z"),
            ("monthly", "2026-03-05T10:00:01Z", "2026-04-01T00:00:00Z"),
            ("yearly", "2026-03-05T10:00:01Z", "2027-01-01T00:00:00Z"),
            ("*/15 * * * *", "2026-03-05T10:14:59.5Z", "2026-03-05T10:15:00Z"),
            ("30 2 * * SUN", "2026-03-05T10:00:00Z", "2026-03-08T02:30:00Z"),
        ];
        for (text, from, next) in cases {
            assert_eq!(calendar(&[text], "UTC0").after(at(from)), Some(at(next)), "{text}");
        }
        let both = calendar(&["daily", "0 */6 * * *"], "UTC0");
        assert_eq!(
            both.upcoming(at("2026-03-05T17:00:00Z"), 3),
            [at("2026-03-05T18:00:00Z"), at("2026-03-06T00:00:00Z"), at("2026-03-06T06:00:00Z")]
        );
        assert_eq!(calendar(&["0 0 30 2 *"], "UTC0").after(at("2026-03-05T17:00:00Z")), None);
        assert!(calendar(&[], "UTC0").is_empty());
    }

    /// Central European time: on 29 March 2026 the clocks go from 2 to 3, on 25 October from 3 to 2.
    #[test]
    fn local_time_with_its_jumps() {
        let zone = "CET-1CEST,M3.5.0,M10.5.0/3";
        assert_eq!(calendar(&["daily"], zone).after(at("2026-07-01T12:00:00Z")), Some(at("2026-07-01T22:00:00Z")));
        let nightly = calendar(&["30 2 * * *"], zone);
        let nights = nightly.upcoming(at("2026-03-27T12:00:00Z"), 3);
        assert_eq!(nights.len(), 3);
        assert!(nights[1] <= at("2026-03-29T01:30:00Z"), "the hour that is left out is not a day left out: {nights:?}");
        assert_eq!(nights[2], at("2026-03-30T00:30:00Z"));
        let nights = nightly.upcoming(at("2026-10-24T12:00:00Z"), 2);
        assert_eq!(nights[1], at("2026-10-26T01:30:00Z"), "once in the night that has the hour twice: {nights:?}");
        let hourly = calendar(&["hourly"], zone).upcoming(at("2026-10-24T23:30:00Z"), 3);
        assert_eq!(hourly, [at("2026-10-25T00:00:00Z"), at("2026-10-25T01:00:00Z"), at("2026-10-25T02:00:00Z")]);
    }

    #[test]
    fn what_is_no_calendar_is_named() {
        for text in ["often", "", "61 * * * *", "* * *"] {
            let error = Calendar::parse(&[text.to_owned()]).expect_err(text).to_string();
            assert!(error.contains(&format!("\"{text}\"")) && error.contains("hourly") && error.lines().count() == 1);
        }
    }
}
