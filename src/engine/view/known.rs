//! Views that were looked at lately, for those who ask what they are again and
//! again.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moka::sync::Cache;

use super::{ViewInfo, open_at};
use crate::engine::catalog::Catalog;
use crate::engine::error::Result;

/// How many views are kept.
const MOST_KEPT: u64 = 1024;

/// How long a folder must have been as it is: file systems count time in steps
/// of up to two seconds, and a change within one is not seen.
const SETTLED: Duration = Duration::from_secs(3);

/// A folder at some time. With each entry that comes, goes or is replaced, it is
/// another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Folder {
    device: u64,
    inode: u64,
    changed: SystemTime,
}

impl Folder {
    /// The folder at `path`; None where it cannot be told from what it will be.
    fn at(path: &Path) -> Option<Folder> {
        // Opened: what a network file system then says is not out of date.
        let metadata = File::open(path).ok()?.metadata().ok()?;
        let changed = metadata.modified().ok()?;
        let age = SystemTime::now().duration_since(changed).ok()?;
        (age > SETTLED).then(|| Folder {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed,
        })
    }
}

/// What views of local folders are, as long as no version comes or goes. Others
/// are looked at each time.
#[derive(Clone, Debug)]
pub struct KnownViews(Cache<Vec<String>, (Folder, Arc<ViewInfo>)>);

impl Default for KnownViews {
    fn default() -> Self {
        Self(Cache::new(MOST_KEPT))
    }
}

impl KnownViews {
    /// As [`inspect`](super::inspect).
    pub async fn inspect(&self, catalog: &Catalog, id: &[String]) -> Result<Arc<ViewInfo>> {
        let uri = catalog.locate(id).await?;
        // Before it is opened: what comes meanwhile is seen the next time.
        let folder = catalog.versions_of(id);
        let folder = folder.and_then(|path| Folder::at(&path));
        if let Some(now) = &folder
            && let Some((then, info)) = self.0.get(id)
            && then == *now
        {
            return Ok(info);
        }
        let (info, _) = open_at(catalog, id, &uri).await?;
        let info = Arc::new(info);
        if let Some(now) = folder {
            self.0.insert(id.to_vec(), (now, info.clone()));
        }
        Ok(info)
    }
}
