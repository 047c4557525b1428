//! The outside service of the route `least`: it answers, and remembers every call.
//!
//! Owns: a small HTTP server, and the list of calls.
//! Never: judges them.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::journal::Journal;
use crate::process;
use crate::traffic::{Fate, Route, fate, id_of};

/// One call, small: there may be millions.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The message; `u32::MAX` where the payload is none of ours.
    pub id: u32,
    pub offset: u32,
    pub at_ms: u32,
    /// Of the identity in `Idempotency-Key`.
    pub key: u32,
    /// The caller's port: tells connections, and so processes, apart.
    pub peer: u16,
    pub partition: u8,
    pub attempt: u8,
    pub answer: u16,
}

pub struct Effects {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Effects {
    pub fn start(seed: u64, journal: &Arc<Journal>) -> io::Result<Self> {
        let listener = process::free_listener();
        let address = listener.local_addr()?;
        let calls = Arc::new(Mutex::new(Vec::new()));
        let effects = Self { address, calls: Arc::clone(&calls) };
        let journal = Arc::clone(journal);
        thread::spawn(move || accept(&listener, seed, &journal, &calls));
        Ok(effects)
    }

    pub fn url(&self) -> String {
        format!("http://{}/payments", self.address)
    }

    pub fn count(&self) -> usize {
        self.calls.lock().expect("nobody panics while holding the calls").len()
    }

    /// Takes all of them.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().expect("nobody panics while holding the calls"))
    }
}

fn accept(
    listener: &TcpListener,
    seed: u64,
    journal: &Arc<Journal>,
    calls: &Arc<Mutex<Vec<Call>>>,
) {
    while let Ok((stream, peer)) = listener.accept() {
        let (journal, calls) = (Arc::clone(journal), Arc::clone(calls));
        // Small stacks: a daemon keeps a connection for each call that runs at once.
        let served = thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            // A connection that breaks is the client's business.
            let _ = serve(&stream, peer.port(), seed, &journal, &calls);
        });
        if served.is_err() {
            return;
        }
    }
}

fn serve(
    stream: &TcpStream,
    peer: u16,
    seed: u64,
    journal: &Journal,
    calls: &Mutex<Vec<Call>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(mut call) = read_call(&mut reader, peer)? {
        call.at_ms = journal.now_ms();
        call.answer = answer(seed, &call);
        calls.lock().expect("nobody panics while holding the calls").push(call);
        write!(writer, "HTTP/1.1 {} Told So\r\nContent-Length: 0\r\n\r\n", call.answer)?;
    }
    Ok(())
}

/// What is refused is refused always; some calls have to be made twice.
fn answer(seed: u64, call: &Call) -> u16 {
    const BUSY_EVERY: u32 = 97;
    if call.id != u32::MAX && fate(seed, Route::Least, call.id) == Fate::Refused {
        422
    } else if call.attempt == 1 && call.id % BUSY_EVERY == 5 {
        503
    } else {
        200
    }
}

/// `None` where the client has closed the connection between two calls.
fn read_call(reader: &mut BufReader<&TcpStream>, peer: u16) -> io::Result<Option<Call>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    let mut call = Call {
        id: u32::MAX,
        offset: u32::MAX,
        at_ms: 0,
        key: 0,
        peer,
        partition: u8::MAX,
        attempt: 0,
        answer: 0,
    };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "idempotency-key" => call.key = fingerprint(value.as_bytes()),
            "onced-attempt" => call.attempt = value.parse().unwrap_or(u8::MAX),
            "onced-source" => {
                if let Some((partition, offset)) = source(value) {
                    call.partition = u8::try_from(partition).unwrap_or(u8::MAX);
                    call.offset = offset;
                }
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if let Some(id) = id_of(&body) {
        call.id = id;
    }
    Ok(Some(call))
}

/// Partition and offset of `topic/partition/offset`.
pub fn source(text: &str) -> Option<(i32, u32)> {
    let mut parts = text.rsplit('/');
    let offset = parts.next()?.parse().ok()?;
    let partition = parts.next()?.parse().ok()?;
    Some((partition, offset))
}

fn fingerprint(bytes: &[u8]) -> u32 {
    // FNV-1a: the keys are ours.
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}
