//! What goes wrong, and how often.

use super::network::{PEER, PRIMARY};
use super::random::Random;
use super::world::World;
use std::time::Duration;

/// Chances of faults: once in so many steps; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) drop_percent: u64,
    pub(super) duplicate_percent: u64,
    pub(super) delay_max_us: u64,
    pub(super) cut: u64,
    pub(super) stall: u64,
    pub(super) partition: u64,
    pub(super) primary_crash: u64,
    pub(super) peer_crash: u64,
    pub(super) restart: u64,
    pub(super) store_error: u64,
    pub(super) queue_error: u64,
    pub(super) freeze: u64,
    pub(super) replay: u64,
}

impl Faults {
    pub(super) fn random(random: &mut Random) -> Self {
        let mut rare = |times: u64| if random.percent(30) { 0 } else { times / 2 + random.below(times) };
        let (cut, stall, partition) = (rare(500), rare(600), rare(1500));
        let (primary_crash, peer_crash, restart) = (rare(2500), rare(2000), rare(5000));
        let (store_error, queue_error, freeze, replay) = (rare(3000), rare(6000), rare(300), rare(60));
        Self {
            drop_percent: random.below(30),
            duplicate_percent: random.below(10),
            delay_max_us: random.below(40_000),
            cut,
            stall,
            partition,
            primary_crash,
            peer_crash,
            restart,
            store_error,
            queue_error,
            freeze,
            replay,
        }
    }
}

impl World {
    /// The process is killed, or the machine's power is cut.
    pub(super) fn crash_primary(&mut self, power: bool) {
        let Some(primary) = self.primary.take() else { return };
        let silent = power && self.random.percent(60);
        if let Some(session) = &primary.session {
            session.gone(silent, &mut self.network);
        }
        drop(primary);
        self.host.disk.process_killed();
        if power {
            let keep = self.random.keep_percent();
            let random = &mut self.random;
            self.host.disk.power_cut(keep, &mut |bound| random.below(bound));
            for image in &self.host.images {
                image.lock().power_cut(keep, random);
            }
        }
        self.counts.primary_crashes += 1;
        self.note(format!("primary crashes, power {power}, silent {silent}"));
        self.up_at[PRIMARY] = self.now + Duration::from_millis(20 + self.random.below(400));
    }

    pub(super) fn crash_peer(&mut self, power: bool) {
        let keep = self.random.keep_percent();
        let keep_label = self.random.percent(50);
        self.crash_peer_keeping(power.then_some((keep, keep_label)));
    }

    /// `power`: how much of the unsynced blocks stays, and whether an unsynced label does.
    pub(super) fn crash_peer_keeping(&mut self, power: Option<(u64, bool)>) {
        let Some(peer) = self.peer.take() else { return };
        let silent = power.is_some() && self.random.percent(60);
        peer.gone(silent, &mut self.network);
        for disk in &self.store.disks {
            let mut disk = disk.lock();
            match power {
                Some((keep, keep_label)) => disk.power_cut(keep, keep_label, &mut self.random),
                None => disk.killed(),
            }
        }
        drop(peer);
        self.counts.peer_crashes += 1;
        self.note(format!("peer crashes, power {power:?}, silent {silent}"));
        self.up_at[PEER] = self.now + Duration::from_millis(20 + self.random.below(400));
    }

    pub(super) fn restart_primary(&mut self) {
        let Some(primary) = self.primary.take() else { return };
        self.note("primary is unmounted".into());
        if primary.close(&mut self.host, &mut self.network) {
            self.broken_line = true;
        }
        self.up_at[PRIMARY] = self.now + Duration::from_millis(self.random.below(200));
    }

    pub(super) fn fault(&mut self) -> bool {
        let faults = self.faults;
        let wires = || self.network.standing();
        if self.random.once_in(faults.cut) {
            let wires = wires();
            if !wires.is_empty() {
                let wire = wires[self.random.below(wires.len() as u64) as usize];
                self.network.cut(wire, self.random.below(20) as usize);
                self.note(format!("wire {wire} is cut"));
                return true;
            }
        }
        if self.random.once_in(faults.stall) {
            let wires = self.network.standing();
            if !wires.is_empty() {
                let wire = wires[self.random.below(wires.len() as u64) as usize];
                self.network.stall(wire, self.now + Duration::from_millis(self.random.below(1500)));
                return true;
            }
        }
        if self.random.once_in(faults.partition) {
            let until = self.now + Duration::from_millis(50 + self.random.below(600));
            let which = 1 + self.random.below(3);
            for side in [PRIMARY, PEER] {
                if which & (1 << side) != 0 {
                    self.network.blocked[side] = true;
                    self.open_at[side] = until;
                }
            }
            self.note(format!("partition {which}"));
            return true;
        }
        if self.random.once_in(faults.primary_crash) && self.primary.is_some() {
            if self.random.percent(50) {
                // In the middle of something.
                self.host.disk.cut_after(self.random.below(12));
            } else {
                let power = self.random.percent(70);
                self.crash_primary(power);
            }
            return true;
        }
        if self.random.once_in(faults.peer_crash) && self.peer.is_some() {
            if self.random.percent(50) {
                let lun = self.random.below(self.settings.luns as u64) as usize;
                self.store.disks[lun].lock().changes_left = Some(self.random.below(12));
            } else {
                let power = self.random.percent(70);
                self.crash_peer(power);
            }
            return true;
        }
        if self.random.once_in(faults.restart) && self.primary.is_some() {
            self.restart_primary();
            return true;
        }
        if self.random.once_in(faults.store_error) {
            let lun = self.random.below(self.settings.luns as u64) as usize;
            let mut disk = self.store.disks[lun].lock();
            if self.random.percent(60) {
                disk.fail_next_write = true;
            } else {
                disk.fail_next_sync = true;
            }
            return true;
        }
        if self.random.once_in(faults.queue_error) {
            self.queue_failed = true;
            if self.random.percent(60) {
                self.host.disk.fail_next_write();
            } else {
                self.host.disk.fail_next_sync();
            }
            return true;
        }
        if self.random.once_in(faults.freeze)
            && let Some(peer) = &mut self.peer
        {
            return peer.freeze(self.now + Duration::from_millis(self.random.below(700)));
        }
        self.random.once_in(faults.replay) && self.replay()
    }
}
