//! The stdout handler: one JSON object a line on standard output.
//!
//! Owns: file descriptor 1. Nothing else in the process may write there.
//! Never: answers Done for a line that the operating system does not have in full, or repeats a
//! line on the remains of a torn one.
//!
//! A write may stop in the middle of a line: the disk is full, or the process is killed. Such a
//! line was not Done, so it comes again. Whoever writes next starts on a new line: a program that
//! skips what does not parse sees every record. Where standard output is a file, this holds over
//! a restart as well. (In a pipe that outlives the process, nobody can know how it ended.)

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::{Claim, Handler, Outcome, encode};

/// The most claims in one call, and so in one write unless their lines are long.
const BATCH_MAX: usize = 1024;
/// What is encoded before it is written: bounds the memory of a batch of large records.
const BUFFER_BYTES: usize = 1024 * 1024;
/// A buffer that one huge record blew up beyond this is not kept.
const BUFFER_KEPT_BYTES: usize = 4 * BUFFER_BYTES;
/// How long to wait where somebody else made the descriptor non-blocking and it is full.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// Writes to standard output; see the module.
pub struct Stdout<W = File> {
    out: Mutex<Out<W>>,
    /// Buffers of calls that are over. As many as there were calls at once.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Why standard output cannot be used, or did not take a line.
#[derive(Debug, thiserror::Error)]
pub enum StdoutError {
    #[error("standard output cannot be opened; start onced with it connected to a file or a pipe")]
    Open(#[source] io::Error),
    #[error("writing to standard output failed: {0}")]
    Write(Arc<io::Error>),
    #[error("standard output was closed by its reader")]
    Closed,
}

impl Stdout {
    /// # Errors
    ///
    /// [`StdoutError::Open`] when the process has no descriptor left.
    pub fn new() -> Result<Self, StdoutError> {
        // Not `io::stdout()` itself: it writes line by line. A duplicate of the descriptor is
        // the same open file.
        let fd = io::stdout().as_fd().try_clone_to_owned().map_err(StdoutError::Open)?;
        let out = File::from(fd);
        // What cannot be read back counts as whole.
        let torn = ends_torn(&out, "/proc/self/fd/1").unwrap_or(false);
        Ok(Self::with(out, torn))
    }
}

/// True where `out` is a file that ends within a line. `path` opens it again, for reading; a pipe
/// or a terminal is not touched, for opening it could block.
fn ends_torn(out: &File, path: impl AsRef<Path>) -> io::Result<bool> {
    let metadata = out.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, metadata.len() - 1)?;
    Ok(last != *b"\n")
}

#[async_trait]
impl<W: Write + Send + 'static> Handler for Stdout<W> {
    async fn handle(&self, claim: &Claim) -> Outcome {
        let outcome = blocking(|| self.write(std::slice::from_ref(claim))).pop();
        outcome.expect("one claim has one outcome")
    }

    async fn handle_batch(&self, claims: &[Claim]) -> Vec<Outcome> {
        blocking(|| self.write(claims))
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn wants_client_key(&self) -> bool {
        false
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

/// A reader that does not read blocks the write for as long as it likes: the other tasks of the
/// runtime thread must go on.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

impl<W: Write> Stdout<W> {
    fn with(to: W, torn: bool) -> Self {
        Self { out: Mutex::new(Out { to, torn }), spare: Mutex::default() }
    }

    fn write(&self, claims: &[Claim]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(claims.len());
        let mut buffer = lock(&self.spare).pop().unwrap_or_default();
        while let Some(rest) = claims.get(outcomes.len()..).filter(|rest| !rest.is_empty()) {
            let ends = encode_some(&mut buffer, rest);
            // Encoding ran without the lock; only whole lines go out under it.
            let (written, failure) = lock(&self.out).write(&buffer);
            let done = ends.partition_point(|end| *end <= written);
            outcomes.extend((0..done).map(|_| Outcome::Done));
            if let Some(error) = failure {
                let error = Arc::new(error);
                outcomes.resize_with(claims.len(), || refused(&error));
            }
        }
        if buffer.capacity() <= BUFFER_KEPT_BYTES {
            lock(&self.spare).push(buffer);
        }
        outcomes
    }
}

/// Fills the buffer with the lines of the first claims; answers where each line ends.
fn encode_some(buffer: &mut Vec<u8>, claims: &[Claim]) -> Vec<usize> {
    buffer.clear();
    let mut ends = Vec::with_capacity(claims.len());
    for claim in claims {
        encode::line(buffer, claim);
        ends.push(buffer.len());
        if buffer.len() >= BUFFER_BYTES {
            break;
        }
    }
    ends
}

fn refused(error: &Arc<io::Error>) -> Outcome {
    match error.kind() {
        // Nobody reads any more, and nobody ever will: a pipe is not opened again.
        ErrorKind::BrokenPipe => Outcome::fatal(StdoutError::Closed),
        _ => Outcome::retry(StdoutError::Write(Arc::clone(error))),
    }
}

/// No state is half-changed while the locks are held, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Out<W> {
    to: W,
    /// The last byte that was written is not a newline.
    torn: bool,
}

impl<W: Write> Out<W> {
    /// Writes whole lines; answers how many of their bytes were taken, and why not all.
    fn write(&mut self, lines: &[u8]) -> (usize, Option<io::Error>) {
        if self.torn {
            if let (_, Some(error)) = self.write_all(b"\n") {
                return (0, Some(error));
            }
            self.torn = false;
        }
        let (written, error) = self.write_all(lines);
        self.torn = lines.get(..written).and_then(<[u8]>::last).is_some_and(|last| *last != b'\n');
        (written, error)
    }

    fn write_all(&mut self, bytes: &[u8]) -> (usize, Option<io::Error>) {
        let mut written = 0;
        while written < bytes.len() {
            match self.to.write(&bytes[written..]) {
                Ok(0) => return (written, Some(ErrorKind::WriteZero.into())),
                Ok(taken) => written += taken,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_WAIT),
                Err(error) => return (written, Some(error)),
            }
        }
        (written, None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Instant;

    use super::*;
    use crate::handler::encode::testing::claim;
    use crate::record::Offset;

    enum Step {
        Take(usize),
        Fail(ErrorKind),
    }
    use Step::{Fail, Take};

    /// Follows its script, then takes everything.
    struct Script {
        steps: VecDeque<Step>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let most = match self.steps.pop_front() {
                Some(Fail(kind)) => return Err(kind.into()),
                Some(Take(most)) => most.min(bytes.len()),
                None => bytes.len(),
            };
            lock(&self.taken).extend_from_slice(&bytes[..most]);
            Ok(most)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted(steps: impl IntoIterator<Item = Step>) -> (Stdout<Script>, Arc<Mutex<Vec<u8>>>) {
        let taken = Arc::default();
        let script = Script { steps: steps.into_iter().collect(), taken: Arc::clone(&taken) };
        (Stdout::with(script, false), taken)
    }

    fn claims(count: i64) -> Vec<Claim> {
        let one = |offset| {
            let mut claim = claim(Some(b"key"), &[], Some(b"payload"));
            claim.record.offset = Offset(offset);
            claim
        };
        (0..count).map(one).collect()
    }

    fn text(taken: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(lock(taken).clone()).unwrap()
    }

    /// The offsets of the lines that parse; what does not parse is skipped as a reader would.
    fn offsets(text: &str) -> Vec<i64> {
        let parsed =
            text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        parsed.map(|line| line["offset"].as_i64().unwrap()).collect()
    }

    fn line_len() -> usize {
        let mut line = Vec::new();
        encode::line(&mut line, &claims(1)[0]);
        line.len()
    }

    fn short(outcomes: &[Outcome]) -> String {
        let letter = |outcome: &Outcome| match outcome {
            Outcome::Done => 'D',
            Outcome::Retry { .. } => 'r',
            Outcome::Reject(_) => 'x',
            Outcome::Fatal(_) => 'F',
        };
        outcomes.iter().map(letter).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_batch_is_written_in_its_order_one_line_a_record() {
        let (stdout, taken) = scripted([]);
        assert_eq!(short(&stdout.handle_batch(&claims(3)).await), "DDD");
        assert!(matches!(stdout.handle(&claims(1)[0]).await, Outcome::Done));
        assert_eq!(offsets(&text(&taken)), [0, 1, 2, 0]);
        assert_eq!(text(&taken).lines().count(), 4);
    }

    #[test]
    fn interrupted_short_and_full_writes_go_on_where_they_stopped() {
        let steps = [
            Fail(ErrorKind::Interrupted),
            Take(1),
            Take(200),
            Fail(ErrorKind::WouldBlock),
            Take(7),
        ];
        let (stdout, taken) = scripted(steps);
        assert_eq!(short(&stdout.write(&claims(4))), "DDDD");
        assert_eq!(offsets(&text(&taken)), [0, 1, 2, 3]);
    }

    #[test]
    fn what_a_full_disk_did_not_take_whole_is_tried_again_on_a_new_line() {
        let (stdout, taken) = scripted([Take(2 * line_len() + 5), Fail(ErrorKind::StorageFull)]);
        let outcomes = stdout.write(&claims(4));
        assert_eq!(short(&outcomes), "DDrr");
        let Outcome::Retry { error, .. } = &outcomes[2] else { panic!("not a retry") };
        assert!(error.to_string().starts_with("writing to standard output failed: "), "{error}");
        assert_eq!(short(&stdout.write(&claims(4)[2..])), "DD");
        assert_eq!(offsets(&text(&taken)), [0, 1, 2, 3], "the torn line is alone on its line");
        assert_eq!(text(&taken).lines().count(), 5);
    }

    #[test]
    fn a_failure_between_two_lines_leaves_nothing_to_mend() {
        let (stdout, taken) = scripted([Take(line_len()), Fail(ErrorKind::StorageFull)]);
        assert_eq!(short(&stdout.write(&claims(2))), "Dr");
        assert_eq!(short(&stdout.write(&claims(2)[1..])), "D");
        assert_eq!(text(&taken).lines().count(), 2);
    }

    #[test]
    fn the_newline_that_mends_is_tried_until_it_is_written() {
        let full = || Fail(ErrorKind::StorageFull);
        let (stdout, taken) = scripted([Take(3), full(), full()]);
        assert_eq!(short(&stdout.write(&claims(1))), "r");
        assert_eq!(short(&stdout.write(&claims(1))), "r");
        assert_eq!(short(&stdout.write(&claims(1))), "D");
        assert_eq!(text(&taken).lines().next(), Some("{\"i"));
        assert_eq!(offsets(&text(&taken)), [0]);
    }

    #[test]
    fn a_closed_pipe_is_the_end() {
        let (stdout, _) = scripted([Take(line_len()), Fail(ErrorKind::BrokenPipe)]);
        let outcomes = stdout.write(&claims(3));
        assert_eq!(short(&outcomes), "DFF");
        let Outcome::Fatal(error) = &outcomes[1] else { panic!("not fatal") };
        assert_eq!(error.to_string(), "standard output was closed by its reader");
    }

    #[test]
    fn a_full_device_and_a_pipe_without_a_reader_are_told_apart() {
        let full = Stdout::with(File::options().write(true).open("/dev/full").unwrap(), false);
        assert_eq!(short(&full.write(&claims(2))), "rr");
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(short(&Stdout::with(writer, false).write(&claims(2))), "FF");
    }

    #[test]
    fn a_writer_that_takes_nothing_is_an_error_and_not_a_loop() {
        let (stdout, _) = scripted([Take(0)]);
        assert_eq!(short(&stdout.write(&claims(1))), "r");
    }

    #[test]
    fn large_records_are_written_in_parts_of_bounded_size() {
        let (stdout, taken) = scripted([]);
        let payload = vec![b'x'; 3 * BUFFER_BYTES / 4];
        let large: Vec<Claim> = (0..5).map(|_| claim(None, &[], Some(&payload))).collect();
        assert_eq!(short(&stdout.write(&large)), "DDDDD");
        assert_eq!(offsets(&text(&taken)).len(), 5);
        assert!(lock(&stdout.spare).iter().all(|buffer| buffer.capacity() <= BUFFER_KEPT_BYTES));
    }

    #[test]
    fn a_file_that_ends_within_a_line_is_noticed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let torn = |file: &tempfile::NamedTempFile| ends_torn(file.as_file(), file.path()).unwrap();
        assert!(!torn(&file), "an empty file is whole");
        file.write_all(b"{}\n{\"tor").unwrap();
        assert!(torn(&file));
        file.write_all(b"n\":1}\n").unwrap();
        assert!(!torn(&file));
        let null = File::options().write(true).open("/dev/null").unwrap();
        assert!(!ends_torn(&null, "/nowhere").unwrap(), "a device is not opened again");
    }

    #[test]
    fn the_first_line_after_a_torn_one_starts_on_a_new_line() {
        let taken = Arc::default();
        let script = Script { steps: VecDeque::new(), taken: Arc::clone(&taken) };
        let stdout = Stdout::with(script, true);
        assert_eq!(short(&stdout.write(&claims(1))), "D");
        assert!(text(&taken).starts_with("\n{"));
    }

    /// `cargo test --release -- --ignored --nocapture encoding`
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "a measurement"]
    async fn encoding_and_writing_is_measured() {
        let json = br#"{"payment":{"id":"7f9c24e8-3b12-4f7a-9d51-b2a7e5c1d930","amount":1250,"currency":"EUR"},"user":"user-4711","endpoint":"POST /payments","sent_at":"2026-01-01T00:00:00Z","note":"0123456789"}    "#;
        let plain = [b'x'; 200];
        for (name, payload) in [("json", &json[..]), ("plain", &plain[..])] {
            let null = File::options().write(true).open("/dev/null").unwrap();
            let stdout = Stdout::with(null, false);
            let headers = [(&b"Idempotency-Key"[..], Some(&b"7f9c24e8-3b12-4f7a-9d51"[..]))];
            let batch: Vec<Claim> = (0..BATCH_MAX)
                .map(|_| claim(Some(b"user-4711"), &headers, Some(payload)))
                .collect();
            let start = Instant::now();
            let rounds = 2000;
            for _ in 0..rounds {
                assert!(matches!(stdout.handle_batch(&batch).await.last(), Some(Outcome::Done)));
            }
            let rate = (rounds * BATCH_MAX) as f64 / start.elapsed().as_secs_f64();
            println!("{name}: {} bytes, {:.2} million records/s", payload.len(), rate / 1e6);
        }
    }
}
