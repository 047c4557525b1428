//! The HTTP handler: one POST for each claim.
//!
//! Owns: the request, and what each answer of the server means.
//! Never: calls a second time by itself, follows a redirect or asks the environment for a proxy.
//!
//! ```text
//! POST url                      the payload; an empty body where it is null
//! Idempotency-Key               the same at every attempt for a message
//! onced-key                     the key as the client sent it, where a header can carry it
//! onced-attempt                 from 1
//! onced-source                  topic/partition/offset
//! Content-Type                  that of the record's header, else application/json
//!
//! 2xx                                     Done
//! 401 403 408 409 425 429 5xx             Retry, not before Retry-After
//! timeout, broken connection              Retry
//! any other status, redirects included    Reject
//! ```

use std::error::Error;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Client, Response, StatusCode, Url, redirect, retry};

use super::{Claim, Handler, Outcome};
use crate::clock;
use crate::record::{Record, Timestamp};

/// How the handler of a route calls.
#[derive(Clone, Debug)]
pub struct Config {
    /// `http` or `https`. User and password in it become basic authentication.
    pub url: String,
    /// For the whole call: connect, send, and the answer with its body.
    pub timeout: Duration,
}

/// Why a handler cannot be made from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(
        "handler.url is not a URL ({reason}); write it like \"http://127.0.0.1:8080/payments\""
    )]
    NotAUrl { reason: String },
    #[error(
        "handler.url starts with \"{scheme}:\", which cannot be called; known schemes: http, https"
    )]
    UnknownScheme { scheme: String },
    #[error(
        "handler.timeout is 0, so that no call could ever end well; write a duration like \"10s\""
    )]
    NoTimeout,
    #[error(
        "the HTTP client cannot be set up; check the certificates and the OpenSSL of this machine"
    )]
    Client(#[source] reqwest::Error),
}

/// Calls an HTTP server; see the module.
pub struct Http {
    client: Client,
    url: Url,
    timeout: Duration,
}

impl Http {
    /// `concurrency`: how many calls there are at once, and so how many connections are kept.
    ///
    /// # Errors
    ///
    /// When the URL cannot be called, or the TLS library cannot be set up.
    pub fn new(config: &Config, concurrency: usize) -> Result<Self, HttpError> {
        let url = parse_url(&config.url)?;
        if config.timeout.is_zero() {
            return Err(HttpError::NoTimeout);
        }
        let client = Client::builder()
            .user_agent(concat!("onced/", env!("CARGO_PKG_VERSION")))
            .timeout(config.timeout)
            .pool_max_idle_per_host(concurrency)
            .redirect(redirect::Policy::none())
            // A call is an attempt: only the pipeline repeats it.
            .retry(retry::never())
            .no_proxy()
            .build()
            .map_err(HttpError::Client)?;
        Ok(Self { client, url, timeout: config.timeout })
    }
}

/// The URL stays out of the errors: it may carry a password.
fn parse_url(text: &str) -> Result<Url, HttpError> {
    let url =
        Url::from_str(text).map_err(|error| HttpError::NotAUrl { reason: error.to_string() })?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => Err(HttpError::UnknownScheme { scheme: scheme.to_owned() }),
    }
}

#[async_trait]
impl Handler for Http {
    async fn handle(&self, claim: &Claim) -> Outcome {
        let headers = match request_headers(claim) {
            Ok(headers) => headers,
            Err(error) => return Outcome::reject(error),
        };
        match self.call(claim, headers).await {
            Ok(answer) => answer.into_outcome(),
            Err(error) => Outcome::retry(error),
        }
    }
}

impl Http {
    async fn call(&self, claim: &Claim, headers: HeaderMap) -> Result<Answer, CallError> {
        let body = claim.record().payload_bytes().unwrap_or_default();
        let request = self.client.post(self.url.clone()).headers(headers).body(body);
        let response = request.send().await.map_err(|error| self.failure(&error))?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        // An answer that breaks off is no answer, whatever its status: the next attempt tells.
        let excerpt = read_body(response).await.map_err(|error| self.failure(&error))?;
        Ok(Answer { status, retry_after, excerpt })
    }

    fn failure(&self, error: &reqwest::Error) -> CallError {
        if error.is_timeout() {
            return CallError::TimedOut { timeout: self.timeout };
        }
        CallError::Broken { cause: causes(error) }
    }
}

/// What lies below the error. Its own text would only add the URL.
fn causes(error: &reqwest::Error) -> String {
    let mut texts = Vec::new();
    let mut below = error.source();
    while let Some(cause) = below {
        texts.push(cause.to_string());
        below = cause.source();
    }
    texts.join(": ")
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the handler did not answer within {}", humantime::format_duration(*timeout))]
    TimedOut { timeout: Duration },
    #[error("the call to the handler broke off: {cause}")]
    Broken { cause: String },
    #[error("the handler answered {status}{}", after_colon(body))]
    Refused { status: StatusCode, body: String },
    #[error(
        "the idempotency key {key:?} cannot be sent unchanged in an HTTP header; \
         set handler.idempotency_key = \"identity\""
    )]
    KeyNotLegal { key: String },
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    excerpt: Vec<u8>,
}

impl Answer {
    fn into_outcome(self) -> Outcome {
        if self.status.is_success() {
            return Outcome::Done;
        }
        let error = CallError::Refused { status: self.status, body: printable(&self.excerpt) };
        if is_passing(self.status) {
            return Outcome::Retry { error: error.into(), after: self.retry_after };
        }
        Outcome::reject(error)
    }
}

/// True where the answer says nothing of the record: the next one may be another.
fn is_passing(status: StatusCode) -> bool {
    // 401 and 403 are about our credentials, which somebody will renew.
    status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 408 | 409 | 425 | 429)
}

/// How much of an answer is read, so that its connection can be used again.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How much of an answer goes into the error.
const EXCERPT_BYTES_MAX: usize = 512;
const _: () = assert!(EXCERPT_BYTES_MAX <= BODY_BYTES_MAX);

/// Reads the body and keeps its beginning. One that is too long is left alone: dropping the
/// response closes the connection.
async fn read_body(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut excerpt = Vec::new();
    let mut read = 0;
    while let Some(chunk) = response.chunk().await? {
        let missing = EXCERPT_BYTES_MAX - excerpt.len();
        excerpt.extend_from_slice(&chunk[..chunk.len().min(missing)]);
        read += chunk.len();
        if read > BODY_BYTES_MAX {
            break;
        }
    }
    Ok(excerpt)
}

/// Foreign bytes as one line of text: errors end up in headers, logs and terminals.
fn printable(bytes: &[u8]) -> String {
    let whole = match str::from_utf8(bytes) {
        // Cut within a character.
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    };
    let mut text = String::with_capacity(whole.len());
    for char in String::from_utf8_lossy(whole).trim_end().chars() {
        if char.is_control() {
            text.extend(char.escape_default());
        } else {
            text.push(char);
        }
    }
    text
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const KEY: HeaderName = HeaderName::from_static("onced-key");
const ATTEMPT: HeaderName = HeaderName::from_static("onced-attempt");
const SOURCE: HeaderName = HeaderName::from_static("onced-source");

fn request_headers(claim: &Claim) -> Result<HeaderMap, CallError> {
    let mut headers = HeaderMap::with_capacity(8);
    let key = claim.idempotency_key();
    let Some(legal) = unchanged(key.as_bytes()) else {
        // Without its key, or with another one, a call could run twice: rather a letter.
        return Err(CallError::KeyNotLegal { key: key.into_owned() });
    };
    headers.insert(IDEMPOTENCY_KEY, legal);
    headers.insert(ATTEMPT, claim.attempt().into());
    if let Some(key) = claim.client_key().and_then(unchanged) {
        headers.insert(KEY, key);
    }
    if let Some(source) = unchanged(claim.record().coordinates().as_bytes()) {
        headers.insert(SOURCE, source);
    }
    if claim.record().payload().is_none_or(<[u8]>::is_empty) {
        // The client leaves it out for an empty body, and then some servers wait or answer 411.
        headers.insert(CONTENT_LENGTH, 0.into());
    }
    if let Some(content_type) = content_type(claim.record()) {
        headers.insert(CONTENT_TYPE, content_type);
    }
    Ok(headers)
}

/// A header value that arrives as it is. A server strips the spaces around a value, so two keys
/// that differ only there would become one.
fn unchanged(bytes: &[u8]) -> Option<HeaderValue> {
    let edge = |byte: Option<&u8>| matches!(byte, None | Some(b' ' | b'\t'));
    if edge(bytes.first()) || edge(bytes.last()) {
        return None;
    }
    HeaderValue::from_bytes(bytes).ok()
}

/// What the producer said of the payload, else JSON. `None`: there is no payload.
fn content_type(record: &Record) -> Option<HeaderValue> {
    record.payload()?;
    let named = record.headers().filter(|(name, _)| name.eq_ignore_ascii_case(b"content-type"));
    let said = named.last().and_then(|(_, value)| value).and_then(unchanged);
    Some(said.unwrap_or(HeaderValue::from_static("application/json")))
}

/// Seconds or a date. What cannot be read counts as absent; how much of it counts is bounded where
/// delays are computed.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number can have mean "never again".
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    Some(until(http_date(text)?, clock::now()))
}

/// Zero for what has passed.
fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(at.0.saturating_sub(now.0)).unwrap_or(0))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that a server may send today.
fn http_date(text: &str) -> Option<Timestamp> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_weekday, date) = text.split_once(", ")?;
    let parts: Vec<&str> = date.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts[..] else { return None };
    let month = 1 + MONTHS.iter().position(|name| *name == month)?;
    let at = humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()?;
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp(i64::try_from(since.as_millis()).ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Instant;

    use bytes::Bytes;

    use super::*;
    use crate::handler::encode::testing::claim;

    /// A request as the server got it: the lines of its head, its body, and which connection.
    #[derive(Clone, Debug)]
    struct Seen {
        head: Vec<String>,
        body: Vec<u8>,
        connection: usize,
    }

    impl Seen {
        fn header(&self, name: &str) -> Option<&str> {
            let mut pairs = self.head.iter().filter_map(|line| line.split_once(": "));
            pairs.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        }
    }

    /// A server of which each test says what it answers.
    struct Server {
        url: String,
        seen: Arc<Mutex<Vec<Seen>>>,
    }

    impl Server {
        fn answering(answer: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/payments", listener.local_addr().unwrap());
            let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
            let server = Self { url, seen: Arc::clone(&seen) };
            let answer = Arc::new(answer);
            thread::spawn(move || {
                for (connection, stream) in listener.incoming().enumerate() {
                    let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                    thread::spawn(move || serve(connection, stream.unwrap(), &seen, &*answer));
                }
            });
            server
        }

        fn saying(head: &'static str, body: &'static str) -> Self {
            Self::answering(move |_, stream| respond(stream, head, body))
        }

        fn seen(&self) -> Vec<Seen> {
            self.seen.lock().unwrap().clone()
        }

        fn http(&self) -> Http {
            self.http_within(Duration::from_secs(10))
        }

        fn http_within(&self, timeout: Duration) -> Http {
            Http::new(&Config { url: self.url.clone(), timeout }, 8).unwrap()
        }
    }

    fn serve(
        connection: usize,
        mut stream: TcpStream,
        seen: &Mutex<Vec<Seen>>,
        answer: &dyn Fn(&Seen, &mut TcpStream),
    ) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let lines = reader.by_ref().lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            if head.is_empty() {
                return;
            }
            let mut request = Seen { head, body: Vec::new(), connection };
            let len = request.header("content-length").map_or(0, |len| len.parse().unwrap());
            request.body.resize(len, 0);
            reader.read_exact(&mut request.body).unwrap();
            seen.lock().unwrap().push(request.clone());
            answer(&request, &mut stream);
        }
    }

    fn respond(stream: &mut TcpStream, head: &str, body: &str) {
        let length = body.len();
        let text = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n{body}");
        let _ = stream.write_all(text.as_bytes());
    }

    fn payment() -> Claim {
        claim(Some(b"user-1"), &[], Some(b"{\"amount\":1}"))
    }

    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Done => "done",
            Outcome::Retry { .. } => "retry",
            Outcome::Reject(_) => "reject",
            Outcome::Fatal(_) => "fatal",
        }
    }

    #[track_caller]
    fn error_of(outcome: Outcome) -> String {
        match outcome {
            Outcome::Retry { error, .. } | Outcome::Reject(error) | Outcome::Fatal(error) => {
                error.to_string()
            }
            Outcome::Done => panic!("done"),
        }
    }

    #[tokio::test]
    async fn a_call_carries_the_payload_and_the_headers_of_the_contract() {
        let server = Server::saying("200 OK", "");
        let mut claim = payment();
        claim.attempt = 3;
        assert_eq!(kind(&server.http().handle(&claim).await), "done");
        let seen = &server.seen()[0];
        assert_eq!(seen.head[0], "POST /payments HTTP/1.1");
        assert_eq!(seen.body, b"{\"amount\":1}");
        assert_eq!(seen.header("Idempotency-Key"), Some("07070707070707070707070707070707"));
        assert_eq!(seen.header("onced-key"), Some("client-key"));
        assert_eq!(seen.header("onced-attempt"), Some("3"));
        assert_eq!(seen.header("onced-source"), Some("payments/3/42"));
        assert_eq!(seen.header("content-type"), Some("application/json"));
    }

    #[tokio::test]
    async fn a_null_payload_is_an_empty_body_of_no_type() {
        let server = Server::saying("204 No Content", "");
        assert_eq!(kind(&server.http().handle(&claim(None, &[], None)).await), "done");
        let seen = &server.seen()[0];
        assert_eq!(seen.body, b"");
        assert_eq!(seen.header("content-length"), Some("0"));
        assert_eq!(seen.header("content-type"), None);
    }

    #[tokio::test]
    async fn the_content_type_of_the_record_is_passed_on() {
        let server = Server::saying("200 OK", "");
        let headers = [(&b"Content-Type"[..], Some(&b"application/avro"[..]))];
        server.http().handle(&claim(None, &headers, Some(b"x"))).await;
        let illegal = [(&b"content-type"[..], Some(&b"a\r\nb: c"[..]))];
        server.http().handle(&claim(None, &illegal, Some(b"x"))).await;
        let types: Vec<_> = server
            .seen()
            .iter()
            .map(|seen| seen.header("content-type").map(str::to_owned))
            .collect();
        assert_eq!(
            types,
            [Some("application/avro".to_owned()), Some("application/json".to_owned())]
        );
    }

    #[tokio::test]
    async fn a_client_key_that_no_header_can_carry_is_left_out() {
        let server = Server::saying("200 OK", "");
        for key in [&b"a\nb"[..], b"", b" padded", b"\x00"] {
            let mut claim = payment();
            claim.client_key = Some(Bytes::copy_from_slice(key));
            assert_eq!(kind(&server.http().handle(&claim).await), "done");
        }
        assert!(server.seen().iter().all(|seen| seen.header("onced-key").is_none()));
    }

    #[tokio::test]
    async fn an_idempotency_key_that_no_header_can_carry_is_rejected_without_a_call() {
        let server = Server::saying("200 OK", "");
        for key in ["a\r\nb", "", "padded "] {
            let mut claim = payment();
            claim.gives_client_key = true;
            claim.client_key = Some(key.into());
            let outcome = server.http().handle(&claim).await;
            assert_eq!(kind(&outcome), "reject");
            assert!(error_of(outcome).contains("handler.idempotency_key = \"identity\""));
        }
        assert_eq!(server.seen().len(), 0);
    }

    #[tokio::test]
    async fn the_status_decides() {
        #[track_caller]
        fn check(status: u16, outcome: &Outcome, expected: &str) {
            assert_eq!(kind(outcome), expected, "status {status}");
        }
        let statuses = Arc::new(Mutex::new(0));
        let next = Arc::clone(&statuses);
        let server = Server::answering(move |_, stream| {
            let status = *next.lock().unwrap();
            // These have no body, and so no length of one.
            if status == 204 || status == 304 {
                stream.write_all(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes()).unwrap();
            } else {
                respond(stream, &format!("{status} x"), "");
            }
        });
        let http = server.http();
        let expected: [(&str, &[u16]); 3] = [
            ("done", &[200, 201, 202, 204, 299]),
            ("retry", &[401, 403, 408, 409, 425, 429, 500, 501, 502, 503, 504, 599]),
            ("reject", &[300, 304, 400, 402, 404, 405, 410, 413, 415, 422, 451]),
        ];
        for (kind, each) in expected {
            for status in each {
                *statuses.lock().unwrap() = *status;
                check(*status, &http.handle(&payment()).await, kind);
            }
        }
    }

    #[tokio::test]
    async fn the_error_holds_the_status_and_the_beginning_of_the_body_on_one_line() {
        let server = Server::saying("422 x", "no such\n\u{1b}[31maccount\t\u{e9}\n");
        let error = error_of(server.http().handle(&payment()).await);
        assert_eq!(
            error,
            "the handler answered 422 Unprocessable Entity: no such\\n\\u{1b}[31maccount\\t\u{e9}"
        );
        let long = "y".repeat(511) + &"\u{e9}".repeat(30_000);
        let long = Server::answering(move |_, stream| respond(stream, "400 x", &long));
        let error = error_of(long.http().handle(&payment()).await);
        assert_eq!(error, format!("the handler answered 400 Bad Request: {}", "y".repeat(511)));
        assert_eq!(printable(b"\xff\x00ok"), "\u{fffd}\\u{0}ok");
    }

    #[tokio::test]
    async fn a_connection_is_used_again_whatever_the_answer_was() {
        let server = Server::answering(|seen, stream| match seen.header("onced-attempt") {
            Some("1") => respond(stream, "200 OK", &"x".repeat(BODY_BYTES_MAX)),
            Some("2") => respond(stream, "503 x", "busy"),
            _ => respond(stream, "400 x", "bad"),
        });
        let http = server.http();
        for attempt in 1..=4 {
            let mut claim = payment();
            claim.attempt = attempt;
            http.handle(&claim).await;
        }
        let seen = server.seen();
        assert_eq!(seen.len(), 4);
        assert!(seen.iter().all(|seen| seen.connection == 0), "{seen:?}");
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_is_left_after_its_beginning() {
        let server = Server::answering(|_, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let http = server.http();
        let start = Instant::now();
        assert_eq!(kind(&http.handle(&payment()).await), "done");
        assert_eq!(kind(&http.handle(&payment()).await), "done");
        assert!(start.elapsed() < Duration::from_secs(5), "the timeout did not end it");
        assert_eq!(server.seen()[1].connection, 1, "the first connection was dropped");
    }

    #[tokio::test]
    async fn the_timeout_covers_the_wait_for_the_answer_and_its_body() {
        let silent = Server::answering(|_, _| thread::sleep(Duration::from_secs(3)));
        let dripping = Server::answering(|_, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
            while stream.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
        });
        for server in [silent, dripping] {
            let start = Instant::now();
            let outcome = server.http_within(Duration::from_millis(300)).handle(&payment()).await;
            assert_eq!(kind(&outcome), "retry");
            assert_eq!(error_of(outcome), "the handler did not answer within 300ms");
            assert!(start.elapsed() < Duration::from_secs(2));
        }
    }

    #[tokio::test]
    async fn a_broken_connection_is_a_retry_wherever_it_breaks() {
        let before = Server::answering(|_, stream| stream.shutdown(Shutdown::Both).unwrap());
        let within = Server::answering(|_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
        });
        let nonsense = Server::answering(|_, stream| {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n");
        });
        for server in [&before, &within, &nonsense] {
            let outcome = server.http().handle(&payment()).await;
            assert_eq!(kind(&outcome), "retry");
            let error = error_of(outcome);
            assert!(error.starts_with("the call to the handler broke off: "), "{error}");
            assert_eq!(server.seen().len(), 1, "only the pipeline calls again");
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nobody = Config {
            url: format!("http://user:secret@127.0.0.1:{port}/?token=secret"),
            timeout: Duration::from_secs(5),
        };
        let error = error_of(Http::new(&nobody, 1).unwrap().handle(&payment()).await);
        assert!(error.contains("refused"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let server = Server::saying("307 x\r\nLocation: /elsewhere", "");
        let outcome = server.http().handle(&payment()).await;
        assert_eq!(kind(&outcome), "reject");
        assert_eq!(error_of(outcome), "the handler answered 307 Temporary Redirect");
        assert_eq!(server.seen().len(), 1);
    }

    #[tokio::test]
    async fn retry_after_is_honoured() {
        let server = Server::saying("429 x\r\nRetry-After: 17", "slow down");
        let Outcome::Retry { error, after } = server.http().handle(&payment()).await else {
            panic!("not a retry")
        };
        assert_eq!(after, Some(Duration::from_secs(17)));
        assert_eq!(error.to_string(), "the handler answered 429 Too Many Requests: slow down");
        let dated = Server::answering(|_, stream| {
            respond(stream, "503 x\r\nRetry-After: Fri, 31 Dec 2100 23:59:59 GMT", "");
        });
        let Outcome::Retry { after, .. } = dated.http().handle(&payment()).await else {
            panic!("not a retry")
        };
        assert!(after > Some(Duration::from_secs(365 * 24 * 60 * 60)), "{after:?}");
    }

    #[test]
    fn both_forms_of_retry_after_are_read_and_nonsense_is_absent() {
        #[track_caller]
        fn check(text: &'static str, expected: Option<Duration>) {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            assert_eq!(retry_after(&headers), expected, "{text}");
        }
        check("0", Some(Duration::ZERO));
        check(" 120 ", Some(Duration::from_secs(120)));
        check("99999999999999999999999999", Some(Duration::MAX));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(Duration::ZERO));
        for nonsense in
            ["", "-1", "1.5", "soon", "Sun, 06 Nov 1994 08:49:37", "Sun, 99 Nov 1994 08:49:37 GMT"]
        {
            check(nonsense, None);
        }
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Timestamp(784_111_777_000)));
        assert_eq!(until(Timestamp(5_500), Timestamp(4_000)), Duration::from_millis(1_500));
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused_with_the_way_out() {
        #[track_caller]
        fn check(url: &str, timeout: Duration, expected: &str) {
            let error = Http::new(&Config { url: url.to_owned(), timeout }, 1).err();
            let text = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains(expected), "{text}");
        }
        let second = Duration::from_secs(1);
        check("127.0.0.1:8080", second, "is not a URL");
        check("", second, "write it like \"http://");
        check("ftp://x/", second, "known schemes: http, https");
        check("http://127.0.0.1:8080", Duration::ZERO, "handler.timeout is 0");
    }
}
