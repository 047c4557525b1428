//! What this process has used so far.

use std::fs;
use std::time::{Duration, Instant};

/// A moment, with all that was used until then.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    at: Instant,
    /// User and system, of all threads.
    cpu: Duration,
    /// Bytes that went to disks. 0 where the system does not tell.
    written: u64,
}

/// What was used between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub wall: Duration,
    pub cpu: Duration,
    pub written: u64,
}

impl Usage {
    #[must_use]
    pub fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu(), written: written() }
    }

    #[must_use]
    pub fn until_now(&self) -> Used {
        let now = Self::now();
        Used {
            wall: now.at - self.at,
            cpu: now.cpu.saturating_sub(self.cpu),
            written: now.written.saturating_sub(self.written),
        }
    }
}

impl Used {
    /// Microseconds of wall time for each of so many; 0 for none.
    #[must_use]
    pub fn wall_us(&self, count: u64) -> f64 {
        us_each(self.wall, count)
    }

    /// Microseconds of processor time for each of so many; 0 for none.
    #[must_use]
    pub fn cpu_us(&self, count: u64) -> f64 {
        us_each(self.cpu, count)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn us_each(time: Duration, count: u64) -> f64 {
    if count == 0 { 0.0 } else { time.as_secs_f64() * 1e6 / count as f64 }
}

fn cpu() -> Duration {
    // SAFETY: all zeros are a valid value of this struct of numbers, and the call fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |of: libc::timeval| {
        let micros = u64::try_from(of.tv_usec).unwrap_or(0);
        Duration::from_secs(u64::try_from(of.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn written() -> u64 {
    field("/proc/self/io", "write_bytes:").unwrap_or(0)
}

/// The most memory that was in use at once, in bytes. 0 where the system does not tell.
#[must_use]
pub fn peak_memory() -> u64 {
    field("/proc/self/status", "VmHWM:").unwrap_or(0) * 1024
}

fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen() {
        let before = Usage::now();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(30) {
            std::hint::black_box(cpu());
        }
        let used = before.until_now();
        assert!(used.cpu > Duration::from_millis(5), "{used:?}");
        assert!(used.wall >= Duration::from_millis(30), "{used:?}");
        assert!(used.wall_us(10) >= 3_000.0, "{used:?}");
        assert!(peak_memory() > 1 << 20);
    }
}
