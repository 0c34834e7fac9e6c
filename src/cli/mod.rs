//! The command line: its grammar, and the rendering of what the daemon or an offline job says.
//!
//! Exit codes: 0 done; 1 it failed, or `status` found the volume not healthy; 2 wrong usage or settings. Errors are one line on standard error.

mod adopt;
mod archive;
mod args;
mod check;
mod clone;
mod decisions;
mod doctor;
mod dump;
mod events;
mod heat;
mod keeping;
mod mount;
mod mount_helper;
mod names;
mod new_volume;
mod online;
mod out;
mod progress;
mod release;
mod replay;
mod report;
mod rollback;
mod schedule;
mod show;
mod snapshot;
mod top;
mod trace;
mod volume;

use crate::control;
use crate::control::client::ClientError;
use crate::daemon;
use crate::error::Error;
use anyhow::{Context, Result};
use args::{Cli, Command};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Parses, runs, and turns every outcome into an exit code.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let payload = panic.payload();
        let what = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let what = what.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        eprintln!("heatfs: internal error{place}: {}", what.replace('\n', " "));
    }));
    std::panic::catch_unwind(parse_and_run).unwrap_or(ExitCode::from(FAILED))
}

fn parse_and_run() -> ExitCode {
    let cli = match Cli::try_parse_from(mount_helper::arguments(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => return refuse_usage(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heatfs: {}", one_line(&error));
            let wrong_input = matches!(error.downcast_ref::<Error>(), Some(Error::Invalid(_)))
                || matches!(error.downcast_ref::<ClientError>(), Some(ClientError::Refused { wrong_input: true, .. }));
            ExitCode::from(if wrong_input { USAGE } else { FAILED })
        }
    }
}

/// The error and its causes. Ours say their cause themselves, others leave it to the chain.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.replace('\n', " ")
}

/// Help as clap prints it; complaints as one line.
fn refuse_usage(error: &clap::Error) -> ExitCode {
    let help = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion, ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand];
    if help.contains(&error.kind()) {
        let shown = error.print().is_ok();
        return if shown && !error.use_stderr() { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
    }
    let text = error.to_string();
    let complaint: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let line = complaint.join(" ");
    eprintln!("heatfs: {}", line.strip_prefix("error: ").unwrap_or(&line));
    ExitCode::from(USAGE)
}

fn run(cli: Cli) -> Result<()> {
    let (volume, as_json) = (cli.volume, cli.json);
    match cli.command {
        Command::Daemon(request) => serve(&volume, request),
        Command::Stop { force, no_wait } => online::stop(&volume, force, no_wait, as_json),
        Command::Status => online::status(&volume, as_json),
        Command::Tiers => online::tiers(&volume, as_json),
        Command::Top { once, interval } => top::run(&volume.client()?, once, interval, as_json),
        Command::Heat { path, files } => heat::run(&volume.client()?, path.as_deref(), files, as_json),
        Command::Explain { place } => online::explain(&volume, &place, as_json),
        Command::Why { path, count } => decisions::why(&volume, path.as_deref(), count, as_json),
        Command::Plan { count } => decisions::plan(&volume, count, as_json),
        Command::Whatif { tiers } => decisions::what_if(&volume, &tiers, as_json),
        Command::Report { html } => report::run(&volume, &html, as_json),
        Command::Pin { path, tier } => online::pin(&volume, &path, tier, as_json),
        Command::Unpin { path } => online::unpin(&volume, &path, as_json),
        Command::Settle => online::settle(&volume, as_json),
        Command::Checkpoint => online::checkpoint(&volume, as_json),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "heatfs", &mut script);
            out::text(&String::from_utf8_lossy(&script))
        }
        Command::Man { dir } => write_man_pages(&dir),
        Command::Adopt(request) => adopt::run(&request, as_json),
        Command::Release(request) => release::run(&volume, &request, as_json),
        Command::Doctor { tiers } => doctor::run(&volume, &tiers, as_json),
        Command::Check { deep } => check::run(&volume, deep, as_json),
        Command::Events { follow } => events::run(&volume, follow, as_json),
        Command::Snapshot { command } => snapshot::run(&volume, command, as_json),
        Command::Restore(request) => snapshot::restore_into(&volume, &request, as_json),
        Command::Clone(request) => clone::run(&volume, &request, as_json),
        Command::Rollback(request) => rollback::run(&volume, &request, as_json),
        Command::Mount(request) => mount::run(&volume, &request, as_json),
        Command::MountHelper(request) => mount_helper::run(&request),
        Command::Repo(request) => snapshot::repo(&volume, request, as_json),
        Command::Trace(args::Trace::Record { file, seconds, records }) => {
            trace::record(&volume.client()?, &file, seconds, records, as_json)
        }
        Command::Replay(request) => replay::run(&request, as_json),
        Command::Predict { .. } => replay::predict(),
        Command::Dump { what } => dump::run(&volume, &what),
    }
}

fn serve(volume: &args::Choice, request: args::Daemon) -> Result<()> {
    if request.detached {
        nix::unistd::setsid().context("leaving the terminal's session")?;
    }
    start_logging();
    let settings = volume.settings()?;
    if let Some(found) = settings.readable_password(&volume.settings_file()?) {
        tracing::warn!("{found}: {}", doctor::HIDE_PASSWORD);
    }
    let mount_as = daemon::MountAs { source: request.source, no_exec: request.noexec };
    Ok(daemon::run(settings, mount_as, control::start)?)
}

/// Words of the daemon go to standard error; journald adds the time itself.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HEATFS_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,fuser=warn,fuser::reply=off"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => lines.without_time().init(),
        None => lines.init(),
    }
}

fn write_man_pages(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(|| format!("writing man pages into {}", dir.display()))
}
