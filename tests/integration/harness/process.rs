//! Child processes that end with the test process, and waiting for them with a bound.

use std::io;
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

type Job = (Command, Sender<io::Result<Child>>);

/// Starts a process that the kernel kills when the test process ends, however it ends.
///
/// # Errors
///
/// Fails where the program cannot be started.
pub fn spawn(command: Command) -> io::Result<Child> {
    // The kernel ties the child to the thread that started it, not to the process. A test's
    // thread may end first, so one that never ends starts them all.
    static SPAWNER: LazyLock<Sender<Job>> = LazyLock::new(|| {
        let (jobs, queue) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                die_with_this_thread(&mut command);
                // Nobody waits any more: the test has ended.
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, spawned) = channel();
    SPAWNER.send((command, answer)).expect("the spawner thread lives as long as the process");
    spawned.recv().expect("the spawner answers every job")
}

#[cfg(target_os = "linux")]
fn die_with_this_thread(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_this_thread(_: &mut Command) {}

/// The exit status, or `None` when the process still runs after `timeout`.
pub fn wait_exit(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        let status = child.try_wait().expect("a child of ours can be waited for");
        if status.is_some() || begun.elapsed() > timeout {
            return status;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal. A process that is gone already is fine.
pub fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("process ids are small");
    // SAFETY: kill only takes numbers.
    unsafe { libc::kill(pid, signal) };
}

/// A port on the loopback that nobody listens on. It lies below the range from which the system
/// takes ports for outgoing connections, so it is still free after a restart.
pub fn free_port() -> u16 {
    free_listener().local_addr().expect("a bound socket has an address").port()
}

/// The same for who listens at once: in a port that was only tried, a child that is just being
/// forked may hold the socket for a moment longer.
pub fn free_listener() -> TcpListener {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Each call gets another port, so two daemons never race for one.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..COUNT)));
    (0..COUNT)
        .map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT)
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .expect("one of 20,000 ports is free")
}
