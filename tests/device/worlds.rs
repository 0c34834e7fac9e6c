//! Counting, seeds, forks and threads of the simulated world.

use crate::{CREATE, LOG, content, page, sim};
use heatfs::device::sim::{SimDevice, SimWorld, Survival};
use heatfs::device::{AlignedBuf, Device};

#[test]
fn operations_count_what_changes_or_syncs() {
    let world = SimWorld::new(1);
    let (d, e) = (world.device("d"), world.device("e"));
    d.create_dir_all("a/b").unwrap();
    d.create_dir_all("a/b").unwrap();
    assert_eq!(world.operations(), 2);
    let f = d.open("a/f", CREATE).unwrap();
    d.open("a/f", CREATE).unwrap();
    assert_eq!(world.operations(), 3);
    f.write_all_at(b"x", 0).unwrap();
    f.read_at(&mut [0], 0).unwrap();
    f.start_writeback(0, 1).unwrap();
    f.set_len(10).unwrap();
    f.punch(0, 1).unwrap();
    f.allocate(0, 1).unwrap();
    f.sync_data().unwrap();
    assert_eq!(world.operations(), 8);
    d.sync_dir("a").unwrap();
    d.rename("a/f", "g").unwrap();
    d.remove_file("g").unwrap();
    e.sync_all().unwrap();
    assert_eq!(world.operations(), 12);
    let traffic = d.traffic();
    assert_eq!((traffic.reads, traffic.read_bytes, traffic.writes, traffic.written_bytes), (1, 1, 1, 1));
    assert_eq!((traffic.syncs, e.traffic().syncs), (2, 1));
}

#[test]
fn the_same_seeds_give_the_same_fate() {
    let run = |seed| {
        let world = SimWorld::new(seed);
        let d = world.device("d");
        let f = d.open("f", CREATE).unwrap();
        d.sync_all().unwrap();
        for i in 0..50u8 {
            f.write_all_at(&[i; 6000], u64::from(i % 7) * 3000).unwrap();
        }
        let outcomes = (0..20).map(|s| content(&*world.recover(Survival::Seed(s)).device("d"), "f"));
        outcomes.collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn forks_go_their_own_ways() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(b"base", 0).unwrap();
    d.open("gone", CREATE).unwrap().allocate(0, 4096).unwrap();
    let gone = d.open("gone", CREATE).unwrap();
    d.remove_file("gone").unwrap();
    let fork = world.fork();
    assert_eq!(fork.operations(), world.operations());
    f.write_all_at(b"here", 0).unwrap();
    let g = fork.device("d");
    assert_eq!(content(&*g, "f"), b"base");
    g.remove_file("f").unwrap();
    assert_eq!(content(&*d, "f"), b"here");
    assert_eq!(g.space().unwrap().available_bytes, 1 << 40, "open files of the original hold no space in the fork");
    drop(gone);
}

#[test]
fn threads_may_share_a_world() {
    let (world, d) = sim();
    std::thread::scope(|scope| {
        for t in 0..4u8 {
            let d: &SimDevice = &d;
            scope.spawn(move || {
                let f = d.open(&format!("f{t}"), CREATE).unwrap();
                for i in 0..100 {
                    f.write_all_at(&[t; 4096], i * 4096).unwrap();
                    f.sync_data().unwrap();
                }
            });
        }
    });
    assert_eq!(world.operations(), 4 * 201);
    d.sync_all().unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f3"), vec![3; 409_600]);
}

/// A log in miniature: numbered pages, each acknowledged when its dsync write returns. At every crash point and with
/// several kinds of luck, what was acknowledged is there. Also the measure of how much enumeration costs.
#[test]
fn every_crash_point_of_a_small_log_keeps_what_was_acknowledged() {
    let base = SimWorld::new(11);
    let d = base.device("fast");
    d.open("log", LOG).unwrap().write_all_at(&AlignedBuf::zeroed(1 << 20), 0).unwrap();
    d.sync_all().unwrap();
    let work = |world: &SimWorld| -> u8 {
        let log = world.device("fast").open("log", LOG).expect("nothing has crashed yet");
        let acknowledged = (1..=100u8).take_while(|i| log.write_all_at(&page(*i), u64::from(*i) * 4096).is_ok());
        acknowledged.last().unwrap_or(0)
    };
    let counted = base.fork();
    assert_eq!(work(&counted), 100);
    let mut points = 0;
    for at in base.operations()..=counted.operations() {
        let world = base.fork();
        world.crash_at(at);
        let acknowledged = work(&world);
        let lucks = (0..8).map(Survival::Seed).chain([Survival::None, Survival::All]);
        for luck in lucks {
            let after = content(&*world.recover(luck).device("fast"), "log");
            for i in 1..=acknowledged {
                assert_eq!(after[usize::from(i) * 4096], i, "crash at {at}, {luck:?}");
            }
            points += 1;
        }
    }
    assert_eq!(points, 101 * 10);
}
