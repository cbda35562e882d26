//! A mount's process: opens the images, wires file system, mirror log and link together, serves until it is unmounted.

mod handler;
mod lun_list;
mod settings;
mod stopped;

pub(crate) use lun_list::{lun_names, mirrored_luns};
pub(crate) use settings::Settings;
pub(crate) use stopped::stopped_status;

use crate::cli::Mode;
use crate::control::Server;
use crate::exit_code::{CliError, Context, ExitCode};
use crate::metrics::Endpoint;
use crate::mirror_store::DirectoryStore;
use crate::registry::{self, Known};
use crate::state_dir::make_private;
use handler::MountHandler;
use lun_list::LunEntry;
use mirrorfs_fs::ext4::error::FsError;
use mirrorfs_fs::ext4::{Ext4, Options};
use mirrorfs_fs::fuse::{Frontend, FrontendConfig, FrontendLun, Unmounter, clear_stale_mount};
use mirrorfs_fs::image::{FormatOptions, Image, ImageError, Lun, OpenOptions, Role, format};
use mirrorfs_journal::log::{LogConfig, LogLun, MirrorLog};
use mirrorfs_journal::{Incarnation, LunId};
use mirrorfs_net::link::{Link, LinkConfig};
use mirrorfs_net::peer::{PeerConfig, PeerServer};
use mirrorfs_net::status::{LinkState, LinkStatus};
use mirrorfs_net::store::LunHello;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a mount waits for an image that another process is still closing: umount(8) returns before the daemon has ended.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long an unmount waits for a live peer to have everything.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the kernel may take to write out before a mount is taken down by force.
const WRITE_OUT_TIMEOUT: Duration = Duration::from_secs(10);

/// One LUN being served.
pub(crate) struct ServedLun {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Its number in the mirror log; `None`: not mirrored.
    pub(crate) id: Option<LunId>,
    pub(crate) image: Image,
    pub(crate) lun: Arc<Lun>,
    pub(crate) fs: Arc<Ext4>,
}

/// What the threads of a mount's process share.
pub(crate) struct Served {
    pub(crate) settings: Settings,
    pub(crate) luns: Vec<ServedLun>,
    pub(crate) log: Option<Arc<MirrorLog>>,
    /// Taken when the mount ends.
    pub(crate) link: Mutex<Option<Link>>,
    pub(crate) peer: Mutex<Option<PeerServer>>,
}

/// Serves the mount until it has ended; `ready` is called once the mount point answers.
pub(crate) fn run(
    settings: Settings,
    ready: impl FnOnce() -> Result<(), CliError>,
) -> Result<ExitCode, CliError> {
    if clear_stale_mount(&settings.mountpoint)
        .context(|| format!("cannot look at {}", settings.mountpoint.display()))?
    {
        log::warn!(
            "cleared the stale mount point {} of a process that is gone",
            settings.mountpoint.display()
        );
    }
    check_mountpoint(&settings.mountpoint)?;
    make_private(&settings.state_dir)?;
    if let Some(dir) = settings.mirror_dir.as_ref().filter(|dir| dir.starts_with(&settings.mountpoint)) {
        return Err(CliError::usage(format!(
            "{} is inside the mount point: the mirror must be elsewhere",
            dir.display()
        )));
    }
    let metrics = settings.metrics.map(Endpoint::bind).transpose()?;
    let images = open_images(&settings)?;
    let log = open_log(&settings, &images)?;
    let luns = open_file_systems(&settings, images, log.as_ref())?;
    let served = Arc::new(Served { luns, log, link: Mutex::new(None), peer: Mutex::new(None), settings });
    let mounted = match start_network(&served).and_then(|()| mount(&served)) {
        Ok(mounted) => mounted,
        Err(error) => {
            // Nobody has written anything: no reason to leave the images to be recovered by the next mount.
            close(&served, Duration::ZERO)?;
            return Err(error);
        }
    };
    let unmounter = mounted.unmounter();
    let handler = Arc::new(MountHandler { served: served.clone(), unmounter: unmounter.clone() });
    let control = Server::start(&served.settings.state_dir, handler.clone())?;
    let metrics = metrics.map(|endpoint| endpoint.serve(handler)).transpose()?;
    unmount_on_signals(unmounter)?;
    remember(&served.settings);
    log::info!(
        "{} is mounted, state in {}",
        served.settings.mountpoint.display(),
        served.settings.state_dir.display()
    );
    ready()?;
    if let Err(error) = mounted.wait() {
        log::error!("a FUSE thread ended early: {error}");
    }
    log::info!("{} is unmounted", served.settings.mountpoint.display());
    let closed = close(&served, CATCH_UP_TIMEOUT);
    drop(metrics);
    // Only now: `mirrorfs umount` waits for the socket to go.
    drop(control);
    closed.map(|()| ExitCode::Success)
}

fn check_mountpoint(mountpoint: &Path) -> Result<(), CliError> {
    let shown = mountpoint.display();
    let metadata = std::fs::metadata(mountpoint).map_err(|error| {
        let next = if error.kind() == std::io::ErrorKind::NotFound {
            format!(": make it with mkdir {shown}")
        } else {
            String::new()
        };
        CliError::failure(format!("mount point {shown}: {error}{next}"))
    })?;
    if !metadata.is_dir() {
        return Err(CliError::failure(format!("mount point {shown} is not a directory")));
    }
    let mut entries = std::fs::read_dir(mountpoint).context(|| format!("mount point {shown}"))?;
    if entries.next().is_some() {
        if let Some(pid) = serving_process(mountpoint) {
            let message =
                format!("{shown} is already mounted, by process {pid} (mirrorfs status {shown} tells more)");
            return Err(CliError::new(ExitCode::Busy, message));
        }
        return Err(CliError::failure(format!(
            "mount point {shown} is not empty: its files would be hidden; use an empty directory"
        )));
    }
    Ok(())
}

/// The process that already serves this mount point.
fn serving_process(mountpoint: &Path) -> Option<u32> {
    let known = registry::all().ok()?.into_iter().find(|known| known.mountpoint == mountpoint)?;
    crate::commands::status::status_of(&known.state_dir).ok()?.pid
}

fn image_error(error: &ImageError) -> CliError {
    let code = match error {
        ImageError::Locked { .. } | ImageError::LoopDevice { .. } => ExitCode::Busy,
        _ => ExitCode::Failure,
    };
    CliError::new(code, error.to_string())
}

/// Opens (or makes) all images, locked, their incarnations raised to one common number.
fn open_images(settings: &Settings) -> Result<Vec<(LunEntry, PathBuf, Image)>, CliError> {
    let entries = lun_list::keep(settings)?;
    let mut images = Vec::new();
    for entry in entries {
        let path =
            settings.image.clone().unwrap_or_else(|| settings.state_dir.join(format!("{}.img", entry.name)));
        if !path.exists() {
            if settings.image.is_some() {
                return Err(CliError::failure(format!("there is no image {}", path.display())));
            }
            log::info!("making {} of {}", path.display(), crate::units::show_size(settings.size));
            let options = FormatOptions { name: entry.name.clone(), size_bytes: settings.size };
            format(&path, &options).map_err(|error| image_error(&error))?;
        }
        let options = OpenOptions { role: Role::Primary, name: entry.name.clone(), lock_wait: LOCK_WAIT };
        let image = Image::open(&path, &options).map_err(|error| image_error(&error))?;
        images.push((entry, path, image));
    }
    let highest = images.iter().map(|(_, _, image)| image.label().incarnation).max().unwrap_or_default();
    for (_, path, image) in &images {
        if image.label().incarnation != highest {
            image
                .update_label(|label| label.incarnation = highest)
                .context(|| format!("cannot write the label of {}", path.display()))?;
        }
    }
    Ok(images)
}

fn open_log(
    settings: &Settings,
    images: &[(LunEntry, PathBuf, Image)],
) -> Result<Option<Arc<MirrorLog>>, CliError> {
    if settings.link.is_none() {
        return Ok(None);
    }
    let luns: Vec<LogLun> =
        images.iter().filter_map(|(entry, _, image)| Some(image.log_lun(entry.id?))).collect();
    let incarnation =
        images.iter().map(|(_, _, image)| image.label().incarnation).max().unwrap_or(Incarnation(1));
    let config = LogConfig {
        dir: settings.state_dir.join("queue"),
        memory_bytes_max: settings.memory,
        queue_bytes_max: settings.queue_max,
        incarnation,
        luns,
    };
    let log = MirrorLog::open(config).context(|| "cannot open the mirror log".into())?;
    log.set_on_outage(settings.on_outage);
    log.set_eager(settings.mode == Mode::Sync);
    for (entry, path, image) in images {
        if entry.id.is_some() {
            image.regions_marked().context(|| format!("cannot write the label of {}", path.display()))?;
        }
    }
    Ok(Some(log))
}

fn open_file_systems(
    settings: &Settings,
    images: Vec<(LunEntry, PathBuf, Image)>,
    log: Option<&Arc<MirrorLog>>,
) -> Result<Vec<ServedLun>, CliError> {
    let mut served = Vec::new();
    for (entry, path, image) in images {
        let mirror = entry.id.zip(log.cloned());
        let lun = Lun::new(image.backing(), mirror);
        if let (Some(id), Some(log)) = (entry.id, log) {
            log.set_region_source(id, lun.region_source());
        }
        let options = Options { read_only: settings.read_only, no_atime: settings.no_atime };
        let fs = Ext4::open(lun.clone(), options).map_err(|error| {
            let next = match error {
                FsError::Corrupt { .. } => {
                    " (check it with e2fsck -f; the label behind the file system does not mind)"
                }
                _ => "",
            };
            CliError::failure(format!("cannot serve {}: {error}{next}", path.display()))
        })?;
        served.push(ServedLun {
            name: entry.name,
            path,
            id: entry.id.filter(|_| log.is_some()),
            image,
            lun,
            fs,
        });
    }
    Ok(served)
}

fn start_network(served: &Arc<Served>) -> Result<(), CliError> {
    let settings = &served.settings;
    if let (Some(link), Some(log)) = (&settings.link, &served.log) {
        let mut luns: Vec<(LunId, LunHello)> = served.luns.iter().filter_map(hello).collect();
        luns.sort_by_key(|(id, _)| *id);
        let config = LinkConfig {
            peer: link.peer.clone(),
            workers: link.workers,
            node: link.node.clone(),
            security: link.security.clone(),
            times: settings.times,
            luns: luns.into_iter().map(|(_, hello)| hello).collect(),
        };
        let started = Link::start(config, log.clone()).context(|| "cannot start the link".into())?;
        *served.link.lock() = Some(started);
    }
    if let (Some(listen), Some(dir)) = (&settings.listen, &settings.mirror_dir) {
        make_private(dir)?;
        let config =
            PeerConfig { listen: listen.addr, security: listen.security.clone(), times: settings.times };
        let store = Arc::new(DirectoryStore::new(dir.clone()));
        let server = PeerServer::start(config, store).context(|| "cannot be the other host's peer".into())?;
        *served.peer.lock() = Some(server);
    }
    Ok(())
}

fn hello(served: &ServedLun) -> Option<(LunId, LunHello)> {
    let label = served.image.label();
    let hello = LunHello {
        name: served.name.clone(),
        uuid: label.uuid,
        size_bytes: served.image.size_bytes(),
        generations: label.generations.chain().to_vec(),
        durable_epoch: label.durable_epoch,
    };
    Some((served.id?, hello))
}

fn mount(served: &Served) -> Result<mirrorfs_fs::fuse::Mounted, CliError> {
    let settings = &served.settings;
    let config = FrontendConfig {
        mountpoint: settings.mountpoint.clone(),
        luns: served
            .luns
            .iter()
            .map(|served| FrontendLun {
                name: served.name.clone(),
                fs: served.fs.clone(),
                lun: served.lun.clone(),
            })
            .collect(),
        mode: match settings.mode {
            Mode::Async => mirrorfs_fs::fuse::Mode::Async,
            Mode::Sync => mirrorfs_fs::fuse::Mode::Sync,
        },
        threads: settings.threads.map(usize::from),
        source: settings.source.clone().into(),
        options: settings.mount_options.clone(),
    };
    Frontend::mount(config).map_err(|error| CliError::failure(error.to_string()))
}

/// SIGTERM, SIGINT and SIGHUP end the mount in good order.
fn unmount_on_signals(unmounter: Unmounter) -> Result<(), CliError> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .context(|| "cannot watch for signals".into())?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                log::info!("signal {signal}: unmounting");
                if let Err(error) = unmounter.unmount().or_else(|_| take_down(&unmounter)) {
                    log::warn!("cannot unmount: {error}");
                }
            }
        })
        .map(drop)
        .context(|| "cannot start a thread".into())
}

/// Takes the mount down although it is in use; what the kernel still holds is written out first, if that does not hang.
fn take_down(unmounter: &Unmounter) -> std::io::Result<()> {
    let (done, wait) = crossbeam::channel::bounded(1);
    let writer = unmounter.clone();
    std::thread::Builder::new().name("write-out".into()).spawn(move || {
        let _ = done.send(writer.write_out());
    })?;
    if !matches!(wait.recv_timeout(WRITE_OUT_TIMEOUT), Ok(Ok(()))) {
        log::warn!("not all that the kernel held could be written out");
    }
    unmounter.force()
}

fn remember(settings: &Settings) {
    let known = Known {
        mountpoint: settings.mountpoint.clone(),
        state_dir: settings.state_dir.clone(),
        peer: settings.link.as_ref().map(|link| link.peer.clone()),
    };
    if let Err(error) = registry::remember(&known) {
        log::warn!("commands will need --state-dir's directory instead of the mount point: {error}");
    }
}

/// Closes everything: commit and checkpoint, a last chance for a live peer, the rest into the queue, the labels.
fn close(served: &Served, catch_up_timeout: Duration) -> Result<(), CliError> {
    let mut failed = None;
    let mut last_epoch = None;
    for lun in &served.luns {
        match lun.fs.close() {
            Ok(epoch) => last_epoch = last_epoch.max(epoch),
            Err(error) => {
                log::error!("{}: {error}; the next mount recovers it", lun.path.display());
                failed.get_or_insert(format!("{} was not closed cleanly: {error}", lun.path.display()));
            }
        }
    }
    if let Some(epoch) = last_epoch {
        wait_for_live_peer(served, epoch, catch_up_timeout);
    }
    if let Some(peer) = served.peer.lock().take() {
        peer.stop();
    }
    if let Some(link) = served.link.lock().take() {
        link.stop();
    }
    let durable = served.log.as_ref().map(|log| log.close()).unwrap_or_default();
    if let Some(why) = failed {
        return Err(CliError::failure(why));
    }
    close_labels(served, &durable);
    Ok(())
}

fn close_labels(served: &Served, durable: &[(LunId, mirrorfs_journal::Epoch)]) {
    for lun in &served.luns {
        let epoch = durable.iter().find(|(id, _)| Some(*id) == lun.id).map(|(_, epoch)| *epoch);
        if let Err(error) = lun.image.close_clean(epoch) {
            log::error!("{error}; the next mount marks all regions");
        }
    }
}

/// Waits until the peer has everything, as long as it is there or may be about to be: not when it has been away for longer
/// than the heartbeat timeout.
fn wait_for_live_peer(served: &Served, epoch: mirrorfs_journal::Epoch, timeout: Duration) {
    let Some(log) = &served.log else { return };
    let begun = Instant::now();
    let away_ms = u64::try_from(served.settings.times.heartbeat_timeout.as_millis()).unwrap_or(u64::MAX);
    while begun.elapsed() < timeout {
        if has_reached_mirror(log, epoch) {
            return;
        }
        let link = served.link.lock().as_ref().map(|link| link.status());
        let is_away = |link: &LinkStatus| link.state == LinkState::Down && link.since_ms > away_ms;
        if link.as_ref().is_none_or(is_away) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    log::warn!("the peer does not have everything; the rest stays in the queue until the next mount");
}

/// Whether all up to `epoch` is durable on the mirror, and nothing is left to a resync.
fn has_reached_mirror(log: &MirrorLog, epoch: mirrorfs_journal::Epoch) -> bool {
    let status = log.status();
    status.durable_epoch >= epoch
        && status.resync_regions_left == 0
        && !status.resync_running
        && status.queue_given_up.is_none()
}
