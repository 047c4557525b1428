//! A disk of a daemon's own that can lose its power or fill up, and system calls that fail.
//!
//! ```text
//! LoopDisk::create(at, size)   an ext4 in the file at.img, mounted on at
//!   power_cut(end)             what was not synced is gone; mounted again afterwards
//!   fill(left), free()         no space, and space again
//! Inject::attach(pid, log)     strace, which makes calls of a running process fail or wait
//! ```
//!
//! Owns: the image, its mount, the ballast; strace. Never: the daemon, which must have ended when
//! its disk is mounted again. Needs root and loop devices, and `strace` for the calls. What is
//! missing is told in an error that a report can quote.

#![allow(dead_code, reason = "a vocabulary: not every word is in use in every binary")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// `EXT4_IOC_SHUTDOWN`: `_IOR('X', 125, __u32)`.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// Like a power cut: what is in the journal's buffers is not written first.
const NO_LOG_FLUSH: u32 = 2;
/// A process that was killed may hold its files for a moment longer.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// strace stops every thread once to get hold of it.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);
const BALLAST_CHUNK: usize = 256 * 1024;

/// An ext4 file system of its own. Dropped, it is unmounted and its image removed.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    at: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many bytes and mounts it on this folder.
    ///
    /// # Errors
    ///
    /// Says which command failed, and its words.
    pub fn create(at: &Path, size: u64) -> Result<Self, String> {
        let disk = Self { image: at.with_extension("img"), at: at.to_owned() };
        fs::create_dir_all(&disk.at).map_err(|error| format!("mkdir: {error}"))?;
        let image = File::create(&disk.image).map_err(|error| format!("the image: {error}"))?;
        image.set_len(size).map_err(|error| format!("the image: {error}"))?;
        // Without reserved blocks: it is full for root when it is full.
        let mut mkfs = Command::new("mkfs.ext4");
        run(mkfs.args(["-q", "-F", "-m", "0"]).arg(&disk.image))?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Everything that was not synced is gone, and every call on open files fails from now on.
    /// Whoever has files open sees I/O errors; end them, then [`LoopDisk::restore`].
    ///
    /// # Errors
    ///
    /// Fails where the kernel does not know the call.
    pub fn shut_down(&self) -> Result<(), String> {
        let root = File::open(&self.at).map_err(|error| format!("open the root: {error}"))?;
        let how = NO_LOG_FLUSH;
        // SAFETY: the call reads one u32 behind the pointer, which lives through it.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const how) };
        if done == 0 {
            Ok(())
        } else {
            Err(format!("EXT4_IOC_SHUTDOWN: {}", io::Error::last_os_error()))
        }
    }

    /// Mounts it again after [`LoopDisk::shut_down`]; the journal is replayed.
    ///
    /// # Errors
    ///
    /// Fails when somebody keeps it busy.
    pub fn restore(&self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    /// Shuts it down, calls `end`, which ends whoever uses it, and mounts it again.
    ///
    /// # Errors
    ///
    /// As [`LoopDisk::shut_down`] and [`LoopDisk::restore`].
    pub fn power_cut(&self, end: impl FnOnce()) -> Result<(), String> {
        self.shut_down()?;
        end();
        self.restore()
    }

    /// Takes all space but so many bytes. May be called again when more is to be taken.
    ///
    /// # Errors
    ///
    /// Fails where the disk cannot be written for another reason.
    pub fn fill(&self, left: u64) -> io::Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        loop {
            let more = self.free_bytes()?.saturating_sub(left);
            let more = usize::try_from(more).unwrap_or(BALLAST_CHUNK).min(BALLAST_CHUNK);
            if more == 0 {
                break;
            }
            match ballast.write_all(&vec![7; more]) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                result => result?,
            }
        }
        // Delayed allocation: until then the space is only promised.
        match ballast.sync_all() {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives the space back.
    ///
    /// # Errors
    ///
    /// Fails where nothing was filled.
    pub fn free(&self) -> io::Result<()> {
        fs::remove_file(self.ballast())
    }

    /// How many bytes can still be written.
    ///
    /// # Errors
    ///
    /// Fails where the file system does not answer.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let path = CString::new(self.at.as_os_str().as_bytes())?;
        // SAFETY: all zeros are a valid value of this struct of numbers.
        let mut stats = unsafe { std::mem::zeroed::<libc::statvfs>() };
        // SAFETY: both pointers live through the call, and the path ends in a zero.
        if unsafe { libc::statvfs(path.as_ptr(), &raw mut stats) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stats.f_bavail * stats.f_frsize)
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    fn unmount(&self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            match run(Command::new("umount").arg(&self.at)) {
                Err(_) if begun.elapsed() < UNMOUNT_TIMEOUT => {
                    thread::sleep(Duration::from_millis(50));
                }
                result => return result,
            }
        }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that still runs must not keep it from being removed. An image that was
        // never mounted is fine.
        let _ = run(Command::new("umount").arg("-l").arg(&self.at));
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.at);
    }
}

/// A fault of a system call, in strace's words.
#[derive(Clone, Debug)]
pub struct Inject<'a> {
    /// Such as `fdatasync`, or `fsync,fdatasync`.
    pub calls: &'a str,
    /// Such as `error=EIO`, or `delay_enter=300000` (microseconds).
    pub fault: &'a str,
    /// Which of the calls: `3`, `3+`, or `3..5`, counted in each thread by itself.
    pub when: &'a str,
}

impl Inject<'_> {
    /// Whether calls can be made to fail here.
    ///
    /// # Errors
    ///
    /// Says what is missing: strace, or the right to trace.
    pub fn available() -> Result<(), String> {
        run(Command::new("strace").args(["-qq", "-e", "trace=none", "true"]))
    }

    /// Makes the calls of a process that runs go wrong until the result is dropped; all of them,
    /// or only those on the files `only`, by their full names. `log` is where strace writes down
    /// each call.
    ///
    /// # Errors
    ///
    /// Says what strace said.
    pub fn attach(&self, pid: u32, only: &[&Path], log: &Path) -> Result<Attached, String> {
        let Self { calls, fault, when } = self;
        let words = log.with_extension("words");
        let stderr = File::create(&words).map_err(|error| format!("strace's words: {error}"))?;
        let mut strace = Command::new("strace");
        strace.arg("-f").arg("-p").arg(pid.to_string()).arg("-o").arg(log);
        strace.arg("-e").arg(format!("trace={calls}"));
        strace.arg("-e").arg(format!("inject={calls}:{fault}:when={when}"));
        for path in only {
            strace.arg("-P").arg(path);
        }
        let child = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
        let child = child.map_err(|error| format!("strace: {error}"))?;
        let mut attached = Attached { child, log: log.to_owned(), since: Instant::now() };
        let begun = Instant::now();
        loop {
            let said = fs::read_to_string(&words).unwrap_or_default();
            if said.contains("attached") {
                return Ok(attached);
            }
            let ended = attached.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || begun.elapsed() > ATTACH_TIMEOUT {
                return Err(format!("strace: {}", said.trim()));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// strace at work on a process. Dropped, it lets go, and the process runs on as before.
#[derive(Debug)]
pub struct Attached {
    child: Child,
    log: PathBuf,
    since: Instant,
}

impl Attached {
    /// When it was told to.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How many calls went wrong so far.
    pub fn injected(&self) -> usize {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let wrong = |line: &&str| line.ends_with("(INJECTED)") || line.ends_with("(DELAYED)");
        text.lines().filter(wrong).count()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let pid = libc::pid_t::try_from(self.child.id()).expect("process ids are small");
        // Not SIGKILL: strace has to let go of every thread, or a call may stay half done.
        // SAFETY: kill only takes numbers, and the child has not been waited for.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}: {}", output.status, words.trim()))
}
