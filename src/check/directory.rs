//! The data directory: can the log live there, and is it this daemon's?
//!
//! Owns: the look at it, and the judgement. Never: makes a directory or a file, opens the log for
//! writing, or keeps its lock.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use super::report::Row;
use crate::daemon::disk;
use crate::dedup::LogError;
use crate::dedup::store::{self, Peek, Stamp};

/// What is known of the directory.
#[derive(Debug)]
pub struct Facts {
    pub place: Place,
    /// Bytes on its disk.
    pub free: io::Result<u64>,
    /// Its contents, where nobody else is writing them.
    pub contents: Contents,
}

/// What stands at the path.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory. `refused`: the reason why nothing can be written there.
    Directory { refused: Option<String> },
    /// Nothing; it would be made in this directory.
    Absent { parent: PathBuf, refused: Option<String> },
    /// It cannot be a directory.
    Other { what: String },
}

#[derive(Debug)]
pub enum Contents {
    /// There is no log yet.
    Empty,
    /// Another process has it open.
    Held,
    Log(Box<Peek>),
    Unreadable(LogError),
}

impl Facts {
    pub fn gather(dir: &Path) -> Self {
        let place = place(dir);
        let on = match &place {
            Place::Absent { parent, .. } => parent.as_path(),
            _ => dir,
        };
        let free = disk::free(on);
        let contents = match place {
            Place::Directory { .. } => contents(dir),
            _ => Contents::Empty,
        };
        Self { place, free, contents }
    }

    /// `cluster_id` is empty where no broker has told it.
    pub fn rows(&self, dir: &Path, reserve: u64, wanted: &Stamp) -> Vec<Row> {
        let subject = format!("log.dir {}", dir.display());
        let mut rows = vec![self.place_row(&subject)];
        rows.extend(self.contents_row(&subject, wanted));
        if !matches!(self.place, Place::Other { .. }) {
            rows.push(self.space_row(reserve));
        }
        rows
    }

    fn place_row(&self, subject: &str) -> Row {
        let user = "give this user read and write permission, or choose another directory";
        match &self.place {
            Place::Directory { refused: None } => Row::ok(subject, "is there, and can be written"),
            Place::Directory { refused: Some(reason) } => {
                Row::failed(subject, format!("cannot be written: {reason}"), user)
            }
            Place::Absent { parent, refused: None } => Row::ok(
                subject,
                format!("is not there; the first start makes it in {}", parent.display()),
            ),
            Place::Absent { parent, refused: Some(reason) } => {
                let found =
                    format!("is not there and cannot be made in {}: {reason}", parent.display());
                Row::failed(subject, found, user)
            }
            Place::Other { what } => Row::failed(subject, what, "choose another directory"),
        }
    }

    fn contents_row(&self, subject: &str, wanted: &Stamp) -> Option<Row> {
        match &self.contents {
            Contents::Empty => None,
            Contents::Held => Some(Row::note(
                subject,
                "another onced is using it; what it holds was not looked at",
                "if that is not the daemon of this configuration, choose another directory",
            )),
            Contents::Unreadable(error) => {
                let advice =
                    "see the reason; without the directory the log is built again from the topic";
                Some(Row::failed(subject, error_text(error), advice))
            }
            Contents::Log(peek) => Some(owner_row(subject, peek, wanted)),
        }
    }

    fn space_row(&self, reserve: u64) -> Row {
        let subject = "log.disk_reserve";
        let free = match &self.free {
            Ok(free) => *free,
            Err(error) => {
                return Row::warning(
                    subject,
                    format!("free space not checked: {error}"),
                    "look at the disk",
                );
            }
        };
        let (free_text, reserve_text) = (ByteSize::b(free), ByteSize::b(reserve));
        if free < reserve {
            let found = format!(
                "{free_text} are free, less than {reserve_text}: onced would consume nothing"
            );
            return Row::failed(subject, found, "free some space, or lower log.disk_reserve");
        }
        Row::ok(subject, format!("{free_text} are free; the reserve is {reserve_text}"))
    }
}

fn owner_row(subject: &str, peek: &Peek, wanted: &Stamp) -> Row {
    let advice =
        "choose another directory; or remove this one, and the log is built again from the topic";
    let found = &peek.stamp;
    if found.group != wanted.group {
        let text = format!("belongs to the group {:?}, not to {:?}", found.group, wanted.group);
        return Row::failed(subject, text, advice);
    }
    if !wanted.cluster_id.is_empty() && found.cluster_id != wanted.cluster_id {
        let text = format!(
            "belongs to the cluster {:?}, not to {:?}",
            found.cluster_id, wanted.cluster_id
        );
        return Row::failed(subject, text, advice);
    }
    let partitions = match peek.shards.len() {
        1 => "1 partition".to_owned(),
        many => format!("{many} partitions"),
    };
    Row::ok(subject, format!("holds the log of {partitions} of this group"))
}

fn error_text(error: &LogError) -> String {
    match std::error::Error::source(error) {
        Some(reason) => format!("what it holds cannot be read: {reason}"),
        None => error.to_string(),
    }
}

fn place(dir: &Path) -> Place {
    match dir.metadata() {
        Ok(metadata) if metadata.is_dir() => Place::Directory { refused: refused(dir) },
        Ok(_) => Place::Other { what: "is not a directory".to_owned() },
        Err(_) if dir.is_symlink() => Place::Other { what: "is a link to nothing".to_owned() },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = nearest_directory(dir);
            Place::Absent { refused: refused(&parent), parent }
        }
        Err(error) => Place::Other { what: format!("cannot be looked at: {error}") },
    }
}

/// The directory in which making this one would begin.
fn nearest_directory(dir: &Path) -> PathBuf {
    let there = dir.ancestors().skip(1).find(|parent| parent.exists());
    match there {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Why this user cannot make files here.
fn refused(dir: &Path) -> Option<String> {
    let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else {
        return Some("the name holds a NUL".to_owned());
    };
    // SAFETY: the path ends with a NUL and outlives the call.
    let code = unsafe { libc::access(path.as_ptr(), libc::R_OK | libc::W_OK | libc::X_OK) };
    (code != 0).then(|| io::Error::last_os_error().to_string())
}

fn contents(dir: &Path) -> Contents {
    // The daemon's lock is exclusive. Held for a moment only, and shared, so that two checks do not
    // see each other; a file that is not there was never locked.
    if let Ok(file) = File::open(dir.join("lock"))
        && file.try_lock_shared().is_err()
    {
        return Contents::Held;
    }
    match store::peek(dir) {
        Ok(Some(peek)) => Contents::Log(Box::new(peek)),
        Ok(None) => Contents::Empty,
        Err(error) => Contents::Unreadable(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn stamp(cluster_id: &str, group: &str) -> Stamp {
        Stamp { cluster_id: cluster_id.to_owned(), group: group.to_owned() }
    }

    fn facts(place: Place, contents: Contents) -> Facts {
        Facts { place, free: Ok(1 << 30), contents }
    }

    #[track_caller]
    fn check(facts: &Facts, level: Level, found: &str) {
        let rows = facts.rows(Path::new("/data"), 1 << 20, &stamp("c", "g"));
        let worst = rows.iter().max_by_key(|row| row.level).unwrap();
        assert!(rows.iter().any(|row| row.found.contains(found)), "{rows:?}");
        assert_eq!(worst.level, level, "{rows:?}");
    }

    #[test]
    fn a_directory_is_written_or_made_or_refused() {
        let refused = Some("Permission denied".to_owned());
        let parent = PathBuf::from("/");
        check(
            &facts(Place::Directory { refused: None }, Contents::Empty),
            Level::Ok,
            "can be written",
        );
        check(
            &facts(Place::Directory { refused: refused.clone() }, Contents::Empty),
            Level::Failed,
            "Permission denied",
        );
        check(
            &facts(Place::Absent { parent: parent.clone(), refused: None }, Contents::Empty),
            Level::Ok,
            "makes it in /",
        );
        check(
            &facts(Place::Absent { parent, refused }, Contents::Empty),
            Level::Failed,
            "cannot be made in /",
        );
    }

    #[test]
    fn little_space_means_that_nothing_is_consumed() {
        let mut facts = facts(Place::Directory { refused: None }, Contents::Empty);
        facts.free = Ok((1 << 20) - 1);
        check(&facts, Level::Failed, "onced would consume nothing");
        facts.free = Ok(1 << 20);
        check(&facts, Level::Ok, "the reserve is 1.0 MiB");
    }

    #[test]
    fn a_log_belongs_to_one_group_of_one_cluster() {
        let log = |cluster: &str, group: &str| {
            let peek = Peek { stamp: stamp(cluster, group), shards: Vec::new() };
            facts(Place::Directory { refused: None }, Contents::Log(Box::new(peek)))
        };
        check(&log("c", "g"), Level::Ok, "holds the log of 0 partitions");
        check(&log("c", "h"), Level::Failed, "belongs to the group \"h\"");
        check(&log("d", "g"), Level::Failed, "belongs to the cluster \"d\"");
        let rows = log("d", "g").rows(Path::new("/data"), 0, &stamp("", "g"));
        assert!(
            rows.iter().all(|row| row.level == Level::Ok),
            "no broker told the cluster: {rows:?}"
        );
    }

    #[test]
    fn a_directory_in_use_is_worth_a_note() {
        check(
            &facts(Place::Directory { refused: None }, Contents::Held),
            Level::Note,
            "another onced",
        );
    }

    #[test]
    fn looking_makes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a/b");
        let found = Facts::gather(&dir);
        assert_eq!(found.place, Place::Absent { parent: home.path().to_owned(), refused: None });
        assert!(found.free.is_ok_and(|free| free > 0));
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        File::create(&file).unwrap();
        assert_eq!(place(&file), Place::Other { what: "is not a directory".to_owned() });
        assert!(matches!(place(&file.join("below")), Place::Other { .. }));
        std::os::unix::fs::symlink("nowhere", home.path().join("link")).unwrap();
        assert_eq!(
            place(&home.path().join("link")),
            Place::Other { what: "is a link to nothing".to_owned() }
        );
    }

    #[test]
    fn a_locked_directory_is_held() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(contents(home.path()), Contents::Empty));
        let lock = File::create(home.path().join("lock")).unwrap();
        assert!(matches!(contents(home.path()), Contents::Empty));
        lock.lock().unwrap();
        assert!(matches!(contents(home.path()), Contents::Held));
    }
}
