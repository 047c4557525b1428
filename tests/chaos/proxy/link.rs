//! One connection through the proxy: a client, the broker behind it, and a thread each way.
//!
//! Owns: the two sockets, and the requests whose answers are to be dropped or noted. Never: which
//! fault comes next; [`Shared`] decides that for each request.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::hold::{Cell, Fate};
use super::wire::Head;
use super::{Action, Shared};

/// What each direction reads at once.
const CHUNK: usize = 16 * 1024;
/// As much of a request as is read before it is judged: an `EndTxn` as a whole, and the head of
/// everything else.
const JUDGED: usize = 4 * 1024;
/// No broker takes a longer request. What claims to be longer is no Kafka, and passes unread.
const FRAME_MAX: usize = 128 * 1024 * 1024;
/// Requests longer than this are not held, so that memory is bounded.
pub(super) const HELD_MAX: usize = 1024 * 1024;

pub(super) struct Link {
    client: TcpStream,
    broker: TcpStream,
    closed: AtomicBool,
    /// A request of this link is held: its way to the broker stays open.
    holding: AtomicBool,
    /// By correlation id. A client has at most so many requests under way.
    marks: Mutex<Vec<(i32, Mark)>>,
}

/// What is to be done with an answer.
enum Mark {
    Drop,
    Note(Arc<Cell>, usize),
}

impl Link {
    pub fn new(client: TcpStream, broker: TcpStream) -> Self {
        // A delay that the proxy adds by itself would not be a fault that anybody asked for.
        let _ = (client.set_nodelay(true), broker.set_nodelay(true));
        let (closed, holding) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { client, broker, closed, holding, marks: Mutex::new(Vec::new()) }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Closes both ends; with a request held, only the client's.
    pub fn cut(&self) {
        if self.holding.load(Ordering::SeqCst) {
            let _ = self.client.shutdown(Shutdown::Both);
        } else {
            self.close();
        }
    }

    /// An end that is closed already is fine.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.broker.shutdown(Shutdown::Both);
    }

    /// Passes requests on until the client or the broker has had enough.
    pub fn run_requests(&self, shared: &Shared) {
        match self.requests(shared) {
            // The broker may still have answers under way.
            Ok(()) => drop(self.broker.shutdown(Shutdown::Write)),
            Err(_) => self.close(),
        }
    }

    /// Passes answers on, the same way.
    pub fn run_answers(&self, shared: &Shared) {
        // How it ended does not matter: the connection is over.
        let _ = self.answers(shared);
        self.close();
        for (_, mark) in self.marks().drain(..) {
            match mark {
                Mark::Note(cell, number) => cell.answer(number, None),
                // Its answer was behind another that was dropped.
                Mark::Drop => shared.count(|counts| counts.dropped += 1),
            }
        }
    }

    fn requests(&self, shared: &Shared) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        while let Some(size) = read_size(&self.client, &mut buffer)? {
            if size > FRAME_MAX {
                self.send(shared, &self.broker, &buffer[..4])?;
                return self.pass_unread(shared, &mut buffer);
            }
            let judged = size.min(JUDGED);
            (&self.client).read_exact(&mut buffer[4..4 + judged])?;
            let head = Head::parse(&buffer[4..4 + judged]);
            match head.map(|head| (shared.judge(&head, size), head)) {
                None | Some((Action::Pass, _)) => {}
                Some((Action::Delay(time), _)) => shared.wait_for(time, self)?,
                Some((Action::DropAnswer, head)) => {
                    self.marks().push((head.correlation, Mark::Drop));
                }
                Some((Action::Hold { cell, cut }, head)) => {
                    let mut frame = buffer[..4 + judged].to_vec();
                    frame.resize(4 + size, 0);
                    (&self.client).read_exact(&mut frame[4 + judged..])?;
                    self.hold(shared, head, &frame, &cell, cut)?;
                    continue;
                }
            }
            self.send(shared, &self.broker, &buffer[..4 + judged])?;
            self.pass(shared, &self.client, &self.broker, size - judged, &mut buffer)?;
        }
        Ok(())
    }

    fn hold(
        &self,
        shared: &Shared,
        head: Head,
        frame: &[u8],
        cell: &Arc<Cell>,
        cut: bool,
    ) -> io::Result<()> {
        self.holding.store(true, Ordering::SeqCst);
        let correlation = head.correlation;
        let number = cell.add(head);
        self.marks().push((correlation, Mark::Note(Arc::clone(cell), number)));
        shared.count(|counts| counts.held += 1);
        if cut {
            let _ = self.client.shutdown(Shutdown::Both);
        }
        if cell.wait_for_fate() == Fate::Discard {
            shared.count(|counts| counts.discarded += 1);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.send(shared, &self.broker, frame)?;
        shared.count(|counts| counts.released += 1);
        // A broker drops the answer when it sees the end of the connection first.
        cell.wait_for_answer(number);
        self.holding.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn answers(&self, shared: &Shared) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        while let Some(size) = read_size(&self.broker, &mut buffer)? {
            let judged = size.min(4);
            (&self.broker).read_exact(&mut buffer[4..4 + judged])?;
            let correlation = i32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
            match self.take_mark(correlation) {
                None => {
                    self.answer(shared, &buffer[..4 + judged])?;
                    let left = size - judged;
                    self.pass(shared, &self.broker, &self.client, left, &mut buffer)?;
                }
                Some(Mark::Drop) => {
                    shared.count(|counts| counts.dropped += 1);
                    return Ok(());
                }
                Some(Mark::Note(cell, number)) => {
                    let mut frame = buffer[..4 + judged].to_vec();
                    let left = (size - judged) as u64;
                    (&self.broker).take(left).read_to_end(&mut frame)?;
                    cell.answer(number, Some(frame[4..].to_vec()));
                    self.answer(shared, &frame)?;
                }
            }
        }
        Ok(())
    }

    /// Sends to the client. One that is gone misses its answers; its requests still arrive.
    fn answer(&self, shared: &Shared, bytes: &[u8]) -> io::Result<()> {
        match self.send(shared, &self.client, bytes) {
            Err(_) if !self.is_closed() => Ok(()),
            result => result,
        }
    }

    fn pass(
        &self,
        shared: &Shared,
        mut from: &TcpStream,
        to: &TcpStream,
        mut left: usize,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let to_the_client = std::ptr::eq(to, &raw const self.client);
        while left > 0 {
            let read = from.read(&mut buffer[..left.min(CHUNK)])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if to_the_client {
                self.answer(shared, &buffer[..read])?;
            } else {
                self.send(shared, to, &buffer[..read])?;
            }
            left -= read;
        }
        Ok(())
    }

    fn pass_unread(&self, shared: &Shared, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match (&self.client).read(buffer)? {
                0 => return Ok(()),
                read => self.send(shared, &self.broker, &buffer[..read])?,
            }
        }
    }

    /// Waits while nothing goes through, then sends.
    fn send(&self, shared: &Shared, mut to: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        shared.wait_while_black(self)?;
        to.write_all(bytes)
    }

    fn take_mark(&self, correlation: i32) -> Option<Mark> {
        let mut marks = self.marks();
        let at = marks.iter().position(|(marked, _)| *marked == correlation)?;
        Some(marks.swap_remove(at).1)
    }

    fn marks(&self) -> MutexGuard<'_, Vec<(i32, Mark)>> {
        self.marks.lock().expect("nothing panics with it")
    }
}

/// Reads the length of the next frame into the first four bytes. `None` at the end.
fn read_size(mut from: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match from.read(&mut buffer[..4])? {
        0 => return Ok(None),
        read => from.read_exact(&mut buffer[read..4])?,
    }
    let size = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
    Ok(Some(usize::try_from(size).expect("a machine of at least 32 bits")))
}
