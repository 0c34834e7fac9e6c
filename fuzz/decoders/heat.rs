//! What heat remembers over a restart, and traces that somebody else recorded. The first byte says which, the second whether checksums are put
//! right first.

use heatfs::device::sim::SimWorld;
use heatfs::device::{Device, OpenMode};
use heatfs::heat::forecast::{Access, EpochClock, Forecast, ForecastSettings};
use heatfs::heat::{HEAT_FILE, HeatSettings, Recorder};
use heatfs::jobs::replay::Trace;
use heatfs::units::{BlockNo, FileId};
use heatfs::volume::AccessObserver;

const BLOCK_BYTES: u32 = 65536;
const VOLUME: [u8; 16] = [7; 16];
const KINDS: [fn(Vec<u8>, bool); 5] = [recorder, forecast, forest, trace, predict];

pub fn feed(data: &[u8]) {
    let [which, repaired, bytes @ ..] = data else { return };
    KINDS[usize::from(*which) % KINDS.len()](bytes.to_vec(), repaired % 2 == 1);
}

fn put_crc(bytes: &mut [u8], covered: std::ops::Range<usize>, at: usize) {
    if let Some(crc) = bytes.get(covered).map(|covered| crc32c::crc32c(covered).to_le_bytes())
        && let Some(place) = bytes.get_mut(at..at + 4)
    {
        place.copy_from_slice(&crc);
    }
}

fn recorder(mut bytes: Vec<u8>, repaired: bool) {
    if repaired {
        let end = bytes.len().saturating_sub(4);
        put_crc(&mut bytes, 0..40, 40);
        put_crc(&mut bytes, 44..end.max(44), end);
    }
    let device = SimWorld::new(1).device("fast");
    let file = device.open(HEAT_FILE, OpenMode { create: true, ..OpenMode::default() }).expect("made");
    file.write_all_at(&bytes, 0).expect("written");
    let recorder = Recorder::new(HeatSettings::with_block_bytes(BLOCK_BYTES));
    if recorder.load(device.as_ref(), &VOLUME).is_ok() {
        recorder.roll(1.0);
        recorder.warm_files();
        recorder.save(device.as_ref(), &VOLUME).expect("what was taken can be saved");
    }
}

fn new_forecast() -> Forecast {
    Forecast::new(ForecastSettings { block_bytes: BLOCK_BYTES, seed: 1, shards_max: 64 })
}

fn forecast(bytes: Vec<u8>, _: bool) {
    let mut forecast = new_forecast();
    if forecast.load(&mut bytes.as_slice()).is_ok() {
        let mut again = Vec::new();
        forecast.save(&mut again).expect("what was taken can be saved");
    }
}

fn forest(mut bytes: Vec<u8>, repaired: bool) {
    if repaired && bytes.len() > 20 {
        let (head, body) = bytes.split_at(20);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), body).to_le_bytes();
        bytes[16..20].copy_from_slice(&crc);
    }
    let _ = new_forecast().load_model(&bytes);
}

fn trace(bytes: Vec<u8>, _: bool) {
    if let Err(error) = Trace::read(bytes.as_slice(), "trace") {
        assert!(!error.to_string().contains('\n'), "one line, not {error:?}");
    }
}

fn predict(bytes: Vec<u8>, _: bool) {
    if let Err(error) = heatfs::jobs::predict::serve(bytes.as_slice(), std::io::sink()) {
        assert!(!error.to_string().contains('\n'), "one line, not {error:?}");
    }
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let device = SimWorld::new(1).device("fast");
    let recorder = Recorder::new(HeatSettings::with_block_bytes(BLOCK_BYTES));
    for block in 0..3 {
        recorder.on_read_miss(FileId(5), BlockNo(block * 40), BlockNo(block * 40), block << 22, 8192, None, 100);
    }
    recorder.roll(1.0);
    recorder.save(device.as_ref(), &VOLUME).expect("saved");
    let file = device.open(HEAT_FILE, OpenMode::default()).expect("there");
    let mut heat = vec![0; usize::try_from(file.len().expect("a length")).expect("short")];
    file.read_at(&mut heat, 0).expect("read");
    let mut forecast = new_forecast();
    for number in 0..3 {
        forecast.observe(&Access { file: FileId(5), offset: 0, len: 8192, is_write: false, is_sequential: false });
        forecast.end_epoch(EpochClock { number, epoch_ms: 1000, period_ms: 10_000 });
    }
    let mut saved = Vec::new();
    forecast.save(&mut saved).expect("saved");
    let lines = "F 3 base/5/a heap\nA 1 R 3 65536 8192 0\nA 2 W 3 0 100 1\nEND 1 1000 10000\n";
    let trace = "ts_ms,op,file,offset,len\n1,R,3,65536,8192\n2,W,3,0,100\n3,S,3,0,0\n4,T,3,8192,0\n";
    let seeds =
        [("recorder", 0, heat), ("forecast", 1, saved), ("trace", 3, trace.into()), ("predict", 4, lines.into())];
    seeds
        .into_iter()
        .map(|(name, kind, bytes): (&str, u8, Vec<u8>)| (name.to_owned(), [vec![kind, 1], bytes].concat()))
        .collect()
}
