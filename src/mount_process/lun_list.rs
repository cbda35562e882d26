//! Which number each LUN of a state directory has in the mirror log: kept in `luns.json`, because the queue names LUNs by
//! number, and must be understood whatever the order of `--lun` in a later mount.

use super::Settings;
use crate::exit_code::{CliError, Context};
use mirrorfs_journal::LunId;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::Path;

const FILE: &str = "luns.json";

/// A LUN of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LunEntry {
    /// Its name.
    pub(super) name: String,
    /// Its number, if it is designated to be mirrored.
    pub(super) id: Option<LunId>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    /// Mirrored LUNs; position = `LunId`.
    mirrored: Vec<String>,
}

fn read(dir: &Path) -> Result<Option<Stored>, CliError> {
    let path = dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            serde_json::from_str(&text).map(Some).context(|| format!("cannot understand {}", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::failure(format!("cannot read {}: {error}", path.display()))),
    }
}

/// The mount's LUNs with their numbers; new ones are added to the list, synced, before they are used.
pub(super) fn keep(settings: &Settings) -> Result<Vec<LunEntry>, CliError> {
    let mut stored = read(&settings.state_dir)?.unwrap_or_default();
    let before = stored.mirrored.len();
    let wanted: Vec<&String> =
        settings.luns.iter().filter(|(_, mirrored)| *mirrored).map(|(name, _)| name).collect();
    if settings.link.is_some()
        && let Some(missing) = stored.mirrored.iter().find(|name| !wanted.contains(name))
    {
        return Err(CliError::usage(format!(
            "the mirrored LUN '{missing}' of {} is missing: name all of them ({}), or remove {} to start over with \
             a whole resync",
            settings.state_dir.display(),
            stored.mirrored.iter().map(|name| format!("--lun {name}")).collect::<Vec<_>>().join(" "),
            settings.state_dir.join(FILE).display()
        )));
    }
    for name in wanted {
        if !stored.mirrored.contains(name) {
            stored.mirrored.push(name.clone());
        }
    }
    if stored.mirrored.len() != before {
        write(&settings.state_dir, &stored)?;
    }
    Ok(settings
        .luns
        .iter()
        .map(|(name, mirrored)| {
            let position = stored.mirrored.iter().position(|known| known == name).filter(|_| *mirrored);
            LunEntry { name: name.clone(), id: position.map(|position| LunId(position as u16)) }
        })
        .collect())
}

fn write(dir: &Path, stored: &Stored) -> Result<(), CliError> {
    let path = dir.join(FILE);
    let context = || format!("cannot write {}", path.display());
    let text = serde_json::to_vec_pretty(stored).context(context)?;
    let mut file = tempfile::NamedTempFile::new_in(dir).context(context)?;
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).context(context)?;
    file.persist(&path).context(context)?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).context(context)
}

/// Names of the mirrored LUNs of a state directory, in the order of their numbers; `None`: it was never mounted.
pub(crate) fn mirrored_luns(dir: &Path) -> Result<Option<Vec<String>>, CliError> {
    Ok(read(dir)?.map(|stored| stored.mirrored))
}

/// As [`mirrored_luns`]; the default where there is no list.
pub(crate) fn lun_names(dir: &Path) -> Vec<String> {
    mirrored_luns(dir).ok().flatten().unwrap_or_else(|| vec!["data".into()])
}
