//! `mirrorfs promote` and `mirrorfs demote`: who writes an image and who follows, decided by the operator.
//!
//! Both change nothing but labels (and what a demoted side has of a queue), under the images' own locks: while a mount or a
//! connected primary uses one, they refuse. All images of a directory are looked at before the first is changed.

use crate::exit_code::{CliError, Context, ExitCode};
use crate::mount_process::mirrored_luns;
use crate::registry;
use mirrorfs_fs::image::{Image, ImageError, Label, OpenOptions, Role, State, read_label};
use mirrorfs_journal::QueueView;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A session that has just ended lets go of its images within this time.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The images of `dir` itself, with their labels.
fn images(dir: &Path) -> Result<Vec<(PathBuf, Label)>, CliError> {
    let entries = std::fs::read_dir(dir)
        .map_err(|error| CliError::new(ExitCode::NotFound, format!("{}: {error}", dir.display())))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "img"));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if let Some(label) = read_label(&path).map_err(|error| CliError::failure(error.to_string()))? {
            found.push((path, label));
        }
    }
    Ok(found)
}

fn open(path: &Path, label: &Label) -> Result<Image, CliError> {
    let options = OpenOptions { role: label.role, name: label.name.clone(), lock_wait: LOCK_WAIT };
    Image::open(path, &options).map_err(|error| {
        let code = match error {
            ImageError::Locked { .. } | ImageError::LoopDevice { .. } => ExitCode::Busy,
            _ => ExitCode::Failure,
        };
        let hint = match (&error, label.role) {
            (ImageError::Locked { .. }, Role::Mirror) => {
                ": its primary is connected; unmount it there first, or cut the link"
            }
            (ImageError::Locked { .. }, Role::Primary) => ": unmount it first",
            _ => "",
        };
        CliError::new(code, format!("{error}{hint}"))
    })
}

/// Makes the mirrors in `dir` primaries.
pub(super) fn promote(dir: &Path, force: bool) -> Result<ExitCode, CliError> {
    let dir = registry::absolute(dir);
    let all = images(&dir)?;
    if all.is_empty() {
        return Err(CliError::new(
            ExitCode::NotFound,
            format!("{} holds no mirror image; name the directory of one node: DIR/NODE", dir.display()),
        ));
    }
    let mut mirrors = Vec::new();
    for (path, label) in all.iter().filter(|(_, label)| label.role == Role::Mirror) {
        let image = open(path, label)?;
        let shown = path.display();
        match image.roll_back() {
            Ok(None) => {}
            Ok(Some(epoch)) => {
                println!("{shown} was in the middle of a resync: taken back to epoch {epoch}.")
            }
            Err(error) if !force => {
                return Err(CliError::failure(format!("{shown}: cannot take it back: {error}")));
            }
            Err(error) => eprintln!("mirrorfs: {shown}: cannot take it back: {error}; promoted as it is"),
        }
        // Opening it may have found that somebody changed it.
        let why = match image.label().state {
            State::FirstSync => "its first sync never ended: much of it is missing",
            State::Resyncing { .. } if image.found().changed => "somebody else has written to it",
            State::Resyncing { .. } => "it is in the middle of a resync, and nothing leads back",
            _ => "",
        };
        if !why.is_empty() && !force {
            return Err(CliError::failure(format!(
                "{shown}: {why}. If the primary is lost, --force promotes it as it is; check it with e2fsck -f before it is mounted",
            )));
        }
        mirrors.push(image);
    }
    for image in &mirrors {
        let path = image.path().display().to_string();
        let promoted = image.label().promoted().context(|| path.clone())?;
        image.update_label(|label| *label = promoted).context(|| format!("write the label of {path}"))?;
        println!("{path} is a primary now.");
    }
    if mirrors.is_empty() {
        println!("{}: the images are primaries already.", dir.display());
    }
    let names: Vec<&str> = all.iter().map(|(_, label)| label.name.as_str()).collect();
    let luns = match names[..] {
        ["data"] => String::new(),
        _ => names.iter().map(|name| format!(" --lun {name}")).collect(),
    };
    println!("Next: mirrorfs mount MOUNTPOINT --state-dir {}{luns} --peer OTHER_HOST", dir.display());
    println!("The other host follows once its images are demoted there (mirrorfs demote).");
    Ok(ExitCode::Success)
}

/// Makes the mirrored primaries in `dir` mirrors of whoever mirrors to them next.
pub(super) fn demote(dir: &Path, discard: bool) -> Result<ExitCode, CliError> {
    let dir = registry::resolve(dir).unwrap_or_else(|_| registry::absolute(dir));
    let mut all = images(&dir)?;
    // Without a list it was promoted and never mounted.
    if let Some(mirrored) = mirrored_luns(&dir)? {
        all.retain(|(_, label)| mirrored.contains(&label.name));
    }
    if all.is_empty() {
        return Err(CliError::new(
            ExitCode::NotFound,
            format!(
                "{} holds no image of a mirrored LUN; name a state directory (an image given with --image must lie there as LUN.img)",
                dir.display()
            ),
        ));
    }
    let queue = dir.join("queue");
    let mut primaries = Vec::new();
    for (path, label) in all.iter().filter(|(_, label)| label.role == Role::Primary) {
        primaries.push((open(path, label)?, label));
    }
    for (image, label) in &primaries {
        if discard || (image.found().clean && is_mirrored(&queue, label)) {
            continue;
        }
        match keep_copy(image.path()) {
            Ok(kept) => println!(
                "{} has writes that no mirror has confirmed; a copy is kept: {}",
                image.path().display(),
                kept.display()
            ),
            Err(error) => {
                // As they were found: opening them has made them look used.
                for (image, _) in primaries.iter().filter(|(image, _)| image.found().clean) {
                    image.close_clean(None).context(|| format!("{error}; and"))?;
                }
                return Err(error);
            }
        }
    }
    for (image, _) in &primaries {
        let path = image.path().display().to_string();
        image
            .update_label(|label| *label = label.demoted())
            .context(|| format!("write the label of {path}"))?;
        println!("{path} is a mirror now.");
    }
    if primaries.is_empty() {
        println!("{}: the images are mirrors already.", dir.display());
    }
    // What waited there is in the images, and in the copies.
    match std::fs::remove_dir_all(&queue) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(CliError::failure(format!("cannot remove {}: {error}", queue.display())));
        }
        _ => {}
    }
    let (parent, node) = (dir.parent().unwrap_or(&dir), dir.file_name().unwrap_or_default());
    println!("Next, here: mirrorfs peer --listen ADDR:PORT --dir {}", parent.display());
    println!(
        "On the new primary: mirrorfs mount … --peer THIS_HOST --node {}. All of it is sent anew.",
        node.to_string_lossy()
    );
    Ok(ExitCode::Success)
}

/// Whether all that was ever written to the image is known to be on its mirror.
fn is_mirrored(queue: &Path, label: &Label) -> bool {
    let generation = label.generations.current().unwrap_or_default();
    QueueView::open(queue)
        .and_then(|queue| queue.is_drained(label.uuid, generation, label.size_bytes))
        .unwrap_or(false)
}

/// A copy of the image beside it, as sparse as it is, synced.
fn keep_copy(image: &Path) -> Result<PathBuf, CliError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let copy = image.with_extension(format!("diverged-{seconds}"));
    let fail = |why: String| {
        let _ = std::fs::remove_file(&copy);
        CliError::failure(format!(
            "cannot keep a copy of {}, nothing is changed: {why}. Make room, or give what this side wrote alone up with --discard",
            image.display()
        ))
    };
    let output = Command::new("cp")
        .args(["--reflink=auto", "--sparse=always", "--preserve=mode,timestamps", "--"])
        .args([image, copy.as_path()])
        .output()
        .map_err(|error| fail(format!("cp: {error}")))?;
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let synced = std::fs::File::open(&copy).and_then(|file| file.sync_all());
    synced.map_err(|error| fail(error.to_string()))?;
    Ok(copy)
}
