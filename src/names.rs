//! From the origins of requests to file names, by one walk over the directories of the images.

use mirrorfs_fs::ext4::attr::FileKind;
use mirrorfs_fs::ext4::types::InodeNo;
use mirrorfs_fs::ext4::{Ext4, Layout, Options};
use mirrorfs_fs::image::{Lun, OverlayBacking};
use mirrorfs_journal::{Body, MirrorRequest, Origin};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Looks names up in the file systems of some LUNs; index = `LunId`.
pub(crate) struct Namer {
    file_systems: Vec<Option<(Arc<Ext4>, Option<Layout>)>>,
    names: HashMap<(u16, u32), String>,
    /// LUN names are put before paths when there is more than one.
    prefixes: Vec<String>,
}

impl Namer {
    /// Over mounted file systems.
    pub(crate) fn of_mounted(luns: Vec<(String, Arc<Ext4>)>) -> Self {
        let several = luns.len() > 1;
        let prefixes =
            luns.iter().map(|(name, _)| if several { format!("/{name}") } else { String::new() }).collect();
        let file_systems = luns.into_iter().map(|(_, fs)| Some(with_layout(fs))).collect();
        Self { file_systems, names: HashMap::new(), prefixes }
    }

    /// Over the images of a state directory that no process serves. Nothing is written: what journal replay changes stays in
    /// memory. Where an image can't be read, inode numbers stand for names.
    pub(crate) fn of_images(dir: &Path, luns: &[String]) -> Self {
        let open = |name: &String| {
            let backing = OverlayBacking::open(&dir.join(format!("{name}.img"))).ok()?;
            let options = Options { read_only: true, ..Options::default() };
            Ext4::open(Lun::new(Arc::new(backing), None), options).ok().map(with_layout)
        };
        let several = luns.len() > 1;
        Self {
            file_systems: luns.iter().map(open).collect(),
            names: HashMap::new(),
            prefixes: luns
                .iter()
                .map(|name| if several { format!("/{name}") } else { String::new() })
                .collect(),
        }
    }

    /// Finds the names of all files that the records come from.
    pub(crate) fn look_up<'a>(&mut self, records: impl Iterator<Item = &'a MirrorRequest>) {
        let mut wanted: HashMap<u16, HashSet<u32>> = HashMap::new();
        for record in records {
            if let Origin::File(ino) = record.origin {
                wanted.entry(record.lun.0).or_default().insert(ino);
            }
        }
        for (lun, inodes) in wanted {
            let Some(Some((fs, _))) = self.file_systems.get(usize::from(lun)) else { continue };
            let prefix = &self.prefixes[usize::from(lun)];
            walk(fs, inodes, |ino, path| {
                self.names.insert((lun, ino), format!("{prefix}{path}"));
            });
        }
    }

    /// A record's name, after [`Self::look_up`].
    pub(crate) fn name(&self, record: &MirrorRequest) -> String {
        match (&record.body, record.origin) {
            (Body::Barrier { .. }, _) => "barrier: what is above is durable before what is below".into(),
            (_, Origin::File(ino)) => self
                .names
                .get(&(record.lun.0, ino))
                .cloned()
                .unwrap_or_else(|| format!("inode {ino} (deleted)")),
            (_, Origin::Journal) => "jbd2 journal".into(),
            (_, Origin::Resync) => "resync".into(),
            (_, Origin::Metadata) => {
                let fs = self.file_systems.get(usize::from(record.lun.0)).and_then(Option::as_ref);
                let layout = fs.and_then(|(_, layout)| layout.as_ref());
                let what = layout
                    .zip(record.range())
                    .map(|(layout, (offset, length))| layout.describe(offset, length));
                format!("metadata: {}", what.unwrap_or_else(|| "changed".into()))
            }
        }
    }
}

fn with_layout(fs: Arc<Ext4>) -> (Arc<Ext4>, Option<Layout>) {
    let layout = fs.layout().ok();
    (fs, layout)
}

/// Walks the tree until all of `wanted` are found; each is named once.
fn walk(fs: &Ext4, mut wanted: HashSet<u32>, mut found: impl FnMut(u32, &str)) {
    if wanted.remove(&InodeNo::ROOT.0) {
        found(InodeNo::ROOT.0, "/");
    }
    let mut directories = vec![(InodeNo::ROOT, String::new())];
    let mut seen = HashSet::from([InodeNo::ROOT.0]);
    while let Some((directory, path)) = directories.pop() {
        if wanted.is_empty() {
            return;
        }
        for entry in fs.read_dir(directory, 0).unwrap_or_default() {
            if matches!(&entry.name[..], b"." | b"..") {
                continue;
            }
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name).escape_debug());
            if wanted.remove(&entry.ino.0) {
                found(entry.ino.0, &path);
            }
            if entry.kind == FileKind::Directory && seen.insert(entry.ino.0) {
                directories.push((entry.ino, path));
            }
        }
    }
}
