//! Opening a log: region maps and queue as the last stop left them.

use super::core::{Core, LunState, Resync};
use super::{LogConfig, LogError};
use crate::ids::{Epoch, LunId, RegionNo};
use crate::medium::Folder;
use crate::queue::index::Index;
use crate::queue::recovery::{self, Recovered};
use crate::queue::segment::LunTable;
use crate::regions::RegionMap;
use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

const BUDGET_MIN: u64 = 1 << 30;

pub(crate) struct Opened {
    pub(crate) core: Core,
    pub(crate) maps: Vec<Arc<RegionMap>>,
    pub(crate) index: Index,
    /// Resync markers that the queue has.
    pub(crate) begins: Vec<(LunId, Epoch)>,
    pub(crate) ends: Vec<(LunId, Epoch)>,
}

/// A tenth of the free space, at least 1 GiB.
pub(crate) fn default_budget(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a value of this plain structure.
    let mut figures: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    if unsafe { libc::statvfs(path.as_ptr(), &mut figures) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((figures.f_bavail.saturating_mul(figures.f_frsize) / 10).max(BUDGET_MIN))
}

fn mark(
    config: &LogConfig,
    maps: &[Arc<RegionMap>],
    marker: Option<u64>,
    recovered: &mut Recovered,
) -> Result<(), LogError> {
    if let Some(last) = marker
        && recovered.doubt.is_none()
        && recovered.last != last
    {
        recovered.doubt = Some("records at its end are missing".into());
    }
    if let Some(doubt) = &recovered.doubt {
        log::error!("the queue is damaged, what it lacks is left to a resync: {doubt}");
    }
    for (index, (lun, map)) in config.luns.iter().zip(maps).enumerate() {
        let doubt = recovered.doubt.is_some();
        let unclean = !lun.clean || marker.is_none() || doubt;
        if lun.all_regions {
            map.set_resync_all();
        } else if unclean {
            map.resync_marked(doubt);
        }
        let cut = recovered.cut_regions.iter().filter(|(id, _)| usize::from(id.0) == index);
        map.set_resync(cut.map(|(_, region)| *region), true);
        let mut kept = vec![false; map.regions() as usize];
        for (region, _) in &recovered.region_epochs[index] {
            if let Some(kept) = kept.get_mut(region.0 as usize) {
                *kept = true;
            }
        }
        let has = |region: RegionNo| kept.get(region.0 as usize).copied().unwrap_or(false);
        map.settle_queued(has, unclean);
        let error = |source| LogError::Io { action: "write", path: map.path().to_path_buf(), source };
        map.flush().map_err(error)?;
    }
    Ok(())
}

/// Reads maps and queue, marks what the stop left in doubt, cuts the queue after its last barrier.
pub(crate) fn open(config: &LogConfig, folder: &Folder) -> Result<Opened, LogError> {
    let error =
        |action: &'static str| move |source| LogError::Io { action, path: config.dir.clone(), source };
    let marker = recovery::take_clean(folder).map_err(error("read"))?;
    let mut maps = Vec::new();
    for lun in &config.luns {
        let (map, _) = RegionMap::open(folder, lun.uuid, lun.generation, lun.size_bytes)
            .map_err(error("open the region map in"))?;
        maps.push(Arc::new(map));
    }
    let table: LunTable = config.luns.iter().map(|lun| (lun.uuid, lun.generation)).collect();
    let recovered = recovery::recover(folder, &table, config.incarnation, |recovered| {
        mark(config, &maps, marker, recovered)
    })?;
    let clean = marker.is_some() && recovered.doubt.is_none();
    let mut luns = Vec::new();
    for (index, (lun, map)) in config.luns.iter().zip(&maps).enumerate() {
        let chain = &recovered.chains[index];
        let state = map.state();
        let mut durable = lun.durable_epoch.max(state.durable).max(map.floor());
        let mut durable_previous = if durable == state.durable { state.durable_previous } else { Epoch(0) };
        let mut retained: VecDeque<Epoch> = VecDeque::new();
        for (previous, epoch) in chain {
            if *epoch == durable {
                durable_previous = *previous;
            }
            if *epoch <= durable {
                continue;
            }
            if retained.is_empty() && *previous != durable {
                // Nothing leaves the queue that is not durable on the mirror.
                (durable, durable_previous) = (*previous, Epoch(0));
            }
            retained.push_back(*epoch);
        }
        let mut region_epoch = vec![0; map.regions() as usize];
        for (region, epoch) in &recovered.region_epochs[index] {
            if let Some(last) = region_epoch.get_mut(region.0 as usize) {
                *last = epoch.0;
            }
        }
        luns.push(LunState {
            id: lun.id,
            durable,
            durable_previous,
            retained,
            in_open: false,
            region_epoch,
            locally_synced: Epoch(0),
            uncertain: !lun.clean || !clean,
            dropped_before: recovered.dropped_before[index],
            base: None,
            resync: Resync::Off,
            begin_epoch: None,
            source: None,
            map: Arc::clone(map),
        });
    }
    let mut core = Core::new(config, luns);
    let durable = core.luns.iter().map(|state| state.durable).max().unwrap_or_default();
    core.last_closed = recovered.last_closed.max(durable);
    let first =
        recovered.disk.at_or_after(0).and_then(|segment| segment.marks.front()).map(|mark| mark.epoch);
    core.durable = first.map_or(core.last_closed, |first| Epoch(first.0 - 1));
    core.current = recovered
        .disk
        .segments
        .values()
        .next_back()
        .filter(|segment| !segment.finished)
        .map(|last| last.first);
    core.garbage.extend(recovered.garbage.iter().map(|path| (path.clone(), true)));
    let mut index = Index::new(folder);
    if recovered.disk.segments.is_empty() {
        index.discard();
    } else {
        let kept: usize = recovered.records;
        let ends = recovered.first.map(|first| (first, recovered.last));
        if !(clean && index.open() && index.holds(kept, ends)) {
            index.rebuild(&recovered.disk);
        }
    }
    core.disk = recovered.disk;
    Ok(Opened { core, maps, index, begins: recovered.begins, ends: recovered.ends })
}

/// Goes on with the resync that the LUN was in, or begins the one that it needs.
pub(crate) fn resume_resync(
    core: &mut Core,
    index: usize,
    begins: &[(LunId, Epoch)],
    ends: &[(LunId, Epoch)],
) {
    let state = &mut core.luns[index];
    let id = state.id;
    let last = |markers: &[(LunId, Epoch)]| {
        markers.iter().rev().find(|(lun, _)| *lun == id).map(|(_, epoch)| *epoch)
    };
    let (begin, end) = (last(begins), last(ends));
    let needs = state.map.needs_resync();
    if !needs && !state.map.state().resyncing {
        return;
    }
    if !needs && end.is_some() && end > begin {
        state.resync = end.map_or(Resync::Off, Resync::Ending);
        return;
    }
    if begin > end && !state.uncertain {
        state.begin_epoch = begin;
        state.resync = Resync::Running { cursor: RegionNo(0), skip_holes: false, in_flight: VecDeque::new() };
        return;
    }
    let whole = state.map.all_resync();
    core.begin_resync(id, whole, false);
}
