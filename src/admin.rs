//! The admin server: read-only HTTP for probes, Prometheus and people.
//!
//! Owns: the listener, its connections and the endpoints.
//! Never: changes anything, reads a request body, or lets who opens connections and says nothing
//! keep a probe from its answer.
//!
//! ```text
//! GET /          what there is
//! GET /livez     200 "ok"; 503 with the reason when the poll loop or a worker has stalled
//! GET /readyz    200 "ready"; 503 with one reason a line
//! GET /metrics   Prometheus text format 0.0.4
//! GET /status    JSON
//! ```

mod connections;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tower_service::Service;
use tracing::{debug, warn};

use self::connections::{Connections, Place};
use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// Whether the daemon makes progress; the error is the reason why not. Must not block: it is
/// asked on the thread that answers.
pub type Liveness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// What `/status` shows.
pub type Status = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the endpoints show.
#[derive(Clone)]
pub struct Sources {
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub status: Status,
    pub liveness: Liveness,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "admin.listen = \"{address}\" cannot be used; choose a free address, or \"\" to turn the admin server off"
    )]
    Bind { address: SocketAddr, source: io::Error },
}

/// # Errors
///
/// When the address is taken, or not one of this machine.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(address).await.map_err(|source| AdminError::Bind { address, source })
}

/// Answers until `shutdown` is there and what was asked before is answered.
pub async fn serve(listener: TcpListener, sources: Sources, shutdown: impl Future<Output = ()>) {
    serve_within(&LIMITS, listener, sources, shutdown).await;
}

struct Limits {
    connections: usize,
    /// From the first byte that could be read, or from the last answer, to the end of the
    /// request's head. Also what ends a connection that is kept alive for nothing.
    head: Duration,
    /// For the answers that are under way at a shutdown.
    goodbye: Duration,
}

const LIMITS: Limits =
    Limits { connections: 64, head: Duration::from_secs(5), goodbye: Duration::from_secs(1) };
/// Bounds the head of a request, and so the memory of a connection.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long to wait when no connection can be accepted, mostly for want of descriptors.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

async fn serve_within(
    limits: &Limits,
    listener: TcpListener,
    sources: Sources,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(sources);
    let connections = Connections::new(limits.connections);
    let closing = watch::Sender::new(false);
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            // Shutdown first: who connects without a pause must not keep the server alive.
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let place = connections.enter();
                tasks.spawn(serve_connection(
                    stream,
                    place,
                    router.clone(),
                    limits.head,
                    closing.subscribe(),
                ));
            }
            Err(error) => {
                warn!(%error, "Failed to accept an admin connection.");
                sleep(ACCEPT_WAIT).await;
            }
        }
    }
    drop(listener);
    closing.send_replace(true);
    let goodbye = async { while tasks.join_next().await.is_some() {} };
    if timeout(limits.goodbye, goodbye).await.is_err() {
        debug!("Closed admin connections that took too long to end.");
    }
}

async fn serve_connection(
    stream: TcpStream,
    mut place: Place,
    router: Router,
    head: Duration,
    mut closing: watch::Receiver<bool>,
) {
    let turns = place.turns();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (mut router, turn) = (router.clone(), turns.take());
        async move {
            let response: Result<Response, Infallible> = router.call(request.map(Body::new)).await;
            // What is left is to write it: a reader that does not read waits like any other.
            drop(turn);
            response
        }
    });
    // Not the builder that also knows HTTP/2: it waits for the first bytes without a limit. And
    // without a timer, hyper silently has no limit either.
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head).max_buf_size(HEAD_BYTES_MAX);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        () = place.evicted() => return,
        () = closed(&mut closing) => None,
        ended = &mut served => Some(ended),
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        served.as_mut().graceful_shutdown();
        served.await
    };
    if let Err(error) = ended {
        debug!(%error, "An admin connection ended early.");
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/", get(async || ENDPOINTS))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .fallback(async || {
            (StatusCode::NOT_FOUND, format!("there is no such page; known pages:\n{ENDPOINTS}"))
        })
        .layer(middleware::from_fn(harden))
        .with_state(sources)
}

const ENDPOINTS: &str = "\
/livez    whether onced makes progress
/readyz   whether every assigned partition is past what it absorbs
/metrics  for Prometheus
/status   JSON
";

async fn livez(State(sources): State<Sources>) -> Response {
    match (sources.liveness)() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n").into_response(),
    }
}

async fn readyz(State(sources): State<Sources>) -> Response {
    match sources.readiness.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reasons) => {
            (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
        }
    }
}

async fn metrics(State(sources): State<Sources>) -> Response {
    aside(move || {
        // Set when it is asked for, so that it cannot be late.
        sources.metrics.ready.set(sources.readiness.ready().is_ok().into());
        let text_format = [(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT))];
        (text_format, sources.metrics.encode()).into_response()
    })
    .await
}

async fn status(State(sources): State<Sources>) -> Response {
    aside(move || Json((sources.status)()).into_response()).await
}

/// On a thread of its own: what waits for a lock there must not keep a probe waiting.
async fn aside(answer: impl FnOnce() -> Response + Send + 'static) -> Response {
    let failed =
        |_| (StatusCode::INTERNAL_SERVER_ERROR, "this page failed; see the log\n").into_response();
    spawn_blocking(answer).await.unwrap_or_else(failed)
}

/// Refuses what brings a body, which no page reads, and lets no browser make more of an answer
/// than it is.
async fn harden(request: Request, next: Next) -> Response {
    let with_body = !request.body().is_end_stream();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if with_body && reads {
        (StatusCode::PAYLOAD_TOO_LARGE, "no page takes a request with a body\n").into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    if with_body {
        // The body was not read, so nothing that follows it can be.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::sync::Mutex;
    use std::thread;
    use std::time::Instant;

    use serde_json::json;
    use tokio::runtime::{self, Runtime};
    use tokio::sync::oneshot;

    use super::*;

    /// An admin server on a runtime of its own.
    struct Server {
        address: SocketAddr,
        sources: Sources,
        stop: oneshot::Sender<()>,
        served: tokio::task::JoinHandle<()>,
        runtime: Runtime,
    }

    impl Server {
        fn start(sources: Sources, limits: Limits) -> Self {
            let runtime = runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let listener = runtime.block_on(bind("127.0.0.1:0".parse().unwrap())).unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, stopped) = oneshot::channel::<()>();
            let shown = sources.clone();
            let served = runtime.spawn(async move {
                let stopped = async { drop(stopped.await) };
                serve_within(&limits, listener, shown, stopped).await;
            });
            Self { address, sources, stop, served, runtime }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream
        }

        /// The whole answer, head and body.
        fn ask(&self, head: &str) -> String {
            let mut stream = self.connect();
            stream
                .write_all(format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }

        fn get(&self, path: &str) -> String {
            self.ask(&format!("GET {path} HTTP/1.1"))
        }
    }

    fn sources() -> Sources {
        Sources {
            metrics: Metrics::new(),
            readiness: Readiness::new(),
            status: Arc::new(|| json!({"partitions": []})),
            liveness: Arc::new(|| Ok(())),
        }
    }

    fn server() -> Server {
        Server::start(sources(), LIMITS)
    }

    /// True when the other side closes within a second.
    fn is_closed(mut stream: &TcpStream) -> bool {
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        match stream.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    #[track_caller]
    fn check(answer: &str, status: &str, body: &str) {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.ends_with(body), "{answer}");
    }

    #[test]
    fn readiness_is_answered_with_one_reason_a_line() {
        let server = server();
        check(&server.get("/readyz"), "200", "\r\n\r\nready\n");
        let first = server.sources.readiness.latch("partition payments/3 is absorbing");
        let _second = server.sources.readiness.latch("the broker is away");
        let both = "\r\n\r\npartition payments/3 is absorbing\nthe broker is away\n";
        check(&server.get("/readyz"), "503", both);
        assert!(server.get("/metrics").contains("\nonced_ready 0\n"));
        drop(first);
        check(&server.get("/readyz"), "503", "\r\n\r\nthe broker is away\n");
    }

    #[test]
    fn a_stall_is_answered_with_its_reason() {
        let stall = Arc::new(Mutex::new(Ok(())));
        let told = Arc::clone(&stall);
        let server = Server::start(
            Sources { liveness: Arc::new(move || told.lock().unwrap().clone()), ..sources() },
            LIMITS,
        );
        check(&server.get("/livez"), "200", "\r\n\r\nok\n");
        *stall.lock().unwrap() = Err("worker 1 has stalled".to_owned());
        check(&server.get("/livez"), "503", "\r\n\r\nworker 1 has stalled\n");
    }

    #[test]
    fn metrics_and_status_are_served_in_their_formats() {
        let server = server();
        let metrics = server.get("/metrics");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4\r\n"), "{metrics}");
        assert!(metrics.contains("\nonced_ready 1\n"), "{metrics}");
        let status = server.get("/status");
        assert!(status.contains("content-type: application/json\r\n"), "{status}");
        check(&status, "200", "{\"partitions\":[]}");
        check(&server.get("/"), "200", ENDPOINTS);
    }

    #[test]
    fn nothing_but_reading_what_is_there_is_allowed() {
        let server = server();
        check(&server.get("/explain.php"), "404", ENDPOINTS);
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            check(&server.ask(&format!("{method} /status HTTP/1.1")), "405", "");
        }
        check(&server.ask("HEAD /livez HTTP/1.1"), "200", "\r\n\r\n");
        check(&server.ask("GET /livez HTTP/1.1\r\nContent-Length: 5"), "413", "with a body\n");
        check(&server.ask("POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked"), "405", "");
        let long = format!("GET /livez HTTP/1.1\r\nX: {}", "x".repeat(2 * HEAD_BYTES_MAX));
        check(&server.ask(&long), "431", "");
    }

    #[test]
    fn every_answer_is_hardened() {
        let server = server();
        for path in ["/livez", "/metrics", "/status", "/nowhere"] {
            let answer = server.get(path);
            for header in [
                "x-content-type-options: nosniff\r\n",
                "cache-control: no-store\r\n",
                "content-security-policy: default-src 'none'\r\n",
            ] {
                assert!(answer.contains(header), "{path}: {answer}");
            }
        }
    }

    #[test]
    fn a_probe_is_answered_within_a_second_whoever_holds_connections_open() {
        let server = server();
        let half_open = |at: usize| {
            let mut stream = server.connect();
            // A third says nothing, a third stops in its head, a third goes on after an answer.
            match at % 3 {
                0 => {}
                1 => stream.write_all(b"GET /livez HTTP/1.1\r\nHost:").unwrap(),
                _ => {
                    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                    assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                }
            }
            stream
        };
        let held: Vec<TcpStream> = (0..200).map(half_open).collect();
        for _ in 0..5 {
            let start = Instant::now();
            check(&server.get("/livez"), "200", "ok\n");
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
        assert!(is_closed(&held[0]), "who waited longest was closed");
        drop(held);
    }

    #[test]
    fn a_probe_is_answered_though_pages_hang_and_readers_do_not_read() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Mutex::new(hang);
        let hanging = Sources {
            status: Arc::new(move || {
                let _ = hang.lock().unwrap().recv();
                json!(null)
            }),
            ..sources()
        };
        for route in 0..200 {
            let _ = hanging.metrics.route(&format!("route-{route}"));
        }
        let server = Server::start(hanging, LIMITS);
        let held: Vec<TcpStream> = (0..100)
            .map(|at| {
                let mut stream = server.connect();
                let path = if at % 2 == 0 { "/status" } else { "/metrics" };
                stream
                    .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
                    .unwrap();
                stream
            })
            .collect();
        thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        check(&server.get("/livez"), "200", "ok\n");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        drop((release, held));
    }

    #[test]
    fn a_head_that_does_not_end_is_given_up() {
        let server =
            Server::start(sources(), Limits { head: Duration::from_millis(200), ..LIMITS });
        let silent = server.connect();
        let mut dripping = server.connect();
        let start = Instant::now();
        for byte in b"GET /livez HTTP/1.1\r\nHost: a-name-that-comes-slowly\r\n".iter().take(20) {
            thread::sleep(Duration::from_millis(20));
            if dripping.write_all(&[*byte]).is_err() {
                break;
            }
        }
        assert!(is_closed(&silent) && is_closed(&dripping));
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_connection_may_be_used_again() {
        let server = server();
        let mut stream = server.connect();
        for _ in 0..3 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = [0; 1024];
            let read = stream.read(&mut answer).unwrap();
            check(std::str::from_utf8(&answer[..read]).unwrap(), "200", "ok\n");
        }
    }

    #[test]
    fn a_shutdown_ends_what_is_open_and_lets_an_answer_finish() {
        let slow = Sources {
            status: Arc::new(|| {
                thread::sleep(Duration::from_millis(300));
                json!("late")
            }),
            ..sources()
        };
        let server = Server::start(slow, LIMITS);
        let idle = server.connect();
        let mut asking = server.connect();
        asking.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        thread::sleep(Duration::from_millis(100));
        let Server { address, stop, served, runtime, .. } = server;
        stop.send(()).unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).unwrap();
        check(&answer, "200", "\"late\"");
        assert!(is_closed(&idle));
        runtime.block_on(served).unwrap();
        assert!(TcpStream::connect(address).is_err(), "the listener is gone");
        let _ = asking.shutdown(Shutdown::Both);
    }

    #[test]
    fn an_address_that_is_taken_is_an_error_that_names_the_key_and_the_way_out() {
        let server = server();
        let error = server.runtime.block_on(bind(server.address)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("admin.listen = \"{}\"", server.address)), "{error}");
        assert!(error.contains("choose a free address"), "{error}");
    }
}
