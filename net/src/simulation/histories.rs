//! Histories that once went wrong somewhere, by name.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::world::World;
use super::{Defect, Settings};
use mirrorfs_journal::log::OnOutage;

const SEEDS: std::ops::Range<u64> = 1..25;

/// A link that is in sync.
fn in_sync(seed: u64, connections: u16, memory_bytes: u64) -> World {
    in_sync_with(seed, connections, memory_bytes, None)
}

fn in_sync_with(seed: u64, connections: u16, memory_bytes: u64, defect: Option<Defect>) -> World {
    let settings =
        Settings { luns: 1, connections, memory_bytes, queue_bytes: 8 << 20, on_outage: OnOutage::Queue };
    let mut world = World::new(seed, settings, defect);
    world.writing = false;
    let in_sync = world.run_until(60_000, World::is_in_sync);
    assert!(in_sync, "seed {seed}: {}{:?}", world.trace(), world.violation);
    world
}

fn ends_well(mut world: World, seed: u64) {
    world.must_recover();
    assert!(world.violation.is_none(), "seed {seed}: {}{:?}", world.trace(), world.violation);
}

/// The mirror has epochs of which the crashed primary has kept nothing; what comes afterwards must not be taken for them.
#[test]
fn numbers_reused_after_a_primary_crash() {
    for seed in SEEDS {
        let mut world = in_sync(seed, 3, 1 << 20);
        for _ in 0..3 {
            world.writing = true;
            world.run_until(400, |_| false);
            let durable = world.counts.durable;
            world.run_until(3000, |world| world.counts.durable > durable + 2);
            world.crash_primary(true);
            world.run_until(200, |world| world.primary.is_some());
            world.run_until(300, |_| false);
        }
        ends_well(world, seed);
    }
}

fn label_behind(seed: u64, heard: bool, defect: Option<Defect>) -> World {
    let mut world = in_sync_with(seed, 3, 1 << 20, defect);
    world.writing = true;
    world.run_until(200, |_| false);
    if !heard {
        world.network.blocked[super::network::PRIMARY] = true;
    }
    let durable = world.counts.durable;
    let behind = world.run_until(20_000, |world| {
        if world.counts.durable == durable {
            return false;
        }
        let disk = world.store.disks[0].lock();
        disk.label_unsynced.is_some_and(|label| !label.resyncing) && disk.blocks.unsynced_count() > 2
    });
    assert!(behind, "seed {seed}: {:?}", world.violation);
    world.network.blocked = [false; 2];
    world.crash_peer_keeping(Some((100, false)));
    world
}

/// The peer loses power when epoch e is complete, its label is not on the disk and a part of e+1 is. Whether or not the
/// primary has heard of e, nothing older may show through on the way.
#[test]
fn label_one_epoch_behind_with_a_part_of_the_next_applied() {
    for seed in SEEDS {
        for heard in [true, false] {
            ends_well(label_behind(seed, heard, None), seed);
        }
    }
}

/// The judge of that history: the epoch that is sent again is applied as it comes.
#[test]
fn an_epoch_sent_again_and_not_gathered_is_caught() {
    let caught = SEEDS.filter(|seed| {
        let mut world = label_behind(*seed, false, Some(Defect::NoGather));
        world.must_recover();
        world.violation.is_some()
    });
    assert!(caught.count() > 0);
}

/// Memory was full and a part is on disk; what came later is in memory again. Then the session ends, or the primary.
#[test]
fn queue_with_a_gap_after_memory_was_full() {
    for seed in SEEDS {
        let mut world = in_sync(seed, 2, 8 << 10);
        world.writing = true;
        let gap = world.run_until(60_000, |world| {
            world.primary.as_ref().is_some_and(|primary| {
                let observed = primary.log.observe();
                observed.queued_requests > 0 && observed.memory_after_disk > 3
            })
        });
        assert!(gap, "seed {seed}: {:?}", world.violation);
        match seed % 3 {
            0 => world.crash_primary(true),
            1 => world.crash_primary(false),
            _ => world.network.standing().into_iter().for_each(|wire| world.network.cut(wire, 3)),
        }
        world.run_until(500, |_| false);
        ends_well(world, seed);
    }
}

/// A request is not stored; the one behind it, of the same block, must not be stored in its place.
#[test]
fn store_error_followed_by_an_overlapping_request() {
    for seed in SEEDS {
        let mut world = in_sync(seed, 2, 1 << 20);
        world.write(0, 0, 2, false, false);
        world.run_until(100, |_| false);
        world.store.disks[0].lock().fail_next_write = true;
        for _ in 0..4 {
            world.write(0, 0, 2, false, false);
            world.run_until(seed % 7, |_| false);
        }
        let failed = world.run_until(20_000, |world| !world.store.disks[0].lock().fail_next_write);
        assert!(failed, "seed {seed}: {:?}", world.violation);
        world.run_until(200, |_| false);
        ends_well(world, seed);
    }
}

/// A thread that is about to write when its session gives way writes later; the new session must have waited for it.
#[test]
fn late_thread_of_an_old_session() {
    let mut late = 0;
    for seed in SEEDS {
        let mut world = in_sync(seed, 3, 1 << 20);
        world.writing = true;
        let until = world.now + std::time::Duration::from_millis(900);
        for _ in 0..2000 {
            world.step();
            if world.peer.as_mut().is_some_and(|peer| peer.freeze(until)) {
                break;
            }
        }
        world.network.standing().into_iter().for_each(|wire| world.network.cut(wire, 2));
        late += u64::from(world.run_until(3000, |world| {
            world.peer.as_ref().is_some_and(super::mirror::PeerProcess::has_late_thread)
        }));
        world.run_until(1500, |_| false);
        ends_well(world, seed);
    }
    assert!(late > 5, "{late} late threads only");
}

/// All that was heard in an earlier run of both sides is played again, to both: nothing of it counts.
#[test]
fn recorded_heartbeats_of_an_earlier_run() {
    for seed in SEEDS {
        let mut world = in_sync(seed, 2, 1 << 20);
        world.run_until(500, |_| false);
        world.crash_primary(true);
        world.crash_peer(true);
        assert!(world.run_until(20_000, World::is_in_sync), "seed {seed}: {:?}", world.violation);
        let before = world.primary.as_ref().unwrap().machine.snapshot(world.now);
        for _ in 0..1500 {
            world.replay();
            world.step();
        }
        let after = world.primary.as_ref().unwrap().machine.snapshot(world.now);
        assert_eq!(
            (before.sessions, before.interruptions),
            (after.sessions, after.interruptions),
            "seed {seed}"
        );
        ends_well(world, seed);
    }
}

/// A region map could not be synced, so that what the queue then gave up was not marked in it either. After a clean
/// unmount nothing said that those regions differ: the link was live, the images were not the same.
#[test]
fn region_map_that_failed_before_the_queue_was_given_up() {
    for seed in SEEDS {
        let mut world = in_sync(seed, 2, 1 << 20);
        world.write(0, 0, 1, false, false);
        assert!(world.run_until(20_000, World::is_in_sync), "seed {seed}: {:?}", world.violation);
        world.crash_peer(false);
        world.up_at[super::network::PEER] = world.now + std::time::Duration::from_secs(3600);
        world.write(0, 0, 2, false, false);
        world.host.disk.fail_next_sync();
        // A run of regions that has no mark yet, or no longer: it can't be marked now.
        world.write(0, 60, 1, false, false);
        world.host.disk.fail_next_write();
        world.run_until(300, |world| {
            world.primary.as_ref().is_some_and(|primary| primary.log.observe().given_up.is_some())
        });
        world.restart_primary();
        world.up_at[super::network::PEER] = world.now;
        ends_well(world, seed);
    }
}
