//! What is done around a snapshot for the sake of the database: commands of the operator, and PostgreSQL's backup mode.
//!
//! Order: `before`, PostgreSQL's start, **the moment**, PostgreSQL's stop, `after`; the bytes follow; `done` when the snapshot is in the repository,
//! `failure` when it is not to be. If `before` fails there is no snapshot. What fails after the moment spoils nothing, since the moment is atomic by
//! itself: the snapshot goes on without what it was for, and says so.

mod command;
mod password;
mod place;
mod postgres;

pub use place::place_label;
pub use postgres::{BackupLabel, PostgresSettings};

use super::events::{Events, What};
use crate::error::{Error, Result};
use postgres::Session;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Commands with their arguments; empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookSettings {
    pub before: Vec<String>,
    pub after: Vec<String>,
    pub done: Vec<String>,
    pub failure: Vec<String>,
    /// For each command.
    pub limit: Duration,
    pub postgresql: Option<PostgresSettings>,
}

/// The hooks of one snapshot.
pub struct Hooks {
    settings: HookSettings,
    mount: PathBuf,
    environment: Vec<(&'static str, String)>,
    events: Arc<Events>,
}

/// What the hooks around the moment brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Around {
    pub label: Option<BackupLabel>,
    /// What failed after the moment.
    pub trouble: Option<String>,
}

/// Between `before` and `after`. Dropped without [`Held::let_go`], `after` is run too: what was quiesced must not stay so.
pub struct Held<'h> {
    hooks: &'h Hooks,
    session: Option<Session>,
    held: bool,
}

impl Hooks {
    /// `volume`: its name. `reason`: why the snapshot is taken, for the commands.
    pub fn new(settings: &HookSettings, volume: &str, mount: PathBuf, reason: &str, events: Arc<Events>) -> Hooks {
        let environment = vec![
            ("HEATFS_VOLUME", volume.to_owned()),
            ("HEATFS_MOUNT", mount.display().to_string()),
            ("HEATFS_REASON", reason.to_owned()),
        ];
        Hooks { settings: settings.clone(), mount, environment, events }
    }

    /// Readies the database for the moment. Errors: `SnapshotFailed` when a hook fails; then what was done is undone.
    pub fn hold(&self) -> Result<Held<'_>> {
        self.run("before", &self.settings.before, None).map_err(|error| {
            let why = format!("hook before: {error}");
            Error::SnapshotFailed { why }
        })?;
        let mut held = Held { hooks: self, session: None, held: true };
        if let Some(settings) = &self.settings.postgresql {
            held.session = Some(Session::begin(settings, &self.mount).inspect_err(|error| {
                self.tell("postgresql", &error.to_string());
            })?);
        }
        Ok(held)
    }

    /// The snapshot is in the repository.
    pub fn done(&self, snapshot: &str) {
        // It has been told; the snapshot exists whatever a command says.
        let _ = self.run("done", &self.settings.done, Some(("HEATFS_SNAPSHOT_ID", snapshot.to_owned())));
    }

    /// There will be no snapshot.
    pub fn failure(&self, error: &str) {
        // As above.
        let _ = self.run("failure", &self.settings.failure, Some(("HEATFS_ERROR", error.to_owned())));
    }

    fn run(
        &self,
        name: &'static str,
        argv: &[String],
        further: Option<(&'static str, String)>,
    ) -> std::result::Result<(), String> {
        let mut environment = self.environment.clone();
        environment.push(("HEATFS_HOOK", name.to_owned()));
        environment.extend(further);
        let ran = command::run(name, argv, &environment, self.settings.limit);
        ran.inspect_err(|error| self.tell(name, error))
    }

    fn tell(&self, hook: &str, error: &str) {
        tracing::error!("hook {hook}: {error}");
        self.events.publish(What::HookFailed { hook: hook.to_owned(), error: error.to_owned() });
    }
}

impl Held<'_> {
    /// The moment is over, or will not come.
    pub fn let_go(mut self) -> Around {
        self.release()
    }

    fn release(&mut self) -> Around {
        let mut around = Around::default();
        if !std::mem::replace(&mut self.held, false) {
            return around;
        }
        match self.session.take().map(Session::end) {
            Some(Ok(label)) => around.label = Some(label),
            Some(Err(error)) => {
                self.hooks.tell("postgresql", &error.to_string());
                around.trouble = Some(error.to_string());
            }
            None => {}
        }
        if let Err(error) = self.hooks.run("after", &self.hooks.settings.after, None) {
            around.trouble.get_or_insert(format!("hook after: {error}"));
        }
        around
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::{Around, HookSettings, Hooks, PostgresSettings};
    use crate::jobs::events::{Events, What};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    fn noting(dir: &Path, name: &str, code: u32) -> Vec<String> {
        let script = format!(
            "echo $HEATFS_HOOK $HEATFS_VOLUME $HEATFS_REASON $HEATFS_SNAPSHOT_ID >> {}/notes; exit {code}",
            dir.display()
        );
        ["/bin/sh", "-c", &script, name].map(str::to_owned).to_vec()
    }

    fn lab(codes: [u32; 4]) -> (tempfile::TempDir, Hooks, Arc<Events>) {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = HookSettings {
            before: noting(dir.path(), "before", codes[0]),
            after: noting(dir.path(), "after", codes[1]),
            done: noting(dir.path(), "done", codes[2]),
            failure: noting(dir.path(), "failure", codes[3]),
            limit: Duration::from_secs(60),
            postgresql: None,
        };
        let events = Arc::new(Events::default());
        let hooks = Hooks::new(&settings, "main", PathBuf::from("/m"), "schedule", Arc::clone(&events));
        (dir, hooks, events)
    }

    fn notes(dir: &tempfile::TempDir) -> Vec<String> {
        let notes = std::fs::read_to_string(dir.path().join("notes")).unwrap_or_default();
        notes.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn hooks_run_in_their_order_and_know_what_for() {
        let (dir, hooks, events) = lab([0; 4]);
        let held = hooks.hold().expect("held");
        assert_eq!(notes(&dir), ["before main schedule"]);
        assert_eq!(held.let_go(), Around::default());
        hooks.done("01ABC");
        hooks.failure("why");
        assert_eq!(
            notes(&dir),
            ["before main schedule", "after main schedule", "done main schedule 01ABC", "failure main schedule"]
        );
        assert!(events.latest().is_empty());
    }

    #[test]
    fn before_can_forbid_a_snapshot_and_the_others_cannot() {
        let (dir, hooks, events) = lab([3, 0, 0, 0]);
        let error = hooks.hold().err().expect("forbidden").to_string();
        assert!(error.contains("hook before") && error.contains('3'), "{error}");
        assert_eq!(notes(&dir).len(), 1, "nothing was held, so nothing is let go");
        assert!(matches!(&events.latest()[0].what, What::HookFailed { hook, .. } if hook == "before"));
        let (_dir, hooks, events) = lab([0, 4, 5, 6]);
        let around = hooks.hold().expect("held").let_go();
        assert!(around.trouble.is_some_and(|trouble| trouble.contains("hook after")));
        hooks.done("01ABC");
        hooks.failure("why");
        assert_eq!(events.latest().len(), 3);
    }

    /// A server that cannot be reached fails the snapshot, and what `before` stopped goes on.
    #[test]
    fn what_was_held_is_let_go_whatever_happens() {
        let (dir, hooks, _) = lab([0; 4]);
        drop(hooks.hold().expect("held"));
        assert_eq!(notes(&dir).len(), 2);
        let settings = HookSettings {
            postgresql: Some(PostgresSettings {
                connection: format!("host={} dbname=none", dir.path().display()),
                run_as: None,
                limit: Duration::from_secs(60),
            }),
            ..hooks.settings.clone()
        };
        let hooks = Hooks::new(&settings, "main", PathBuf::from("/m"), "request", Arc::default());
        let error = hooks.hold().err().expect("no server").to_string();
        assert!(error.contains("PostgreSQL: "), "{error}");
        assert_eq!(notes(&dir)[2..], ["before main request", "after main request"]);
    }
}
