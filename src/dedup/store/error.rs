//! What can go wrong with the log, and who can mend it.
//!
//! RocksDB tells its errors in words; here is the one place that reads them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::FORMAT;

/// What went wrong with the log, and who can mend it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log.dir = {}: cannot {action}; give this user read and write permission or choose another directory", path.display())]
    Directory { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("log.dir = {}: another onced is using this directory; stop it or choose another directory", path.display())]
    Locked { path: PathBuf },
    #[error("log.dir = {}: belongs to {what} {found:?}, not {wanted:?}; choose another directory, or remove this one to rebuild the log from the topic", path.display())]
    Foreign { path: PathBuf, what: &'static str, found: String, wanted: String },
    #[error("log.dir = {}: written in format {found}, this onced reads {FORMAT}; use a newer onced", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("log.dir = {}: the log cannot be opened; if its files are damaged, remove the directory: the log is rebuilt from the topic", path.display())]
    Unreadable { path: PathBuf, source: rocksdb::Error },
    #[error("log.dir: the disk is full")]
    DiskFull { source: rocksdb::Error },
    #[error("the log is corrupt at {what}; remove log.dir to rebuild the log from the topic")]
    Corrupt { what: String },
    #[error(
        "the log can no longer be trusted after a failed {action}; see the cause, then start again"
    )]
    Failed { action: &'static str, source: rocksdb::Error },
    #[error("the log was poisoned by an earlier failed write; start again")]
    Poisoned,
    #[error("the log's self-check failed: {what}")]
    SelfCheck { what: String },
}

impl LogError {
    pub(super) fn of(action: &'static str, source: rocksdb::Error) -> Self {
        if full(&source) { Self::DiskFull { source } } else { Self::Failed { action, source } }
    }

    pub(super) fn of_opening(dir: &Path, source: rocksdb::Error) -> Self {
        if full(&source) {
            return Self::DiskFull { source };
        }
        Self::Unreadable { path: dir.to_owned(), source }
    }

    /// Of a call that came after one that failed.
    pub(super) fn after(first: &rocksdb::Error) -> Self {
        if full(first) { Self::DiskFull { source: first.clone() } } else { Self::Poisoned }
    }

    /// True where waiting for space and opening the log again is enough.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Directory { source, .. } => {
                matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

pub(super) fn full(error: &rocksdb::Error) -> bool {
    let text = error.to_string();
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}
