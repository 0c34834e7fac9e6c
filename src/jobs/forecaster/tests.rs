use super::*;
use crate::device::OpenMode;
use crate::device::sim::SimWorld;
use crate::heat::HeatSettings;
use crate::volume::AccessObserver;

const ID: [u8; 16] = [9; 16];
const BLOCK: u64 = 65_536;
const HOT: FileId = FileId(4);

struct House {
    world: SimWorld,
    recorder: Arc<Recorder>,
    forecaster: Arc<Forecaster>,
}

fn settings() -> ForecasterSettings {
    ForecasterSettings {
        epoch: Duration::from_secs(1000),
        period: Duration::ZERO,
        staging: false,
        ..ForecasterSettings::default()
    }
}

impl House {
    fn open(world: SimWorld) -> House {
        House::with(world, settings())
    }

    fn with(world: SimWorld, settings: ForecasterSettings) -> House {
        let recorder = Arc::new(Recorder::new(HeatSettings::with_block_bytes(65_536)));
        let forecaster = Forecaster::open(Arc::clone(&recorder), world.device("nvme"), ID, settings);
        forecaster.set_capacity(64);
        forecaster.hear_now();
        House { world, recorder, forecaster }
    }

    fn read(&self, block: u64, tier: u8) {
        // Two pages of a block by turns, so that nothing is a stream.
        self.recorder.on_read_miss(
            HOT,
            BlockNo(block),
            BlockNo(block),
            block * BLOCK + block % 7 * 8192,
            100,
            Some(TierId(tier)),
            9,
        );
    }

    fn end_epoch(&self) {
        self.forecaster.end_epoch_now();
    }

    /// A window of 64 blocks that moves on by half with every epoch: what was hot is not, which a short memory knows first.
    fn window(&self, epoch: u64) {
        for block in epoch * 32..epoch * 32 + 64 {
            (0..4).for_each(|_| self.read(block * 3, 1));
        }
        self.recorder.roll(1.0);
        self.end_epoch();
    }
}

#[test]
fn whoever_is_believed_makes_the_heat() {
    let house = House::open(SimWorld::new(1));
    (0..40).for_each(|epoch| house.window(epoch));
    let status = house.forecaster.status();
    assert!(status.off.is_none() && status.choice != Contender::PLAIN.to_string(), "{status:?}");
    assert!(status.contenders[0].hits > status.contenders.iter().find(|one| one.name == "decay8").unwrap().hits);
    // What the window has left is colder to whoever is believed than to plain decay, which is what the recorder alone would say.
    let (left, next) = (BlockNo(36 * 32 * 3), BlockNo((39 * 32 + 40) * 3));
    let believed = house.recorder.block_heat(HOT, left) / house.recorder.block_heat(HOT, next);
    house.recorder.expect_nothing();
    let plain = house.recorder.block_heat(HOT, left) / house.recorder.block_heat(HOT, next);
    assert!(believed < plain / 2.0, "{believed} against {plain}");
}

#[test]
fn an_access_that_nobody_expected_warms_a_block_all_the_same() {
    let house = House::open(SimWorld::new(1));
    (0..40).for_each(|epoch| house.window(epoch));
    let cold = BlockNo(3);
    let before = house.recorder.block_heat(HOT, cold);
    (0..50).for_each(|_| house.read(3, 1));
    assert!(house.recorder.block_heat(HOT, cold) > before + 3.0);
}

/// All reads come from the second tier, whatever is believed: so nothing but plain decay may stay.
#[test]
fn what_brings_nothing_in_the_real_tier_is_not_used() {
    let house = House::open(SimWorld::new(1));
    for _ in 0..30u64 {
        for block in 0..500u64 {
            (0..=block % 5).for_each(|_| house.read(block * 3, 1));
        }
        house.end_epoch();
    }
    let status = house.forecaster.status();
    assert_eq!(status.choice, Contender::PLAIN.to_string(), "{status:?}");
    assert!(status.heard > 10_000 && status.real_hits == Some(0.0));
}

#[test]
fn what_was_learned_survives_a_restart() {
    let house = House::open(SimWorld::new(1));
    (0..20).for_each(|epoch| house.window(epoch));
    let before = house.forecaster.status();
    house.forecaster.save();
    let House { world, .. } = house;
    let house = House::open(world);
    let after = house.forecaster.status();
    assert_eq!((after.choice, after.epochs, after.model), (before.choice, before.epochs, before.model));
    assert_eq!(after.memory, "goes on where the last run ended");
    let inner = house.forecaster.inner.lock();
    assert_eq!(inner.forecast.mean_accesses(), 1.0, "no epoch has ended yet");
    assert!(inner.forecast.shards() > 4);
}

/// The status once the saved file was looked at.
fn opened(world: &SimWorld, recorder: Arc<Recorder>, id: [u8; 16]) -> ForecastStatus {
    let forecaster = Forecaster::open(recorder, world.device("nvme"), id, settings());
    assert_eq!(forecaster.status().memory, "what was saved is not read yet");
    forecaster.save();
    forecaster.hear_now();
    forecaster.status()
}

#[test]
fn a_damaged_or_foreign_file_only_means_learning_anew() {
    let house = House::open(SimWorld::new(1));
    (0..3).for_each(|epoch| house.window(epoch));
    house.forecaster.save();
    let House { world, .. } = house;
    let device = world.device("nvme");
    let file = device.open(FORECAST_FILE, OpenMode::default()).unwrap();
    let len = file.len().unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    let learned_anew = |why: &str| {
        let recorder = Arc::new(Recorder::new(HeatSettings::with_block_bytes(65_536)));
        let status = opened(&world, recorder, ID);
        assert!(status.off.is_none() && status.epochs == 0, "{why}: {status:?}");
        assert!(status.memory.starts_with("learning anew: "), "{why}: {}", status.memory);
    };
    for at in (0..bytes.len()).step_by(101).chain(0..44).chain(bytes.len() - 4..bytes.len()) {
        file.write_all_at(&[bytes[at] ^ 0x20], at as u64).unwrap();
        learned_anew(&format!("byte {at}"));
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
    for cut in [0, 7, 39, 43, len - 1, len - 100] {
        file.set_len(cut).unwrap();
        learned_anew(&format!("cut at {cut}"));
        file.write_all_at(&bytes, 0).unwrap();
    }
    let recorder = || Arc::new(Recorder::new(HeatSettings::with_block_bytes(65_536)));
    let foreign = opened(&world, recorder(), [8; 16]);
    assert!(foreign.memory.contains("another volume"), "{}", foreign.memory);
    assert_eq!(opened(&world, recorder(), ID).epochs, 3, "whole again");
}

#[test]
fn a_failure_leaves_plain_decay_and_says_so() {
    let house = House::open(SimWorld::new(1));
    (0..40).for_each(|epoch| house.window(epoch));
    let block = BlockNo(39 * 32 * 3);
    house.forecaster.run(|_| panic!("a fault of the forecast"));
    assert_eq!(house.recorder.evidence(HOT, block).expected, None);
    assert!(house.recorder.block_heat(HOT, block) > 0.0, "the recorder goes on");
    let status = house.forecaster.status();
    assert_eq!(status.believed(), "plain decay");
    assert!(status.because().contains("internal error ended it: a fault of the forecast"), "{}", status.because());
    house.read(1, 1);
    house.forecaster.look();
    assert_eq!(house.recorder.events_waiting(), 0, "nothing is queued for nobody");
    assert_eq!((house.forecaster.staging_blocks(), house.forecaster.status().staging_percent), (0, 0));
}

#[test]
fn switched_off_it_costs_nothing() {
    let house = House::with(SimWorld::new(1), ForecasterSettings { enabled: false, ..settings() });
    house.read(1, 1);
    house.forecaster.look();
    let status = house.forecaster.status();
    assert_eq!((status.believed().as_str(), status.heard, house.recorder.events_waiting()), ("plain decay", 0, 0));
}

#[test]
fn a_flood_is_thinned_out_and_keeps_its_proportions() {
    let house = House::open(SimWorld::new(1));
    for at in 0..30_000u64 {
        house.read(if at % 3 == 0 { 5 } else { 900 }, 1);
    }
    house.end_epoch();
    let status = house.forecaster.status();
    assert!(status.skipped > 20_000, "{status:?}");
    let mut inner = house.forecaster.inner.lock();
    let mut scores = Vec::new();
    inner.forecast.close_epoch(EpochClock::default());
    inner.forecast.score(&mut |scored| scores.push((scored.block.0, scored.scores[Predictor::PLAIN.index()])));
    let of = |block: u64| scores.iter().find(|one| one.0 == block).unwrap().1;
    let ratio = of(900) / of(5);
    assert!((ratio - 2.0).abs() < 0.3, "{ratio}");
}

#[test]
fn the_wall_clock_only_says_where_in_the_cycle_an_epoch_lies() {
    let (epoch, day) = (Duration::from_secs(300), Duration::from_secs(86_400));
    let at = |seconds: i64| epoch_clock(WallNs(seconds * 1_000_000_000), epoch, day);
    assert_eq!((at(0).number, at(-5).number, at(300).number, at(86_400).number), (0, 0, 0, 287));
    assert_eq!((at(1).epoch_ms, at(1).period_ms), (300_000, 86_400_000));
    for odd in [i64::MIN, -1, i64::MAX] {
        let clock = epoch_clock(WallNs(odd), Duration::ZERO, Duration::MAX);
        assert!(clock.epoch_ms == 1 && clock.number < u64::MAX / 2);
    }
    // Forwards, backwards: epochs end, and all is numbers.
    let house = House::with(SimWorld::new(1), ForecasterSettings { period: day, ..settings() });
    for (seconds, reads) in [(0i64, 0u64), (900_000, 5), (-40, 9), (i64::MAX / 2_000_000_000, 2), (600, 7)] {
        (0..reads).for_each(|block| house.read(block * 3, 1));
        house.forecaster.look();
        let mut inner = house.forecaster.inner.lock();
        inner.forecast.close_epoch(at(seconds));
        inner.forecast.score(&mut |scored| assert!(scored.scores.iter().all(|score| score.is_finite())));
    }
}
