//! The demo's directory: configuration, data and log of the daemon. Gone when the demo ends,
//! unless it is to be kept.

use std::fs::{self, DirBuilder};
use std::path::{Path, PathBuf};

use super::failure::Failure;

#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    keep: bool,
}

impl Home {
    /// A new directory below that for temporary files, for this user alone.
    pub(super) fn create(keep: bool) -> Result<Self, Failure> {
        let name = format!("onced-demo-{:08x}", fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let failed = Failure::io(&format!("create the directory {}", path.display()));
        builder.create(&path).map_err(failed)?;
        Ok(Self { path, keep })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn config(&self) -> PathBuf {
        self.path.join("onced.toml")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("onced.log")
    }

    /// The last lines of the daemon's log; none where there is no log.
    pub(super) fn log_end(&self, lines: usize) -> Vec<String> {
        let bytes = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|&line| line.to_owned()).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(directory = %self.path.display(), %error, "The demo's directory was not removed.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_goes_unless_it_is_kept() {
        for keep in [false, true] {
            let home = Home::create(keep).unwrap();
            let path = home.path().to_owned();
            fs::write(home.log(), "a\nb\nc\n").unwrap();
            assert_eq!(home.log_end(2), ["b", "c"]);
            drop(home);
            assert_eq!(path.exists(), keep);
            let _ = fs::remove_dir_all(path);
        }
    }
}
