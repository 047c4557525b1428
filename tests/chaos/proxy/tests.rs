//! The proxy before a broker that answers every request with its correlation id and one error.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::{EndTxn, Proxy, Which};

/// More than any step takes on a machine whose cores are busy.
const SOON: Duration = Duration::from_secs(20);
/// That something does not happen cannot be waited for.
const NOT: Duration = Duration::from_millis(100);
/// What the broker answers: 47, an old epoch.
const FENCED: i16 = 47;

/// A client, the proxy, and what reaches the broker: frames without their length.
struct Scene {
    proxy: Proxy,
    port: u16,
    arrived: Receiver<Vec<u8>>,
}

impl Scene {
    fn new() -> Self {
        let broker = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = broker.local_addr().unwrap().port();
        let (frames, arrived) = channel();
        thread::spawn(move || {
            for client in broker.incoming() {
                let frames = frames.clone();
                thread::spawn(move || answer_all(client.unwrap(), &frames));
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Proxy::serve(vec![(listener, target)]).unwrap();
        Self { proxy, port, arrived }
    }

    fn client(&self) -> Client {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Client { socket }
    }

    #[track_caller]
    fn expect_arrival(&self, request: &[u8]) {
        let arrived = self.arrived.recv_timeout(SOON).expect("a request arrives");
        assert!(arrived == request, "the bytes arrive as they were sent");
    }

    #[track_caller]
    fn expect_no_arrival(&self) {
        assert_eq!(self.arrived.recv_timeout(NOT), Err(RecvTimeoutError::Timeout));
    }
}

fn answer_all(mut client: TcpStream, frames: &Sender<Vec<u8>>) {
    while let Some(frame) = read_frame(&mut client) {
        // Correlation id, no throttling, the error.
        let mut answer = frame[4..8].to_vec();
        if frame.starts_with(&[0, 26, 0, 3]) {
            answer.push(0); // No tagged fields.
        }
        answer.extend_from_slice(&[0; 4]);
        answer.extend_from_slice(&FENCED.to_be_bytes());
        let _ = frames.send(frame);
        if write_frame(&mut client, &answer).is_err() {
            return;
        }
    }
}

struct Client {
    socket: TcpStream,
}

impl Client {
    fn send(&mut self, request: &[u8]) {
        write_frame(&mut self.socket, request).unwrap();
    }

    #[track_caller]
    fn expect_answer(&mut self, correlation: i32) {
        let answer = read_frame(&mut self.socket).expect("an answer comes");
        assert_eq!(answer[..4], correlation.to_be_bytes());
    }

    #[track_caller]
    fn expect_end(&mut self) {
        assert_eq!(read_frame(&mut self.socket), None, "the connection ends without an answer");
    }

    #[track_caller]
    fn expect_works(&mut self, scene: &Scene) {
        let request = request(Which::Metadata, 1, 99, b"x");
        self.send(&request);
        scene.expect_arrival(&request);
        self.expect_answer(99);
    }
}

fn write_frame(to: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    let size = u32::try_from(frame.len()).unwrap();
    to.write_all(&[&size.to_be_bytes()[..], frame].concat())
}

fn read_frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut size = [0; 4];
    from.read_exact(&mut size).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(size) as usize];
    from.read_exact(&mut frame).ok()?;
    Some(frame)
}

fn request(which: Which, version: i16, correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = which.api_key().to_be_bytes().to_vec();
    frame.extend(version.to_be_bytes());
    frame.extend(correlation.to_be_bytes());
    frame.extend(2_i16.to_be_bytes());
    frame.extend(b"me");
    frame.extend(body);
    frame
}

fn end_txn(version: i16, correlation: i32, commit: bool) -> Vec<u8> {
    let mut body = if version < 3 { b"\0\x02id".to_vec() } else { b"\0\x03id".to_vec() };
    body.extend(7_i64.to_be_bytes());
    body.extend(3_i16.to_be_bytes());
    body.push(u8::from(commit));
    if version >= 3 {
        body.push(0);
    }
    request(Which::EndTxn, version, correlation, &body)
}

#[test]
fn whatever_it_is_passes_both_ways() {
    let scene = Scene::new();
    let mut client = scene.client();
    for (number, size) in (0..).zip([0, 1, 4_086, 4_087, 20_000, 3_000_000]) {
        let request = request(Which::Produce, 9, number, &vec![7; size]);
        client.send(&request);
        scene.expect_arrival(&request);
        client.expect_answer(number);
    }
    // Too short to be a request, and an end of a transaction that is cut short.
    for nonsense in [vec![0, 26, 0, 0, 0, 0, 0, 5], request(Which::EndTxn, 1, 6, b"\0\xffx")] {
        client.send(&nonsense);
        scene.expect_arrival(&nonsense);
        assert!(read_frame(&mut client.socket).is_some());
    }
    assert_eq!(scene.proxy.requests(Which::Produce), 6);
    assert_eq!(scene.proxy.requests(Which::EndTxn), 2);
    assert_eq!(scene.proxy.requests(Which::Commit), 0);
}

#[test]
fn an_answer_that_is_dropped_leaves_the_request_done() {
    let scene = Scene::new();
    scene.proxy.drop_responses(Which::OffsetCommit, 1);
    let mut client = scene.client();
    client.expect_works(&scene);
    let commit = request(Which::OffsetCommit, 7, 5, b"offsets");
    client.send(&commit);
    scene.expect_arrival(&commit);
    client.expect_end();

    let mut client = scene.client();
    client.send(&commit);
    scene.expect_arrival(&commit);
    client.expect_answer(5);
    assert_eq!(scene.proxy.injected().dropped, 1);
}

#[test]
fn a_held_commit_arrives_late_and_on_its_own_connection() {
    for version in [1, 3] {
        let scene = Scene::new();
        let hold = scene.proxy.hold(Which::Commit, 1);
        let mut client = scene.client();
        let abort = end_txn(version, 1, false);
        client.send(&abort);
        scene.expect_arrival(&abort);
        client.expect_answer(1);

        let held = end_txn(version, 2, true);
        client.send(&held);
        client.expect_end();
        assert!(hold.wait(SOON));
        let id = "id".to_owned();
        let end = EndTxn { transactional_id: id, producer_id: 7, epoch: 3, commit: true };
        assert_eq!(hold.held()[0].end_txn, Some(end));

        // The client tries again, also after all connections were cut.
        scene.proxy.cut_all();
        let mut client = scene.client();
        let again = end_txn(version, 1, true);
        client.send(&again);
        scene.expect_arrival(&again);
        client.expect_answer(1);
        scene.expect_no_arrival();

        let late = hold.release();
        scene.expect_arrival(&held);
        assert_eq!(late.len(), 1);
        assert_eq!(late[0].error, Some(FENCED));
        client.expect_works(&scene);
        let injected = scene.proxy.injected();
        assert_eq!((injected.held, injected.released, injected.discarded), (1, 1, 0));
    }
}

#[test]
fn a_client_that_is_kept_waiting_gets_the_late_answer() {
    let scene = Scene::new();
    let hold = scene.proxy.hold_open(Which::Abort, 1);
    let mut client = scene.client();
    let held = end_txn(1, 2, false);
    client.send(&held);
    assert!(hold.wait(SOON));
    scene.expect_no_arrival();
    assert_eq!(hold.release()[0].error, Some(FENCED));
    scene.expect_arrival(&held);
    client.expect_answer(2);
    client.expect_works(&scene);
}

#[test]
fn a_hold_that_is_dropped_discards_what_it_holds() {
    let scene = Scene::new();
    let hold = scene.proxy.hold(Which::TxnOffsetCommit, 2);
    let mut client = scene.client();
    client.send(&request(Which::TxnOffsetCommit, 3, 2, b"offsets"));
    client.expect_end();
    assert!(hold.wait(SOON));
    assert_eq!(scene.proxy.planned(), 1);
    drop(hold);
    assert_eq!(scene.proxy.planned(), 0);
    scene.expect_no_arrival();
    assert_eq!(scene.proxy.injected().discarded, 1);
}

#[test]
fn a_delayed_request_arrives_later_and_the_next_one_behind_it() {
    let scene = Scene::new();
    let delay = Duration::from_millis(300);
    scene.proxy.delay(Which::AddPartitionsToTxn, delay, 1);
    let mut client = scene.client();
    let begun = Instant::now();
    let requests =
        [request(Which::AddPartitionsToTxn, 0, 1, b""), request(Which::Heartbeat, 3, 2, b"")];
    requests.iter().for_each(|request| client.send(request));
    for (number, request) in (1..).zip(&requests) {
        scene.expect_arrival(request);
        client.expect_answer(number);
    }
    assert!(begun.elapsed() >= delay);
    assert_eq!(scene.proxy.injected().delayed, 1);
}

#[test]
fn nothing_passes_a_black_hole_and_all_of_it_arrives_afterwards() {
    let scene = Scene::new();
    let mut given_up = scene.client();
    given_up.expect_works(&scene);
    let mut patient = scene.client();
    patient.expect_works(&scene);
    scene.proxy.blackhole(Duration::from_secs(3600));
    let lost = request(Which::Produce, 9, 1, &[1; 100_000]);
    given_up.send(&lost);
    drop(given_up);
    scene.expect_no_arrival();
    scene.proxy.heal();
    scene.expect_arrival(&lost);
    patient.expect_works(&scene);

    let begun = Instant::now();
    scene.proxy.blackhole(Duration::from_millis(200));
    patient.expect_works(&scene);
    assert!(begun.elapsed() >= Duration::from_millis(200), "it ends by itself");
    assert_eq!(scene.proxy.injected().blackholes, 2);
}

#[test]
fn connections_are_cut_and_refused() {
    let scene = Scene::new();
    let mut clients = [scene.client(), scene.client()];
    clients.iter_mut().for_each(|client| client.expect_works(&scene));
    scene.proxy.refuse(Duration::from_secs(3600));
    scene.proxy.cut_all();
    clients.iter_mut().for_each(Client::expect_end);
    scene.client().expect_end();
    scene.proxy.heal();
    scene.client().expect_works(&scene);
    let injected = scene.proxy.injected();
    assert_eq!((injected.cut, injected.refused, injected.connections), (2, 1, 4));
}

#[test]
fn it_ends_with_all_its_connections() {
    let scene = Scene::new();
    let mut client = scene.client();
    client.expect_works(&scene);
    drop(scene.proxy);
    client.expect_end();
}
