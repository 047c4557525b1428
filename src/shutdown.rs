//! The request to stop, and the two signals that make it.
//!
//! Owns: SIGTERM and SIGINT. The first asks to drain; the second exits at once with code 1.
//! Never: stops anything itself. Whoever works looks here and ends its work.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

/// Cheap to clone; all clones are one. A request is never taken back.
#[derive(Clone, Debug)]
pub struct Shutdown {
    requested: Arc<watch::Sender<bool>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// One that no signal requests: for programs that have their own way to stop.
    #[must_use]
    pub fn new() -> Self {
        Self { requested: Arc::new(watch::Sender::new(false)) }
    }

    /// Asks to drain and stop.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }

    /// Never blocks; for loops on threads.
    #[must_use]
    pub fn requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Returns once the request is there.
    pub async fn wait(&self) {
        let mut requested = self.requested.subscribe();
        requested
            .wait_for(|requested| *requested)
            .await
            .expect("the sender lives as long as `self`");
    }
}

/// Takes over SIGTERM and SIGINT for the rest of the process. To be called once.
///
/// They are served on a thread of their own: the second signal must work when everything else is
/// stuck.
///
/// # Errors
///
/// When the handlers cannot be installed.
pub fn listen() -> io::Result<Shutdown> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _context = runtime.enter();
        Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? }
    };
    let shutdown = Shutdown::new();
    let requested = shutdown.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(serve(signals, &requested)))?;
    Ok(shutdown)
}

async fn serve(mut signals: Signals, shutdown: &Shutdown) {
    let signal = signals.next().await;
    info!(signal, "Received a signal: draining. A second one exits at once.");
    shutdown.request();
    let signal = signals.next().await;
    warn!(signal, "Received a second signal: exiting at once.");
    exit_at_once();
}

/// Without the exit handlers of C libraries: they race with the threads that still use them, and
/// may crash or hang.
fn exit_at_once() -> ! {
    // SAFETY: `_exit` ends the process and touches none of its memory.
    unsafe { libc::_exit(1) }
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_request_is_seen_by_every_clone_and_by_who_comes_late() {
        let shutdown = Shutdown::new();
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });
        assert!(!shutdown.requested());
        shutdown.clone().request();
        assert!(shutdown.requested());
        waiting.await.unwrap();
        shutdown.wait().await;
    }

    /// Runs in a process of its own, started by the test below: signals are for whole processes.
    #[test]
    #[ignore = "exits the process"]
    fn child_that_signals_itself() {
        let shutdown = listen().unwrap();
        let kill = |signal| {
            // SAFETY: a signal to this process, for which a handler is installed.
            unsafe { libc::kill(libc::pid_t::try_from(process::id()).unwrap(), signal) };
            thread::sleep(Duration::from_millis(200));
        };
        assert!(!shutdown.requested());
        kill(libc::SIGTERM);
        if !shutdown.requested() {
            process::exit(3);
        }
        println!("draining");
        kill(libc::SIGINT);
        process::exit(4);
    }

    #[test]
    fn the_first_signal_asks_and_the_second_exits_with_code_1() {
        let name = concat!(module_path!(), "::child_that_signals_itself");
        let name = name.split_once("::").map_or(name, |(_crate, path)| path);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", name])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("draining"), "{text}");
        assert_eq!(output.status.code(), Some(1), "{text}");
    }
}
