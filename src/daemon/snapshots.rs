//! The settings of snapshots: where they go, when, how long they are kept, what is done for the database around them, and how hard the volume works
//! for all that.

use super::reader::Section;
use super::settings::refuse_unknown;
use crate::error::{Error, Result};
use crate::jobs::cadence::{Calendar, SnapshotSettings};
use crate::jobs::hooks::{HookSettings, PostgresSettings};
use crate::repository::Retention;
use config::ValueKind;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// Packs are verified whole.
const VERIFY_BYTES_MIN: u64 = 64 * MIB;

pub(super) fn read(section: &mut Section) -> Result<SnapshotSettings> {
    let settings = SnapshotSettings {
        repository: section.path("repository")?,
        key_file: section.path("key_file")?,
        streams: usize::try_from(section.count("streams", 2, 1..=64)?).unwrap_or(1),
        busy_share: section.number("busy_share", 0.1, 0.01..=1.0)?.into(),
        bytes_per_second: section.bytes("bytes_per_second", 1024 * MIB, MIB..=1024 * 1024 * MIB)?,
        staging_bytes: section.bytes("staging", 1024 * MIB, 16 * MIB..=1024 * 1024 * MIB)?,
        calendar: read_calendar(section)?,
        keep: read_keep(section)?,
        prune_every: section.span("prune_every", hours(24), Duration::from_secs(60)..=hours(24 * 366))?,
        verify_bytes_per_day: read_verify(section)?,
        hooks: read_hooks(section)?,
    };
    if settings.repository.is_none() && !settings.calendar.is_empty() {
        return Err(Error::Invalid(
            "snapshot.schedule is set, but snapshot.repository is not: the snapshots need a place".to_owned(),
        ));
    }
    Ok(settings)
}

fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}

/// One expression or a list. One text is one expression, although cron's may have commas.
fn read_calendar(section: &mut Section) -> Result<Calendar> {
    let Some(value) = section.raw("schedule") else { return Calendar::parse(&[]) };
    let wrong = |why: String| section.wrong("schedule", &value, why);
    let text = |value: &config::Value| match &value.kind {
        ValueKind::String(text) => Ok(text.clone()),
        _ => Err(wrong("an expression in quotes, or a list of them, is wanted, such as \"hourly\"".to_owned())),
    };
    let texts = match &value.kind {
        ValueKind::Array(values) => values.iter().map(text).collect::<Result<Vec<_>>>()?,
        _ => vec![text(&value)?],
    };
    Calendar::parse(&texts).map_err(|error| wrong(error.to_string()))
}

fn read_keep(section: &mut Section) -> Result<Retention> {
    let mut keep = section.section("keep")?;
    refuse_unknown(&keep, "snapshot.keep.")?;
    let mut count = |key| keep.count(key, 0, 0..=100_000).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Ok(Retention {
        last: count("last")?,
        hourly: count("hourly")?,
        daily: count("daily")?,
        weekly: count("weekly")?,
        monthly: count("monthly")?,
        yearly: count("yearly")?,
    })
}

fn read_verify(section: &mut Section) -> Result<u64> {
    let mut verify = section.section("verify")?;
    refuse_unknown(&verify, "snapshot.verify.")?;
    match verify.bytes("bytes_per_day", 0, 0..=1024 * TIB)? {
        bytes @ 1..VERIFY_BYTES_MIN => Err(Error::Invalid(format!(
            "snapshot.verify.bytes_per_day = {bytes}: 0, or at least 64MiB, is allowed, since packs are verified whole"
        ))),
        bytes => Ok(bytes),
    }
}

fn read_hooks(section: &mut Section) -> Result<HookSettings> {
    let mut hooks = section.section("hooks")?;
    refuse_unknown(&hooks, "snapshot.hooks.")?;
    let mut command = |key: &str| {
        let argv = hooks.texts(key)?;
        match argv.first() {
            Some(program) if !Path::new(program).is_absolute() => Err(Error::Invalid(format!(
                "snapshot.hooks.{key} = [\"{program}\", ...]: the program's absolute path is wanted; no shell runs it"
            ))),
            _ => Ok(argv),
        }
    };
    let (before, after, done, failure) = (command("before")?, command("after")?, command("done")?, command("failure")?);
    let limit = hooks.span("limit", Duration::from_secs(60), Duration::from_secs(1)..=hours(24))?;
    Ok(HookSettings { before, after, done, failure, limit, postgresql: read_postgresql(section)? })
}

fn read_postgresql(section: &mut Section) -> Result<Option<PostgresSettings>> {
    let mut postgresql = section.section("postgresql")?;
    refuse_unknown(&postgresql, "snapshot.postgresql.")?;
    let (connection, run_as) = (postgresql.secret("connection")?, postgresql.text("run_as")?);
    if let Some(why) = connection.as_deref().and_then(PostgresSettings::exposed) {
        return Err(Error::Invalid(format!("snapshot.postgresql.connection: {why}")));
    }
    let limit = postgresql.span("limit", Duration::from_secs(600), Duration::from_secs(1)..=hours(24))?;
    match connection {
        Some(connection) => Ok(Some(PostgresSettings { connection, run_as, limit })),
        None if run_as.is_some() => Err(Error::Invalid(
            "snapshot.postgresql.run_as is set, but snapshot.postgresql.connection is not".to_owned(),
        )),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::daemon::settings::Settings;
    use std::time::Duration;

    const LEAST: &str =
        "name = \"pg\"\nmount = \"/nowhere/data\"\n[[tier]]\nname = \"nvme\"\npath = \"/nowhere/nvme\"\n[snapshot]\n";

    #[test]
    fn what_is_said_of_snapshots_is_read() {
        let text = format!(
            "{LEAST}repository = \"/backup\"\nschedule = [\"hourly\", \"15,45 * * * *\"]\nprune_every = \"2h\"\n\
             [snapshot.keep]\nlast = 3\nyearly = 9\n[snapshot.verify]\nbytes_per_day = \"10GiB\"\n\
             [snapshot.hooks]\nbefore = [\"/bin/true\", \"a, b\"]\nlimit = \"5s\"\n\
             [snapshot.postgresql]\nconnection = \"host=/run/pg\"\nrun_as = \"postgres\"\n"
        );
        let read = Settings::parse(&text, &[("HEATFS__SNAPSHOT__KEEP__DAILY", "7")]).expect("accepted").snapshot;
        assert_eq!(read.calendar.texts(), ["hourly", "15,45 * * * *"]);
        assert_eq!((read.keep.last, read.keep.daily, read.keep.yearly, read.keep.hourly), (3, 7, 9, 0));
        assert_eq!((read.prune_every, read.verify_bytes_per_day), (Duration::from_secs(7200), 10 << 30));
        assert_eq!(read.hooks.before, ["/bin/true", "a, b"]);
        assert_eq!(read.hooks.limit, Duration::from_secs(5));
        let postgresql = read.hooks.postgresql.expect("set");
        assert_eq!((postgresql.connection.as_str(), postgresql.run_as.as_deref()), ("host=/run/pg", Some("postgres")));
        let one = format!("{LEAST}repository = \"/backup\"\nschedule = \"15,45 * * * *\"\n");
        let one = Settings::parse(&one, &[]).expect("accepted").snapshot;
        assert_eq!(one.calendar.texts(), ["15,45 * * * *"], "one text is one expression");
    }

    #[test]
    fn what_cannot_be_is_named_in_one_line() {
        for (text, wanted) in [
            ("repository = \"/backup\"\nschedule = \"often\"", &["snapshot.schedule", "\"often\"", "hourly"][..]),
            ("repository = \"/backup\"\nschedule = 5", &["snapshot.schedule = 5", "in quotes"]),
            ("repository = \"/backup\"\nschedule = [\"hourly\", 5]", &["snapshot.schedule", "in quotes"]),
            ("schedule = \"hourly\"", &["snapshot.schedule", "snapshot.repository"]),
            ("keep = 5", &["snapshot.keep = 5", "[snapshot.keep]"]),
            ("[snapshot.keep]\ndayly = 5", &["`snapshot.keep.dayly`", "`snapshot.keep.daily`"]),
            ("[snapshot.keep]\ndaily = -5", &["snapshot.keep.daily = -5", "from 0"]),
            ("[snapshot.kept]\ndaily = 5", &["`snapshot.kept`"]),
            ("prune_every = \"1s\"", &["snapshot.prune_every", "\"1s\"", "from 60s"]),
            ("[snapshot.verify]\nbytes_per_day = \"1MiB\"", &["snapshot.verify.bytes_per_day", "64MiB"]),
            ("[snapshot.hooks]\nbefore = [\"quiesce\"]", &["snapshot.hooks.before", "\"quiesce\"", "absolute"]),
            ("[snapshot.hooks]\nlimit = \"0s\"", &["snapshot.hooks.limit", "from 1s"]),
            (
                "[snapshot.postgresql]\nrun_as = \"x\"",
                &["snapshot.postgresql.run_as", "snapshot.postgresql.connection"],
            ),
            ("[snapshot.postgresql]\nuser = \"x\"", &["`snapshot.postgresql.user`"]),
        ] {
            let line = Settings::parse(&format!("{LEAST}{text}"), &[]).expect_err(text).to_string();
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(wanted.iter().all(|part| line.contains(part)), "{line} lacks one of {wanted:?}");
        }
    }

    #[test]
    fn a_password_is_in_no_message_about_the_settings() {
        let with = |line: &str| {
            Settings::parse(&format!("{LEAST}repository = \"/backup\"\n[snapshot.postgresql]\n{line}\n"), &[])
        };
        let taken = with("connection = \"host=a password=s3cret\"").expect("accepted");
        assert!(!format!("{taken:?}").contains("s3cret"), "{taken:?}");
        for line in [
            "connection = [\"host=a password=s3cret\"]",
            "connection = { password = \"s3cret\" }",
            "connection = \"host=a password=s3cret",
            "connection = host=a password=s3cret",
            "connection = \"host=a password=my s3cret\"",
            "connection = \"host=a sslpassword=s3cret\"",
        ] {
            let told = with(line).expect_err(line).to_string();
            assert!(!told.contains("s3cret") && told.lines().count() == 1, "{line}: {told}");
        }
    }
}
