//! The machine as a whole: how busy it is, and which one.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Time of all processors since the machine started, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorTimes {
    /// With nothing to do, or waiting for devices.
    pub idle: u64,
    pub total: u64,
}

impl ProcessorTimes {
    /// Share of the time since `then` in which processors had nothing to do; None when too little time has passed to tell.
    #[allow(clippy::cast_precision_loss, reason = "ticks of a machine's life are far below 2^52")]
    pub fn idle_share_since(&self, then: &ProcessorTimes) -> Option<f64> {
        let total = self.total.checked_sub(then.total).filter(|ticks| *ticks > 0)?;
        Some(self.idle.saturating_sub(then.idle) as f64 / total as f64)
    }
}

/// What the kernel has counted until now; None where it does not say.
pub fn processor_times() -> Option<ProcessorTimes> {
    parse(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line: `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guest time is within user's.
fn parse(stat: &str) -> Option<ProcessorTimes> {
    let mut words = stat.lines().next()?.split_ascii_whitespace();
    if words.next()? != "cpu" {
        return None;
    }
    let ticks: Vec<u64> = words.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(ProcessorTimes { idle: ticks.get(3)? + ticks.get(4).unwrap_or(&0), total: ticks.iter().sum() })
}

/// What tells processes of different machines, containers and times apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    /// Of the kernel's id of this start of the machine, the first part.
    pub start: String,
    /// The namespace that numbers of processes belong to.
    pub processes: u64,
}

/// None where the kernel does not say.
pub fn this() -> Option<Host> {
    let line = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
    let start = line("random/boot_id")?.split('-').next()?.to_owned();
    let processes = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    Some(Host { name: line("hostname")?.trim().to_owned(), start, processes })
}

/// Is there a process of this number? In doubt, yes.
pub fn process_lives(process: u32) -> bool {
    fs::exists(format!("/proc/{process}")).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_neither_works_nor_is_stolen() {
        let then = parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!(then, ProcessorTimes { idle: 850, total: 1000 });
        let now = parse("cpu  160 0 70 810 60 0 0 0 60 0\n").unwrap();
        assert_eq!(now.idle_share_since(&then), Some(0.2));
        assert_eq!(now.idle_share_since(&now), None);
    }

    #[test]
    fn this_machine_and_this_process_are_known() {
        let host = this().unwrap();
        assert!(!host.name.is_empty() && host.start.len() == 8 && host.processes > 0, "{host:?}");
        assert!(process_lives(std::process::id()) && !process_lives(u32::MAX));
    }

    #[test]
    fn what_is_no_such_file_says_nothing() {
        for text in ["", "cpu", "cpu0 1 2 3 4", "cpu 1 2 x 4", "cpu 1 2 3"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert!(processor_times().is_some());
    }
}
