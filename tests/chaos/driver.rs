//! A campaign: a cluster of three brokers, three daemons, records, faults, and a count in the end.
//!
//! Run through `scripts/chaos`, which says what the options are.
//!
//! ```text
//! options    what was asked for
//! campaign   the order of it all
//! cluster    the brokers            kafka    what is asked of them
//! daemons    onced, as processes    effects  the service that one route calls
//! disk       under each daemon's log
//! traffic    the records            faults   the schedule, and its three lanes
//! proxy      between daemons and brokers
//! journal    what was done, and when
//! ledger     the driver's own count          report   what is said in the end
//! ```
//!
//! It knows nothing of onced's library but the names of the crash points. Nothing that it starts
//! outlives it, even when it is killed.

#![expect(clippy::print_stdout, reason = "the verdicts are what it is run for")]

mod campaign;
mod cluster;
mod daemons;
mod disk;
mod effects;
mod faults;
mod journal;
mod kafka;
mod ledger;
mod options;
#[path = "../integration/harness/process.rs"]
mod process;
mod proxy;
mod report;
mod traffic;

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};

use onced::fault::POINTS;

use faults::Plan;
use options::Options;

/// Ctrl-C, or a signal that asks to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() {
    let options = Options::from_environment();
    if options.list_points {
        for point in POINTS {
            println!("{}", point.name());
        }
        return;
    }
    if options.plan_only {
        for line in Plan::of(&options).lines() {
            println!("{line}");
        }
        return;
    }
    own_mounts();
    catch_signals();
    match campaign::run(&options) {
        Ok(outcome) => {
            print!("{}", outcome.verdict_lines());
            if outcome.good() {
                return;
            }
            exit(if outcome.violated() { 6 } else { 1 });
        }
        Err(reason) => {
            eprintln!("chaos: {reason}");
            exit(if INTERRUPTED.load(Ordering::SeqCst) { 130 } else { 1 });
        }
    }
}

/// From here on, mounts are those of this process and its children alone: they go with the last of
/// them, however it ends. Where that is not allowed, mounting is not either.
fn own_mounts() {
    let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
    // SAFETY: no other thread runs yet, and the texts end in a zero and live through the call.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) == 0 {
            libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null());
        }
    }
}

fn catch_signals() {
    extern "C" fn interrupt(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::SeqCst);
    }
    let handler = interrupt as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is allowed in a handler.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}
