//! The mirror images of one session: which requests are applied, and what a barrier does.

use super::gather::Gather;
use crate::store::{LunHello, MirrorImage, MirrorStore, StoreRefusal};
use crate::wire::Outcome;
use mirrorfs_journal::log::PeerLun;
use mirrorfs_journal::{Body, Epoch, LunId, MirrorRequest, REGION_BYTES, Sequence};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Payload bytes of one gathered epoch at most; the log ends an epoch before it exceeds 64 MiB.
const GATHER_BYTES_MAX: u64 = 128 << 20;

/// Why a request could not be stored, or a barrier not passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The system's error number, 0 if there is none.
    pub(crate) errno: i32,
    /// In words.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn rule(message: String) -> Self {
        Self { errno: 0, message }
    }

    fn io(lun: &str, action: &str, error: &io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("{action} on mirror of LUN {lun}: {error}"),
        }
    }
}

/// One open LUN.
struct Lun {
    hello: LunHello,
    image: Arc<dyn MirrorImage>,
    /// Last epoch that is durable; only a barrier raises it, while no request is being applied.
    durable: AtomicU64,
    /// Last epoch with a request of this LUN that is not a marker.
    touched: AtomicU64,
    /// Its next epoch is held in memory until its barrier; changed only by `begin` and by barriers.
    gathering: AtomicBool,
    gathered: Mutex<Gather>,
    /// Sequence of the last `ResyncBegin` whose label is synced. Held while the label is written: the other threads,
    /// which read a copy of the same record, wait for it here.
    resync_begun: Mutex<Sequence>,
    /// The chain starts anew at the next barrier that names this LUN: a resync was begun.
    chain_restarted: AtomicBool,
    /// A barrier of this session has named this LUN.
    chain_joined: AtomicBool,
    /// The open epoch holds a `ResyncEnd`.
    resync_ends: AtomicBool,
    resyncing: AtomicBool,
}

/// All LUNs of a session; position = `LunId`. Dropping it closes the images.
pub(crate) struct Images {
    luns: Vec<Lun>,
}

impl Images {
    /// Opens every LUN of the greeting.
    pub(crate) fn open(
        store: &dyn MirrorStore,
        node: &str,
        hellos: &[LunHello],
    ) -> Result<Self, StoreRefusal> {
        let mut luns = Vec::with_capacity(hellos.len());
        for hello in hellos {
            let image = store.open(node, hello)?;
            let label = image.label();
            luns.push(Lun {
                hello: hello.clone(),
                image,
                durable: AtomicU64::new(label.durable_epoch.0),
                touched: AtomicU64::new(0),
                gathering: AtomicBool::new(false),
                gathered: Mutex::default(),
                resync_begun: Mutex::default(),
                chain_restarted: AtomicBool::new(false),
                chain_joined: AtomicBool::new(false),
                resync_ends: AtomicBool::new(false),
                resyncing: AtomicBool::new(label.resyncing),
            });
        }
        Ok(Self { luns })
    }

    /// What the labels say, for the welcome.
    pub(crate) fn states(&self) -> Vec<PeerLun> {
        (0_u16..)
            .zip(&self.luns)
            .map(|(id, lun)| {
                let label = lun.image.label();
                PeerLun {
                    id: LunId(id),
                    durable_epoch: label.durable_epoch,
                    resyncing: label.resyncing,
                    created: label.created,
                }
            })
            .collect()
    }

    /// Name, durable epoch and resync state of each, for `status`.
    pub(crate) fn status(&self) -> Vec<(String, Epoch, bool)> {
        self.luns
            .iter()
            .map(|lun| (lun.hello.name.clone(), durable_of(lun), lun.resyncing.load(Ordering::Relaxed)))
            .collect()
    }

    /// Takes the session's first message: which LUNs start with a gathered epoch.
    pub(crate) fn begin(&self, gather: &[u16]) -> Result<(), Failure> {
        for &id in gather {
            self.lun(LunId(id))?.gathering.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn lun(&self, id: LunId) -> Result<&Lun, Failure> {
        self.luns
            .get(usize::from(id.0))
            .ok_or_else(|| Failure::rule(format!("LUN {} was not in the greeting", id.0)))
    }

    /// Applies one record (anything but a barrier). The caller's thread may run beside other connections' threads, in
    /// the same epoch only.
    pub(crate) fn apply(&self, request: &MirrorRequest) -> Result<Outcome, Failure> {
        let lun = self.lun(request.lun)?;
        if request.epoch <= durable_of(lun) && !matches!(request.body, Body::Check { .. }) {
            return Ok(Outcome::Stored);
        }
        if let Some((offset, length)) = request.range() {
            lun.check_range(offset, length)?;
        }
        match &request.body {
            // The payload's checksum was checked when it was read.
            Body::Write { offset, payload, .. } => {
                lun.touch(request.epoch);
                if lun.gathering.load(Ordering::Acquire) {
                    let mut gathered = lun.gathered.lock();
                    gathered.write(*offset, payload.clone());
                    if gathered.data_bytes() > GATHER_BYTES_MAX {
                        return Err(Failure::rule(format!(
                            "epoch {} of LUN {} is too large",
                            request.epoch, lun.hello.name
                        )));
                    }
                } else {
                    lun.image.write(*offset, payload).map_err(|error| lun.failed("write", &error))?;
                }
                Ok(Outcome::Stored)
            }
            Body::Discard { offset, length } => {
                lun.touch(request.epoch);
                if lun.gathering.load(Ordering::Acquire) {
                    lun.gathered.lock().discard(*offset, *length);
                } else {
                    lun.image.discard(*offset, *length).map_err(|error| lun.failed("discard", &error))?;
                }
                Ok(Outcome::Stored)
            }
            Body::Check { offset, length, hash } => {
                let equal = lun.hash(*offset, *length)? == *hash;
                Ok(if equal { Outcome::Equal } else { Outcome::Different })
            }
            Body::ResyncBegin { .. } => {
                let mut begun = lun.resync_begun.lock();
                if *begun < request.sequence {
                    lun.image.set_resyncing(true, &[]).map_err(|error| lun.failed("label", &error))?;
                    lun.resyncing.store(true, Ordering::Relaxed);
                    lun.chain_restarted.store(true, Ordering::Release);
                    *begun = request.sequence;
                }
                Ok(Outcome::Stored)
            }
            Body::ResyncEnd => {
                lun.resync_ends.store(true, Ordering::Release);
                Ok(Outcome::Stored)
            }
            Body::Barrier { .. } => Err(Failure::rule("a barrier is not applied".to_owned())),
        }
    }

    /// All threads have read the barrier of `epoch` and none applies: judges each LUN's chain, applies what was
    /// gathered, syncs each image that has requests in the epoch once.
    pub(crate) fn complete(&self, epoch: Epoch, previous: &[(LunId, Epoch)]) -> Result<(), Failure> {
        for &(id, before) in previous {
            let lun = self.lun(id)?;
            let durable = durable_of(lun);
            if durable >= epoch {
                continue;
            }
            // After a power cut the label may be behind what we had answered durable, and the primary had heard.
            let joins = !lun.chain_joined.swap(true, Ordering::AcqRel)
                && durable < before
                && before <= lun.hello.durable_epoch;
            if !lun.chain_restarted.swap(false, Ordering::AcqRel) && durable != before && !joins {
                return Err(Failure::rule(format!(
                    "gap: epoch {epoch} of LUN {} follows epoch {before}, the mirror has {durable}",
                    lun.hello.name
                )));
            }
            if joins {
                // Or another power cut could leave a label two epochs behind, which is taken for a gap, or sent again from there
                // beneath what is newer.
                lun.image.sync_epoch(before).map_err(|error| lun.failed("sync", &error))?;
                lun.durable.store(before.0, Ordering::Release);
            }
            if lun.gathering.swap(false, Ordering::AcqRel) {
                lun.gathered.lock().apply(lun.image.as_ref()).map_err(|error| lun.failed("write", &error))?;
            }
            lun.image.sync_epoch(epoch).map_err(|error| lun.failed("sync", &error))?;
            lun.durable.store(epoch.0, Ordering::Release);
        }
        for lun in &self.luns {
            if lun.touched.load(Ordering::Acquire) == epoch.0 && durable_of(lun) < epoch {
                return Err(Failure::rule(format!(
                    "barrier {epoch} does not name LUN {}, which has requests in it",
                    lun.hello.name
                )));
            }
            if lun.resync_ends.swap(false, Ordering::AcqRel) {
                lun.image
                    .set_resyncing(false, &lun.hello.generations)
                    .map_err(|error| lun.failed("label", &error))?;
                lun.resyncing.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn durable_of(lun: &Lun) -> Epoch {
    Epoch(lun.durable.load(Ordering::Acquire))
}

impl Lun {
    fn failed(&self, action: &str, error: &io::Error) -> Failure {
        Failure::io(&self.hello.name, action, error)
    }

    fn touch(&self, epoch: Epoch) {
        self.touched.fetch_max(epoch.0, Ordering::AcqRel);
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), Failure> {
        let end = offset.checked_add(length).filter(|&end| end <= self.hello.size_bytes);
        let whole =
            offset.is_multiple_of(512) && length.is_multiple_of(512) && length > 0 && length <= REGION_BYTES;
        if end.is_some() && whole {
            return Ok(());
        }
        Err(Failure::rule(format!(
            "range of {length} bytes at {offset} does not fit LUN {} of {} bytes",
            self.hello.name, self.hello.size_bytes
        )))
    }

    fn hash(&self, offset: u64, length: u64) -> Result<[u8; 16], Failure> {
        // Fits: `check_range` bounds it by a region.
        let mut buffer = vec![0; length as usize];
        self.image.read(offset, &mut buffer).map_err(|error| self.failed("read", &error))?;
        if self.gathering.load(Ordering::Acquire) {
            self.gathered.lock().overlay(offset, &mut buffer);
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::hash(&buffer).as_bytes()[..16]);
        Ok(hash)
    }
}

#[cfg(test)]
mod tests;
