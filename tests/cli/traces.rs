//! `replay`, `predict` and `trace record` from outside: a small trace of its own, figures that must hold, and lines that are no trace.

use super::bench::{Bench, complaint, heatfs, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Output, Stdio};

const HEADER: &str = "ts_ms,op,file,offset,len\n";

/// Ten thousand reads of a thousand blocks, low numbers hotter, no two of them a stream.
fn trace() -> String {
    let mut state = 7u64;
    let mut dice = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = HEADER.to_owned();
    for at in 0..10_000u64 {
        let block = dice(1000) * dice(1000) / 1000;
        let op = if at % 9 == 0 { 'W' } else { 'R' };
        text += &format!("{at},{op},{},{},8192\n", 1 + block % 2, block * 65_536 + 8192 * (at % 7));
    }
    text + "10000,S,1,0,0\n10001,T,2,65536,0\n"
}

fn replay(file: &Path, more: &[&str]) -> Output {
    heatfs().arg("replay").arg(file).args(more).output().unwrap()
}

fn results(output: &Output) -> Vec<serde_json::Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reply: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    reply["results"].as_array().unwrap().clone()
}

#[test]
fn a_trace_is_replayed_alike_each_time_and_within_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.csv");
    fs::write(&file, trace()).unwrap();
    let first = replay(&file, &["--fast", "5,20", "--json"]);
    let found = results(&first);
    assert_eq!(found.len(), 14, "seven policies on two sizes");
    let hits = |policy: &str, fast: f64| {
        let one = found.iter().find(|one| one["policy"] == policy && one["fast"] == fast).unwrap();
        one["hits"].as_f64().unwrap()
    };
    for fast in [5.0, 20.0] {
        assert!(hits("decay", fast) > 0.1 && hits("oracle", fast) > hits("decay", fast));
        assert!(hits("shipped", fast) >= 0.99 * hits("decay", fast), "{found:#?}");
    }
    assert!(hits("decay", 20.0) > hits("decay", 5.0));
    for one in &found {
        assert!(one["moved_bytes"].as_u64() <= one["budget_bytes"].as_u64(), "{one}");
        assert!(one["latency_ms"].as_f64().is_some_and(|latency| latency > 0.1 && latency < 8.0), "{one}");
    }
    assert_eq!(replay(&file, &["--fast", "5,20", "--json"]).stdout, first.stdout);
    let one = results(&replay(&file, &["--fast", "10", "--policy", "shipped,decay", "--json"]));
    assert_eq!(one.iter().map(|one| one["policy"].as_str().unwrap()).collect::<Vec<_>>(), ["shipped", "decay"]);
    let table = replay(&file, &["--fast", "10", "--policy", "decay"]);
    assert!(String::from_utf8_lossy(&table.stdout).lines().any(|line| line.trim_start().starts_with("decay")));
}

#[test]
fn a_bad_line_of_a_trace_is_named_by_its_number_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.csv");
    for (lines, number, wanted) in [
        ("1,R,1,0,8192\n2,R,1,0\n", 3, "len"),
        ("1,R,1,0,8192\n2,Q,1,0,1\n", 3, "R, W, S or T"),
        ("nan,R,1,0,1\n", 2, "ts_ms"),
        ("1,R,1,-1,1\n", 2, "offset"),
        ("1,R,1,0,1,1\n", 2, "too many"),
    ] {
        fs::write(&file, format!("{HEADER}{lines}")).unwrap();
        let line = complaint(&replay(&file, &[]), 2);
        assert!(line.contains(&format!("bad.csv, line {number}: ")) && line.contains(wanted), "{line}");
    }
    fs::write(&file, "when,what\n").unwrap();
    let line = complaint(&replay(&file, &[]), 2);
    assert!(line.contains("line 1") && line.contains("ts_ms,op,file,offset,len"), "{line}");
    complaint(&replay(&dir.path().join("absent.csv"), &[]), 1);
    fs::write(&file, trace()).unwrap();
    assert!(complaint(&replay(&file, &["--fast", "0"]), 2).contains("percentage"));
    assert!(complaint(&replay(&file, &["--policy", "best"]), 2).contains("shipped"));
}

fn predict(input: &Path) -> Output {
    heatfs().args(["predict", "--stdio"]).stdin(File::open(input).unwrap()).output().unwrap()
}

#[test]
fn prediction_answers_each_epoch_and_never_knows_more_than_it_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    let epoch = |number: u64| {
        let reads =
            |block: u64| (0..=block).map(move |at| format!("A {at} R 5 {} 4096 0\n", block * 65_536 + 8192 * at));
        (0..4).flat_map(reads).collect::<String>() + &format!("END {number} 1000 0\n")
    };
    let lines = |epochs: u64| "F 5 base/5/16384 heap\n".to_owned() + &(0..epochs).map(epoch).collect::<String>();
    let answers = |epochs: u64| {
        fs::write(&file, lines(epochs)).unwrap();
        let output = predict(&file);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let all = answers(14);
    assert_eq!(all.matches("END\n").count(), 14);
    assert!(all.starts_with(&answers(6)), "an answer does not depend on what comes after it");
    let last = all.split("END\n").nth(13).unwrap();
    let scores: Vec<f64> = last.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(scores.len() == 4 && scores.is_sorted(), "{last}");
    for (bad, wanted) in [("A 1 R 5 0 1\n", "wanted is"), ("A 1 R 5 0 1 2\n", "seq"), ("HELLO\n", "F, A or END")] {
        fs::write(&file, lines(2) + bad).unwrap();
        let output = predict(&file);
        assert_eq!(String::from_utf8_lossy(&output.stdout).matches("END\n").count(), 2, "what came before is answered");
        let line = complaint(&output, 2);
        assert!(line.contains(&format!("line {}: ", lines(2).lines().count() + 1)) && line.contains(wanted), "{line}");
    }
}

#[test]
fn what_is_recorded_can_be_replayed() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start();
    let trace = bench.path("seen.csv.gz");
    let name = trace.to_str().unwrap();
    let mut recording = bench.heatfs(&["trace", "record", name, "--seconds", "50", "--records", "60"]);
    let mut recording = recording.stdout(Stdio::piped()).spawn().unwrap();
    let table = File::options().write(true).open(bench.data().join("base/1/table")).unwrap();
    let mut round = 0u64;
    let ended = wait_until(45, || {
        for at in 0..5 {
            table.write_all_at(b"written", (round * 7 + at * 3) % 40 * 65_536).unwrap();
        }
        table.sync_data().unwrap();
        round += 1;
        recording.try_wait().unwrap().is_some()
    });
    assert!(ended, "sixty records come in no time");
    let output = recording.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.starts_with("60 records of "), "{said}");
    let names = fs::read_to_string(bench.path("seen.files.csv")).unwrap();
    assert!(names.starts_with("file,path,class,rel\n") && names.contains(",base/1/table,other,\n"), "{names}");
    let found = results(&replay(&trace, &["--fast", "50", "--policy", "decay", "--json"]));
    assert!(found[0]["hits"].as_f64().is_some_and(f64::is_finite), "{found:?}");
    let line = complaint(&bench.heatfs(&["trace", "record", "seen.txt"]).output().unwrap(), 2);
    assert!(line.contains("seen.txt") && line.contains(".csv.gz"), "{line}");
    let line = complaint(&bench.heatfs(&["trace", "record", name, "--records", "none"]).output().unwrap(), 2);
    assert!(line.contains("none"), "{line}");
}
