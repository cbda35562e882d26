//! What the control socket of a mount's process answers.

use super::stopped::describe;
use super::{Served, ServedLun, has_reached_mirror};
use crate::cli::Mode;
use crate::commands::status::verdict;
use crate::control::{Handler, LunStatus, MountStatus, Reply, Request, StatusReply};
use crate::exit_code::{CliError, Context, ExitCode};
use crate::names::Namer;
use mirrorfs_fs::fuse::Unmounter;
use mirrorfs_journal::Epoch;
use mirrorfs_journal::log::{MirrorLog, OnOutage, Waited};
use mirrorfs_net::status::LinkState;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a `sync` looks again whether the mirror has it.
const SYNC_POLL: Duration = Duration::from_millis(20);
/// How long an unmount waits for files to be closed before it says that the mount is in use.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers for a mount.
pub(super) struct MountHandler {
    pub(super) served: Arc<Served>,
    pub(super) unmounter: Unmounter,
}

impl Handler for MountHandler {
    fn handle(&self, request: Request) -> Result<Reply, CliError> {
        match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Sync { timeout_ms } => self.sync(timeout_ms.map(Duration::from_millis)),
            Request::Journal { limit } => Ok(self.journal(limit)),
            Request::Unmount { force } => self.unmount(force),
            Request::OnOutage { policy } => {
                let log = self.log()?;
                log.set_on_outage(policy);
                log::info!("outage policy is now {policy:?}");
                Ok(Reply::Done)
            }
            Request::Remount { read_only } => {
                let mountpoint = self.served.settings.mountpoint.display();
                self.unmounter.remount(read_only).context(|| format!("cannot remount {mountpoint}"))?;
                Ok(Reply::Done)
            }
        }
    }
}

impl MountHandler {
    fn log(&self) -> Result<&Arc<MirrorLog>, CliError> {
        self.served.log.as_ref().ok_or_else(|| CliError::failure("this mount mirrors nothing (--local)"))
    }

    fn status(&self) -> StatusReply {
        let served = &self.served;
        let link = served.link.lock().as_ref().map(|link| link.status());
        let log = served.log.as_ref().map(|log| log.status());
        let luns: Vec<LunStatus> = served.luns.iter().map(lun_status).collect();
        let read_only = luns.iter().find_map(|lun| lun.read_only.clone());
        let (verdict, summary) = verdict(link.as_ref(), log.as_ref(), read_only.as_deref());
        StatusReply {
            verdict,
            summary,
            pid: Some(std::process::id()),
            mount: Some(MountStatus {
                mountpoint: served.settings.mountpoint.clone(),
                state_dir: served.settings.state_dir.clone(),
                mode: match served.settings.mode {
                    Mode::Async => "async".into(),
                    Mode::Sync => "sync".into(),
                },
                luns,
                link,
                log,
            }),
            peer: served.peer.lock().as_ref().map(|peer| peer.status()),
        }
    }

    fn journal(&self, limit: usize) -> Reply {
        let Some(log) = &self.served.log else { return Reply::Journal { rows: Vec::new() } };
        let records = log.list(if limit == 0 { usize::MAX } else { limit });
        let mut mirrored: Vec<&ServedLun> = self.served.luns.iter().filter(|lun| lun.id.is_some()).collect();
        mirrored.sort_by_key(|lun| lun.id);
        let names: Vec<String> = mirrored.iter().map(|lun| lun.name.clone()).collect();
        let mut namer =
            Namer::of_mounted(mirrored.iter().map(|lun| (lun.name.clone(), lun.fs.clone())).collect());
        Reply::Journal {
            rows: crate::commands::journal::rows(records.iter().map(|record| &**record), &names, &mut namer),
        }
    }

    fn unmount(&self, force: bool) -> Result<Reply, CliError> {
        if !force {
            self.unmount_patiently().map_err(|error| {
                let next = if error.raw_os_error() == Some(libc::EBUSY) {
                    " (files are open or a shell stands in it; fuser -vm tells who, --force takes it down all the same)"
                } else {
                    ""
                };
                CliError::new(
                    ExitCode::Busy,
                    format!("cannot unmount {}: {error}{next}", self.served.settings.mountpoint.display()),
                )
            })?;
            return Ok(Reply::Done);
        }
        // Replies that wait for the mirror hold their callers in the kernel: let them fail.
        if let Some(log) = &self.served.log {
            log.set_on_outage(OnOutage::Readonly);
        }
        super::take_down(&self.unmounter)
            .context(|| format!("cannot unmount {}", self.served.settings.mountpoint.display()))?;
        Ok(Reply::Done)
    }

    /// Programs that are just ending or starting others may hold files open for a moment.
    fn unmount_patiently(&self) -> std::io::Result<()> {
        let begun = Instant::now();
        loop {
            match self.unmounter.unmount() {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < BUSY_TIMEOUT => {
                    std::thread::sleep(SYNC_POLL);
                }
                result => return result,
            }
        }
    }

    /// Commits each file system and waits until its barrier is durable on the mirror.
    fn sync(&self, timeout: Option<Duration>) -> Result<Reply, CliError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        for lun in &self.served.luns {
            let (done, wait) = crossbeam::channel::bounded(1);
            lun.fs.sync(
                None,
                false,
                Box::new(move |result| {
                    let _ = done.send(result);
                }),
            );
            let synced = wait.recv().context(|| format!("{} was closed meanwhile", lun.path.display()))?;
            let epoch = synced.context(|| format!("cannot sync {}", lun.path.display()))?;
            if let (Some(epoch), Some(log)) = (epoch, &self.served.log) {
                self.wait_for_mirror(lun, log, epoch, deadline)?;
            }
        }
        Ok(Reply::Done)
    }

    /// An outage does not end this wait, whatever the policy for writers is.
    fn wait_for_mirror(
        &self,
        lun: &ServedLun,
        log: &MirrorLog,
        epoch: Epoch,
        deadline: Option<Instant>,
    ) -> Result<(), CliError> {
        let (done, wait) = crossbeam::channel::bounded(1);
        lun.lun.when_durable(
            Some(epoch),
            Box::new(move |outcome: Waited| {
                let _ = done.send(outcome);
            }),
        );
        loop {
            let until = deadline
                .map_or(SYNC_POLL, |end| SYNC_POLL.min(end.saturating_duration_since(Instant::now())));
            let outcome = wait.recv_timeout(until);
            if has_reached_mirror(log, epoch) {
                return Ok(());
            }
            if outcome.is_ok() || outcome == Err(crossbeam::channel::RecvTimeoutError::Disconnected) {
                std::thread::sleep(SYNC_POLL);
            }
            if deadline.is_some_and(|end| Instant::now() >= end) {
                let why = self.served.link.lock().as_ref().map(|link| link.status());
                let why = why
                    .filter(|link| link.state != LinkState::Live)
                    .map(|link| format!(" ({})", link.reason));
                return Err(CliError::new(
                    ExitCode::Timeout,
                    format!("not everything is durable on the mirror yet{}", why.unwrap_or_default()),
                ));
            }
            if self.served.link.lock().is_none() {
                return Err(CliError::failure("the mount is ending"));
            }
        }
    }
}

fn lun_status(served: &ServedLun) -> LunStatus {
    let fs = served.fs.status();
    let label = served.image.label();
    let statfs = served.fs.statfs().ok();
    LunStatus {
        name: served.name.clone(),
        image: served.path.clone(),
        mirrored: served.id.is_some(),
        read_only: served.lun.latched().or(fs.read_only),
        size_bytes: served.image.size_bytes(),
        free_bytes: statfs.map(|statfs| statfs.blocks_available * u64::from(statfs.block_size)),
        commits: Some(fs.commits),
        label: match label.state {
            mirrorfs_fs::image::State::InUse => "primary, in use".into(),
            _ => describe(label.role, &label.state, label.durable_epoch),
        },
        problem: None,
    }
}
