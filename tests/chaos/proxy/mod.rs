//! A TCP proxy before a Kafka cluster that breaks things on demand.
//!
//! ```text
//! client --> listen port --> Link: requests, judged one by one --> target port of a broker
//!        <--                       answers, some of them dropped <--
//! ```
//!
//! Each broker advertises the proxy's port for it on a second listener, so metadata needs no
//! rewriting. Owns: connections, and the rules for what happens to requests. Never: the content
//! of a request but that of `EndTxn` (`wire`); TLS and SASL pass, but cannot be judged.
//!
//! Memory is bounded: [`LINKS_MAX`] connections of two threads and two small buffers each,
//! [`HELDS_MAX`] held requests of at most a mebibyte; whatever else waits, waits in the kernel.

#![allow(
    dead_code,
    unused_imports,
    reason = "a vocabulary: not every word is in use in every binary"
)]

mod hold;
mod link;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use hold::{Hold, Late};
pub use wire::{EndTxn, Head, Which};

use hold::{Cell, Fate};
use link::{HELD_MAX, Link};

/// More connections than this are closed at once.
const LINKS_MAX: usize = 512;
/// More requests than this are not held at a time; they pass.
const HELDS_MAX: usize = 32;
const STACK_BYTES: usize = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The proxy of a cluster. Everything may be called at any time from any thread. Ends when
/// dropped, with all its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    listens: Vec<SocketAddr>,
}

/// What was done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Injected {
    /// Connections that came in.
    pub connections: u64,
    /// Connections that [`Proxy::cut_all`] closed.
    pub cut: u64,
    pub refused: u64,
    pub delayed: u64,
    /// Answers that never came.
    pub dropped: u64,
    pub held: u64,
    /// Held requests that reached the broker late.
    pub released: u64,
    /// Held requests that never reached it.
    pub discarded: u64,
    pub blackholes: u64,
}

impl Proxy {
    /// Listens on the first port of each pair, on the loopback, for the broker on the second.
    ///
    /// # Errors
    ///
    /// Fails where one of the ports is taken.
    pub fn start(ports: &[(u16, u16)]) -> io::Result<Self> {
        let bind = |&(listen, target)| Ok((TcpListener::bind(("127.0.0.1", listen))?, target));
        Self::serve(ports.iter().map(bind).collect::<io::Result<_>>()?)
    }

    /// The same with sockets that listen already.
    ///
    /// # Errors
    ///
    /// Fails where no thread can be started.
    pub fn serve(listeners: Vec<(TcpListener, u16)>) -> io::Result<Self> {
        let mut proxy = Self { shared: Arc::new(Shared::default()), listens: Vec::new() };
        for (listener, target) in listeners {
            proxy.listens.push(listener.local_addr()?);
            let shared = Arc::clone(&proxy.shared);
            spawn(move || accept_all(&listener, target, &shared))?;
        }
        Ok(proxy)
    }

    /// Closes every connection. A request that is held stays held.
    pub fn cut_all(&self) {
        let links = {
            let mut state = self.shared.lock();
            state.injected.cut += state.links.len() as u64;
            state.links.values().cloned().collect::<Vec<_>>()
        };
        links.iter().for_each(|link| link.cut());
        self.shared.changed.notify_all();
    }

    /// For so long, new connections are closed as soon as they are made.
    pub fn refuse(&self, time: Duration) {
        self.shared.lock().refuse_until = Some(Instant::now() + time);
    }

    /// For so long, no byte goes either way. What was sent meanwhile arrives afterwards, also
    /// when its sender has given up.
    pub fn blackhole(&self, time: Duration) {
        let mut state = self.shared.lock();
        state.black_until = Some(Instant::now() + time);
        state.injected.blackholes += 1;
    }

    /// The next `count` of these requests reach the broker so much later, and what follows on
    /// their connections with them.
    pub fn delay(&self, which: Which, time: Duration, count: u32) {
        self.shared.add(which, count, Plan::Delay(time));
    }

    /// The next `count` of these requests reach the broker, and its answers reach nobody: the
    /// connection is closed instead.
    pub fn drop_responses(&self, which: Which, count: u32) {
        self.shared.add(which, count, Plan::DropAnswer);
    }

    /// The next `count` of these requests are held, and their clients' connections are closed, so
    /// that they try again on another. [`Hold::release`] lets the old ones go.
    pub fn hold(&self, which: Which, count: u32) -> Hold {
        self.hold_with(which, count, true)
    }

    /// The same with the clients' connections open: they wait for an answer.
    pub fn hold_open(&self, which: Which, count: u32) -> Hold {
        self.hold_with(which, count, false)
    }

    fn hold_with(&self, which: Which, count: u32, cut: bool) -> Hold {
        let cell = Cell::new();
        self.shared.add(which, count, Plan::Hold { cell: Arc::clone(&cell), cut });
        Hold { shared: Arc::clone(&self.shared), cell }
    }

    /// Takes back what is planned and has not happened; refusing and black holes end. Held
    /// requests stay held.
    pub fn heal(&self) {
        let mut state = self.shared.lock();
        state.rules.clear();
        state.refuse_until = None;
        state.black_until = None;
        self.shared.changed.notify_all();
    }

    /// How many faults are planned and have not happened.
    pub fn planned(&self) -> u32 {
        self.shared.lock().rules.iter().map(|rule| rule.left).sum()
    }

    pub fn injected(&self) -> Injected {
        self.shared.lock().injected.clone()
    }

    /// How many requests of this kind have come in.
    pub fn requests(&self, which: Which) -> u64 {
        let state = self.shared.lock();
        let seen = state.seen.iter().filter(|((key, commit), _)| match which {
            Which::Commit => *commit == Some(true),
            Which::Abort => *commit == Some(false),
            _ => *key == which.api_key(),
        });
        seen.map(|(_, count)| count).sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let links = {
            let mut state = self.shared.lock();
            state.ended = true;
            for rule in state.rules.drain(..) {
                rule.plan.discard();
            }
            state.links.values().cloned().collect::<Vec<_>>()
        };
        links.iter().for_each(|link| link.close());
        self.shared.changed.notify_all();
        for listen in &self.listens {
            // Only to wake the thread that accepts.
            let _ = TcpStream::connect_timeout(listen, CONNECT_TIMEOUT);
        }
    }
}

/// What happens to one request.
enum Action {
    Pass,
    Delay(Duration),
    DropAnswer,
    Hold { cell: Arc<Cell>, cut: bool },
}

/// What is planned for some requests to come.
struct Rule {
    which: Which,
    left: u32,
    plan: Plan,
}

enum Plan {
    Delay(Duration),
    DropAnswer,
    Hold { cell: Arc<Cell>, cut: bool },
}

impl Plan {
    fn discard(&self) {
        if let Self::Hold { cell, .. } = self {
            cell.decide(Fate::Discard);
        }
    }
}

/// What all connections have in common.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A black hole has ended, or a connection was closed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ended: bool,
    refuse_until: Option<Instant>,
    black_until: Option<Instant>,
    rules: Vec<Rule>,
    links: HashMap<u64, Arc<Link>>,
    injected: Injected,
    /// Requests by number and, of an `EndTxn`, by how it ends.
    seen: HashMap<(i16, Option<bool>), u64>,
}

impl Shared {
    fn add(&self, which: Which, count: u32, plan: Plan) {
        let mut state = self.lock();
        state.rules.push(Rule { which, left: count, plan });
    }

    /// What happens to this request of so many bytes. The oldest rule that fits is used up by one.
    pub fn judge(&self, head: &Head, size: usize) -> Action {
        let mut state = self.lock();
        let commit = head.end_txn.as_ref().map(|end| end.commit);
        *state.seen.entry((head.api_key, commit)).or_default() += 1;
        let held = state.injected.held - state.injected.released - state.injected.discarded;
        let room = size <= HELD_MAX && held < HELDS_MAX as u64;
        let fits = |rule: &Rule| match &rule.plan {
            Plan::Hold { cell, .. } => room && cell.undecided() && rule.which.fits(head),
            _ => rule.which.fits(head),
        };
        let Some(at) = state.rules.iter().position(|rule| rule.left > 0 && fits(rule)) else {
            return Action::Pass;
        };
        let rule = &mut state.rules[at];
        rule.left -= 1;
        let action = match &rule.plan {
            Plan::Delay(time) => Action::Delay(*time),
            Plan::DropAnswer => Action::DropAnswer,
            Plan::Hold { cell, cut } => Action::Hold { cell: Arc::clone(cell), cut: *cut },
        };
        if rule.left == 0 {
            state.rules.remove(at);
        }
        if matches!(action, Action::Delay(_)) {
            state.injected.delayed += 1;
        }
        action
    }

    pub fn count(&self, change: impl FnOnce(&mut Injected)) {
        change(&mut self.lock().injected);
    }

    /// Waits so long, or fails because the link was closed.
    pub fn wait_for(&self, time: Duration, link: &Link) -> io::Result<()> {
        let end = Instant::now() + time;
        self.wait_while(link, |_| Some(end))
    }

    /// Waits while nothing may go through.
    pub fn wait_while_black(&self, link: &Link) -> io::Result<()> {
        self.wait_while(link, |state| state.black_until)
    }

    fn wait_while(&self, link: &Link, until: impl Fn(&State) -> Option<Instant>) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            if link.is_closed() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = until(&state).map(|end| end.saturating_duration_since(Instant::now()));
            match left {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(left) => {
                    state = self.changed.wait_timeout(state, left).expect("nothing panics").0;
                }
            }
        }
    }

    pub fn forget_hold(&self, cell: &Arc<Cell>) {
        let is_it =
            |plan: &Plan| matches!(plan, Plan::Hold { cell: held, .. } if Arc::ptr_eq(held, cell));
        self.lock().rules.retain(|rule| !is_it(&rule.plan));
    }

    /// Whether a connection that just came in may go on.
    fn admit(&self) -> bool {
        let mut state = self.lock();
        state.injected.connections += 1;
        let refused = state.refuse_until.is_some_and(|end| Instant::now() < end);
        state.injected.refused += u64::from(refused);
        !refused && !state.ended && state.links.len() < LINKS_MAX
    }

    /// `None` where the proxy has ended meanwhile.
    fn insert(&self, number: u64, link: &Arc<Link>) -> Option<()> {
        let mut state = self.lock();
        (!state.ended).then(|| drop(state.links.insert(number, Arc::clone(link))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with it")
    }
}

fn accept_all(listener: &TcpListener, target: u16, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.lock().ended {
            return;
        }
        // A client that is gone before it was accepted.
        let Ok(client) = client else { continue };
        if shared.admit() {
            let shared = Arc::clone(shared);
            // Without a thread the connection is closed, as by any overloaded machine.
            let _ = spawn(move || serve(client, target, &shared));
        }
    }
}

/// Connects to the broker and passes on what comes, until one of them ends it.
fn serve(client: TcpStream, target: u16, shared: &Arc<Shared>) {
    let broker = SocketAddr::from(([127, 0, 0, 1], target));
    let Ok(broker) = TcpStream::connect_timeout(&broker, CONNECT_TIMEOUT) else { return };
    let link = Arc::new(Link::new(client, broker));
    let number = Arc::as_ptr(&link).addr() as u64;
    if shared.insert(number, &link).is_none() {
        return;
    }
    let (answers, of_them) = (Arc::clone(&link), Arc::clone(shared));
    if let Ok(answers) = spawn(move || answers.run_answers(&of_them)) {
        link.run_requests(shared);
        // It does not panic, and there is nothing to do if it did.
        let _ = answers.join();
    }
    shared.lock().links.remove(&number);
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("proxy".to_owned()).stack_size(STACK_BYTES).spawn(work)
}
