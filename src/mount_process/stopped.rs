//! Status of a directory that no process serves: what its files say.

use crate::commands::status::mountpoint_of;
use crate::control::{LunStatus, MountStatus, StatusReply};
use crate::exit_code::{CliError, Context};
use mirrorfs_fs::image::{Role, State, read_label};
use mirrorfs_journal::log::{LogStatus, QueueView};
use std::path::{Path, PathBuf};

/// Reads labels and queue.
pub(crate) fn stopped_status(dir: &Path) -> Result<StatusReply, CliError> {
    let luns: Vec<LunStatus> = images(dir).iter().map(|path| lun_status(path)).collect();
    let is_mirror = luns.iter().any(|lun| lun.label.starts_with("mirror"));
    let mut log = None;
    let queue = dir.join("queue");
    if queue.exists() {
        let context = || format!("cannot read the queue {}", queue.display());
        let records = QueueView::open(&queue).context(context)?.records(false).context(context)?;
        let requests: Vec<_> = records.iter().filter(|record| record.range().is_some()).collect();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis() as u64;
        let bytes = requests.iter().map(|record| record.payload_bytes() as u64).sum();
        log = Some(LogStatus {
            waiting_requests: requests.len() as u64,
            queued_requests: requests.len() as u64,
            waiting_bytes: bytes,
            queued_bytes: bytes,
            queue_disk_bytes: disk_bytes(&queue),
            oldest_age_ms: requests.first().map_or(0, |record| now.saturating_sub(record.accepted_ms)),
            ..LogStatus::default()
        });
    }
    let waiting = log.as_ref().map_or(0, |log: &LogStatus| log.waiting_requests);
    let summary = match (is_mirror, waiting) {
        (true, _) => "no peer process serves these mirrors".into(),
        (false, 0) => "not mounted; nothing waits in the queue".into(),
        (false, count) => format!("not mounted; {count} requests wait in the queue for the next mount"),
    };
    let mount = MountStatus {
        mountpoint: mountpoint_of(dir),
        state_dir: dir.to_path_buf(),
        mode: "stopped".into(),
        luns,
        link: None,
        log,
    };
    Ok(StatusReply { verdict: "stopped".into(), summary, pid: None, mount: Some(mount), peer: None })
}

/// `DIR/*.img` and `DIR/NODE/*.img`.
fn images(dir: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    let mut found: Vec<PathBuf> = list(dir)
        .into_iter()
        .flat_map(|path| if path.is_dir() { list(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|end| end == "img"))
        .collect();
    found.sort();
    found
}

/// What an image's label says.
pub(crate) fn lun_status(path: &Path) -> LunStatus {
    let mut status = LunStatus {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        image: path.to_path_buf(),
        mirrored: true,
        read_only: None,
        size_bytes: 0,
        free_bytes: None,
        commits: None,
        label: String::new(),
        problem: None,
    };
    match read_label(path) {
        Ok(Some(label)) => {
            status.size_bytes = label.size_bytes;
            status.label = describe(label.role, &label.state, label.durable_epoch);
        }
        Ok(None) => status.problem = Some("no label yet: the next mount adopts it".into()),
        Err(error) => status.problem = Some(error.to_string()),
    }
    status
}

/// Role and state in words.
pub(crate) fn describe(role: Role, state: &State, durable: mirrorfs_journal::Epoch) -> String {
    let state = match state {
        State::Clean => "closed cleanly",
        State::InUse => "in use, or not closed cleanly",
        State::InSync => "consistent",
        State::Resyncing { undo: Some(_) } => {
            "RESYNCING: not consistent until that has ended; promote takes it back"
        }
        State::Resyncing { undo: None } => "RESYNCING: not consistent until that has ended, no way back",
        State::FirstSync => "FIRST SYNC not finished: not consistent yet",
    };
    match role {
        Role::Primary => format!("primary, {state}"),
        Role::Mirror => format!("mirror, {state}, durable epoch {durable}"),
    }
}

fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::read_dir(dir).map_or(0, |entries| {
        entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    })
}
