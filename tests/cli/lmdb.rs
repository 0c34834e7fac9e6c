//! LMDB, a database that lives by its mapping: with stores through it and msync (`WRITE_MAP`), and with pwrite beneath a mapping that reads. Killed, and the daemon beneath
//! it killed, in the middle of transactions: what it was told is committed is there, and the whole is what some number of commits makes.

use super::bench::{Bench, wait_until};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Set for the processes that have the environment open, which are not this one: its directory, its flags, and whether the process writes or looks.
const DIRECTORY: &str = "HEATFS_TEST_LMDB";
const FLAGS: &str = "HEATFS_TEST_LMDB_FLAGS";
const WRITES: &str = "HEATFS_TEST_LMDB_WRITES";
const MAP_BYTES: usize = 256 << 20;
const KEYS: u64 = 2000;
/// Of each value that the first commit puts: more in all than the two faster tiers may hold.
const FILLING_BYTES: u64 = 20_000;
const BUDGET: &str = "16MiB";
/// Which commit was the last one is in every commit.
const LAST: &[u8] = b"last commit";

type Store = Database<'static, Bytes, Bytes>;
type Content = BTreeMap<Vec<u8>, Vec<u8>>;

#[test]
fn lmdb_with_a_writable_map_keeps_what_it_committed() {
    keeps_what_it_committed(EnvFlags::WRITE_MAP);
}

#[test]
fn lmdb_keeps_what_it_committed() {
    keeps_what_it_committed(EnvFlags::empty());
}

fn keeps_what_it_committed(flags: EnvFlags) {
    let Some(mut bench) = Bench::new() else { return };
    let directory = bench.data().join("lmdb");
    fs::create_dir_all(&directory).unwrap();
    let budgets = ["nvme", "sata"].map(|tier| format!("{tier}={BUDGET}"));
    let adopted = bench.adopt_command().args(["--budget", &budgets[0], "--budget", &budgets[1]]).output().unwrap();
    assert!(adopted.status.success(), "{}", String::from_utf8_lossy(&adopted.stderr));
    bench.start();
    let mut writer = Writer::start(&directory, flags);
    writer.until(20);
    writer.kill();
    let mut last = verify(&directory, flags, writer.acknowledged, "the writer killed");
    bench.ok(&["settle"]);
    for round in 0..3_u64 {
        let mut writer = Writer::start(&directory, flags);
        writer.until(last + 1);
        std::thread::sleep(Duration::from_millis(200 + 150 * round));
        bench.kill();
        writer.lost_its_mount();
        bench.start();
        last = verify(&directory, flags, writer.acknowledged, &format!("the daemon killed, round {round}"));
        let mut writer = Writer::start(&directory, flags);
        writer.until(last + 10 * (round + 1));
        writer.kill();
        last = verify(&directory, flags, writer.acknowledged, &format!("the writer killed, round {round}"));
    }
    let status = bench.json(&["status"]);
    let tiers = status["volume"]["tiers"].as_array().unwrap();
    let blocks: Vec<u64> = tiers.iter().map(|tier| tier["blocks"].as_u64().unwrap()).collect();
    assert!(blocks.iter().all(|count| *count > 0), "blocks of the tiers: {blocks:?}");
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    bench.ok(&["release"]);
    verify(&directory, flags, last, "released as plain files");
}

/// Not a test: the processes that have the environment open. What of its mapping is gone would end this one, too.
#[test]
fn process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let flags = EnvFlags::from_bits_truncate(std::env::var(FLAGS).unwrap().parse().unwrap());
    let (environment, store) = open(Path::new(&directory), flags);
    match std::env::var_os(WRITES) {
        Some(_) => write(&environment, &store),
        None => look(&environment, &store),
    }
}

/// Commits, and tells of each commit.
fn write(environment: &Env, store: &Store) {
    let mut told = std::io::stdout();
    for commit in last_of(environment, store) + 1.. {
        let mut transaction = environment.write_txn().unwrap();
        for (key, value) in changes(commit) {
            match value {
                Some(value) => store.put(&mut transaction, &key, &value).unwrap(),
                None => _ = store.delete(&mut transaction, &key).unwrap(),
            }
        }
        transaction.commit().unwrap();
        writeln!(told, "@{commit}").unwrap();
    }
}

/// Tells which commit was the last one, once the content is what all up to that make of nothing.
fn look(environment: &Env, store: &Store) {
    let last = last_of(environment, store);
    let mut wanted = Content::new();
    for (key, value) in (1..=last).flat_map(changes) {
        match value {
            Some(value) => _ = wanted.insert(key, value),
            None => _ = wanted.remove(&key),
        }
    }
    let transaction = environment.read_txn().unwrap();
    let mut found = 0;
    for (entry, (key, value)) in store.iter(&transaction).unwrap().zip(&wanted) {
        let entry = entry.unwrap_or_else(|error| panic!("after commit {last}: {error}"));
        let [is, name] = [entry.0, key].map(String::from_utf8_lossy);
        assert_eq!(is, name, "after commit {last}");
        assert!(entry.1 == value, "after commit {last}: {name} has another value");
        found += 1;
    }
    assert_eq!((found, store.len(&transaction).unwrap()), (wanted.len(), wanted.len() as u64), "after commit {last}");
    println!("@{last}");
}

#[allow(unsafe_code)]
fn open(directory: &Path, flags: EnvFlags) -> (Env, Store) {
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_BYTES);
    // SAFETY: nobody else has it open at the same time, and nobody changes its files but LMDB and what this is a test of.
    let environment = unsafe { options.flags(flags).open(directory) }.unwrap();
    let transaction = environment.write_txn().unwrap();
    let opened = environment.create_databases_and_commit(transaction, |opener, transaction| {
        let opened: heed::Result<Database<'_, Bytes, Bytes>> = opener.create_database(transaction, None);
        opened.map(CommitOrAbort::<_, ()>::Commit)
    });
    let store = opened.unwrap().unwrap_commit();
    (environment, store)
}

fn last_of(environment: &Env, database: &Store) -> u64 {
    let transaction = environment.read_txn().unwrap();
    let found = database.get(&transaction, LAST).unwrap();
    found.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// What the commit of a number puts and deletes, always the same.
fn changes(commit: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut random = commit.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let key = |number: u64| format!("key {number:05}").into_bytes();
    let filled = |at: u64| commit.wrapping_mul(31).wrapping_add(at % 251).to_le_bytes()[0];
    let value = |length: u64| Some((0..length).map(filled).collect());
    let mut changes = Vec::new();
    if commit == 1 {
        changes.extend((0..KEYS).map(|number| (key(number), value(FILLING_BYTES))));
    }
    for _ in 0..2 + below(12) {
        let key = key(below(KEYS));
        let value = match below(10) {
            0..3 => None,
            3..9 => value(below(4000)),
            // Pages of its own, in a row.
            _ => value(FILLING_BYTES + below(200_000)),
        };
        changes.push((key, value));
    }
    changes.push((LAST.to_vec(), Some(commit.to_le_bytes().to_vec())));
    changes
}

fn command(directory: &Path, flags: EnvFlags) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "lmdb::process", "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
    command.env(DIRECTORY, directory).env(FLAGS, flags.bits().to_string());
    command
}

/// What a process says behind a mark, since the test harness of it prints around that.
fn told(line: &str) -> Option<u64> {
    line.split_once('@').and_then(|(_, commit)| commit.trim_end().parse().ok())
}

/// The last commit: none of those acknowledged may be missing, and the content has to be what they make.
fn verify(directory: &Path, flags: EnvFlags, acknowledged: u64, when: &str) -> u64 {
    let output = command(directory, flags).output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{when}, {}: {said}{complained}", output.status);
    let last = said.lines().find_map(told).unwrap_or_else(|| panic!("{when}: {said}"));
    // One more may have been committed than the writer came to say.
    assert!((acknowledged..=acknowledged + 1).contains(&last), "{when}: {acknowledged} acknowledged, {last} found");
    last
}

struct Writer {
    child: Child,
    told: BufReader<ChildStdout>,
    acknowledged: u64,
}

impl Writer {
    fn start(directory: &Path, flags: EnvFlags) -> Writer {
        let mut command = command(directory, flags);
        command.env(WRITES, "").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let told = BufReader::new(child.stdout.take().unwrap());
        Writer { child, told, acknowledged: 0 }
    }

    /// Hears of one more commit; false when there will be none.
    fn hear(&mut self) -> bool {
        let mut line = String::new();
        while self.told.read_line(&mut line).unwrap() > 0 {
            if line.ends_with('\n')
                && let Some(commit) = told(&line)
            {
                self.acknowledged = commit;
                return true;
            }
            line.clear();
        }
        false
    }

    fn until(&mut self, commit: u64) {
        while self.acknowledged < commit {
            assert!(self.hear(), "the writer ended after commit {}", self.acknowledged);
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        while self.hear() {}
        self.child.wait().unwrap();
    }

    /// Without a daemon no commit succeeds: it ends by itself, with an error or by the signal for a mapping that is gone.
    fn lost_its_mount(&mut self) {
        while self.hear() {}
        let mut status = None;
        wait_until(30, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.expect("the writer ends without its mount");
        assert!(status.code() == Some(101) || status.signal() == Some(7), "{status}");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
