//! What keeping account of accesses costs: nanoseconds per access on the data path, memory for a TiB of which a tenth is hot, and processor time of the
//! forecast. `scripts/bench` runs it; each line is `metric,value`.

use heatfs::device::real::RealDevice;
use heatfs::heat::{HeatSettings, Recorder, share_memory};
use heatfs::jobs::forecaster::{Forecaster, ForecasterSettings};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::AccessObserver;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BLOCK: u64 = 65_536;
/// Blocks of a TiB.
const BLOCKS: u64 = 1 << 24;
/// As the daemon shares out 128 MiB.
const MEMORY: u64 = 128 << 20;
const ACCESSES: u32 = 2_000_000;

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) % limit
    }
}

fn read(recorder: &Recorder, block: u64) {
    // Files of a GiB, as PostgreSQL's segments are.
    let (file, block) = (FileId(1 + block / 16_384), block % 16_384);
    let offset = block * BLOCK + block % 7 * 8192;
    recorder.on_read_miss(file, BlockNo(block), BlockNo(block), offset, 8192, Some(TierId(0)), 100);
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// The most that was resident since the last call.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // "5" makes it what is resident now (proc(5)).
    drop(std::fs::write("/proc/self/clear_refs", "5"));
    peak.unwrap_or(0) * 1024
}

fn per_access(recorder: &Recorder, write: bool) -> f64 {
    let mut dice = Dice(7);
    let blocks: Vec<u64> = (0..1 << 16).map(|_| dice.below(200_000)).collect();
    let began = Instant::now();
    for at in 0..ACCESSES {
        let block = blocks[at as usize % blocks.len()];
        match write {
            true => recorder.on_write(FileId(1 + block / 16_384), block % 16_384 * BLOCK, 8192, false),
            false => read(recorder, block),
        }
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(ACCESSES)
}

fn main() {
    // As in the daemon: what is freed goes back.
    heatfs::device::sys::return_large_allocations(1 << 20);
    let dir = std::env::temp_dir();
    let open = |epoch: Duration| {
        let (counters_bytes, forecast_bytes) = share_memory(MEMORY);
        let settings = HeatSettings { memory_bytes: counters_bytes, ..HeatSettings::with_block_bytes(65_536) };
        let recorder = Arc::new(Recorder::new(settings));
        let device = Arc::new(RealDevice::at(&dir).expect("a directory for temporary files"));
        let settings = ForecasterSettings { epoch, memory_bytes: forecast_bytes, ..ForecasterSettings::default() };
        // Another volume's id each time: whatever lies in the directory is foreign.
        let id = std::process::id().to_le_bytes();
        let forecaster = Forecaster::open(
            Arc::clone(&recorder),
            device,
            [id[0], id[1], id[2], id[3], 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
            settings,
        );
        forecaster.set_capacity(BLOCKS / 10);
        (recorder, forecaster)
    };

    let (recorder, forecaster) = open(Duration::from_secs(3600));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(250));
                forecaster.look();
            }
        });
        println!("read (ns),{:.0}", per_access(&recorder, false));
        println!("write (ns),{:.0}", per_access(&recorder, true));
        let began = Instant::now();
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| per_access(&recorder, false))).collect();
        threads.into_iter().for_each(|thread| drop(thread.join()));
        println!("read by two threads at once (ns),{:.0}", began.elapsed().as_secs_f64() * 1e9 / f64::from(ACCESSES));
        done.store(true, Ordering::Relaxed);
    });
    drop((recorder, forecaster));

    // A TiB of which every 4 MiB were touched, and a tenth is hot: epochs of as many accesses as the queue takes.
    let before = resident_bytes();
    let (recorder, forecaster) = open(Duration::from_millis(1));
    let mut dice = Dice(9);
    let (mut cpu_ms, mut peak) = (0, 0);
    peak_bytes();
    for epoch in 0..12u64 {
        for part in 0..16u64 {
            for at in 0..16_384u64 {
                let shard = (part * 16_384 + at) * 64;
                read(&recorder, (shard + at % 64) % BLOCKS);
                read(&recorder, dice.below(BLOCKS / 10));
                if at % 2048 == 0 {
                    forecaster.hear_now();
                }
            }
        }
        let earlier = forecaster.status().cpu_ms;
        std::thread::sleep(Duration::from_millis(2));
        forecaster.end_epoch_now();
        recorder.roll(1.0);
        peak = peak_bytes().max(peak);
        if epoch >= 4 {
            cpu_ms += forecaster.status().cpu_ms - earlier;
        }
    }
    // As when the forecast is believed.
    let mut expecting = recorder.expecting();
    for block in 0..BLOCKS / 10 {
        expecting.expect(FileId(1 + block / 16_384), BlockNo(block % 16_384), 1.0);
    }
    expecting.publish();
    let (heat, forecast) = (recorder.status(), forecaster.status());
    // As the daemon does once a minute.
    heatfs::device::sys::return_free_memory();
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    println!("counters of heat (MiB per TiB),{:.1}", mib(heat.memory_bytes));
    println!("forecast (MiB per TiB),{:.1}", mib(forecast.memory_bytes));
    println!("both (MiB per TiB),{:.1}", mib(heat.memory_bytes + forecast.memory_bytes));
    println!("resident with all that is passing (MiB per TiB),{:.1}", mib(resident_bytes().saturating_sub(before)));
    println!("resident at most (MiB per TiB),{:.1}", mib(peak.saturating_sub(before)));
    println!("fine shards of 4 MiB,{}", forecast.fine_shards);
    println!("merged shards of 4 MiB,{}", forecast.merged_shards);
    let per_epoch_ms = cpu_ms as f64 / 8.0;
    println!("ending an epoch (ms of a core),{per_epoch_ms:.0}");
    println!("share of a core with epochs of 300 s (%),{:.3}", per_epoch_ms / 3000.0);
}
