//! `replay` and `predict`: the prediction of heat, driven by a trace or by another program.

use super::args::Replay;
use super::{out, show};
use crate::jobs::predict;
use crate::jobs::replay::{Conditions, Outcome, Policy, Trace, replay};
use anyhow::Result;
use serde::Serialize;
use std::io;
use std::path::Path;

/// What `replay --json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    trace: &'a Path,
    seed: u64,
    results: &'a [Outcome],
}

pub(super) fn run(request: &Replay, as_json: bool) -> Result<()> {
    let policies = if request.policy.is_empty() { Policy::ALL.to_vec() } else { request.policy.clone() };
    let conditions = Conditions { fast_percent: request.fast.clone(), policies, seed: request.seed };
    let outcomes = replay(&Trace::load(&request.trace)?, &conditions);
    if as_json {
        return out::json(&Printed { trace: &request.trace, seed: request.seed, results: &outcomes });
    }
    let row = |outcome: &Outcome| {
        let gate = outcome.gate.as_ref();
        vec![
            outcome.policy.to_owned(),
            format!("{} %", outcome.fast),
            format!("{:.4}", outcome.hits),
            format!("{:.3}", outcome.latency_ms),
            (outcome.moved_bytes >> 20).to_string(),
            (outcome.budget_bytes >> 20).to_string(),
            (outcome.staged_bytes >> 20).to_string(),
            gate.map(|gate| format!("{}: {}", gate.choice, gate.reason)).unwrap_or_default(),
        ]
    };
    let header = ["policy", "fast", "hits", "latency ms", "moved MiB", "budget MiB", "staged MiB", "chosen at the end"];
    out::text(&show::table(&header, outcomes.iter().map(row).collect()))
}

pub(super) fn predict() -> Result<()> {
    match predict::serve(io::stdin().lock(), io::stdout().lock()) {
        // Nobody reads on: like any filter, end without a word.
        Err(crate::error::Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}
