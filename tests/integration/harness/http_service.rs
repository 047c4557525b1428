//! The service that an HTTP handler calls. A closure answers each request, every request is
//! recorded, and it misbehaves as told: slow, broken, gone and back again.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::process;
use super::wait::wait_until;

/// A request as it was read.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// When it was read whole.
    pub at: Instant,
    /// Requests are counted from 0, in the order in which they were read whole.
    pub number: usize,
    /// So are connections.
    pub connection: usize,
}

impl Request {
    /// The first header of this name; case does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What the service does with a request.
#[derive(Clone, Debug)]
pub struct Response {
    status: Option<u16>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
}

impl Response {
    pub fn status(status: u16) -> Self {
        Self { status: Some(status), headers: Vec::new(), body: Vec::new(), delay: Duration::ZERO }
    }

    pub fn ok() -> Self {
        Self::status(200)
    }

    /// Reads the request and drops the connection without an answer.
    pub fn hang_up() -> Self {
        Self { status: None, ..Self::status(0) }
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header("Retry-After", &seconds.to_string())
    }

    /// Waits before it answers, or hangs up.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// Runs until it is dropped.
pub struct HttpService {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

type Handler = dyn Fn(&Request) -> Response + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    requests: Mutex<Vec<Request>>,
    connections: Mutex<Vec<TcpStream>>,
    accepted: AtomicUsize,
    to_refuse: AtomicUsize,
    in_flight: AtomicUsize,
    in_flight_most: AtomicUsize,
    stopping: AtomicBool,
}

impl HttpService {
    /// Listens on a free port of the loopback. The closure runs in the connection's thread.
    ///
    /// # Panics
    ///
    /// Panics where no port is free.
    pub fn start(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            to_refuse: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_most: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let listener = process::free_listener();
        let address = listener.local_addr().expect("a bound socket has an address");
        let mut service = Self { address, shared, acceptor: None };
        service.listen(listener);
        service
    }

    /// For the handler's configuration. `path` begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests().clone()
    }

    /// The values of one header over all requests; requests without it are left out.
    pub fn header_values(&self, name: &str) -> Vec<String> {
        let requests = self.shared.requests();
        requests.iter().filter_map(|request| request.header(name).map(str::to_owned)).collect()
    }

    /// Waits until there were at least so many requests.
    ///
    /// # Panics
    ///
    /// Panics when there were fewer when the time is over.
    #[track_caller]
    pub fn wait_for(&self, count: usize, timeout: Duration) -> Vec<Request> {
        wait_until(&format!("{count} requests to the service"), timeout, || {
            let requests = self.requests();
            if requests.len() >= count { Ok(requests) } else { Err(requests.len()) }
        })
    }

    /// The most requests that were being answered at one time.
    pub fn max_in_flight(&self) -> usize {
        self.shared.in_flight_most.load(Ordering::SeqCst)
    }

    /// The next connections are dropped before a byte is read from them.
    pub fn refuse_connections(&self, count: usize) {
        self.shared.to_refuse.store(count, Ordering::SeqCst);
    }

    /// Nobody listens any more, and open connections break.
    pub fn go_away(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then looks at the flag.
        let _ = TcpStream::connect(self.address);
        acceptor.join().expect("the acceptor does not panic");
        for connection in self.shared.connections.lock().expect("no panic with it").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Listens again, on the same port.
    ///
    /// # Panics
    ///
    /// Panics where the port was taken meanwhile.
    pub fn come_back(&mut self) {
        if self.acceptor.is_none() {
            let listener = wait_until("the service's port is free", Duration::from_secs(5), || {
                TcpListener::bind(self.address)
            });
            self.listen(listener);
        }
    }

    fn listen(&mut self, listener: TcpListener) {
        self.shared.stopping.store(false, Ordering::SeqCst);
        let shared = Arc::clone(&self.shared);
        self.acceptor = Some(thread::spawn(move || shared.accept(&listener)));
    }
}

impl Drop for HttpService {
    fn drop(&mut self) {
        self.go_away();
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let one_less = |left: usize| left.checked_sub(1);
            if self.to_refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                continue;
            }
            let Ok(twin) = stream.try_clone() else { continue };
            self.connections.lock().expect("no panic with it").push(twin);
            let number = self.accepted.fetch_add(1, Ordering::SeqCst);
            let shared = Arc::clone(&self);
            thread::spawn(move || {
                // A connection that breaks is the client's business.
                let _ = shared.serve(&stream, number);
                // The twin would keep it open.
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    }

    /// Answers request after request, until the client wants no more or the answer is to hang up.
    fn serve(&self, stream: &TcpStream, connection: usize) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(mut request) = read_request(&mut reader, connection)? {
            request.number = {
                let mut requests = self.requests();
                request.number = requests.len();
                requests.push(request.clone());
                request.number
            };
            let in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
            self.in_flight_most.fetch_max(in_flight, Ordering::SeqCst);
            let response = (self.handler)(&request);
            thread::sleep(response.delay);
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            let Some(status) = response.status else { return Ok(()) };
            write_response(stream, status, &response)?;
            if request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().expect("nobody panics while holding the requests")
    }
}

/// `None` where the client has closed the connection between two requests.
fn read_request(
    reader: &mut BufReader<&TcpStream>,
    connection: usize,
) -> io::Result<Option<Request>> {
    let Some(first) = read_line(reader)? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    while let Some(line) = read_line(reader)?.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Request {
        method,
        path,
        headers,
        body: Vec::new(),
        at: Instant::now(),
        number: 0,
        connection,
    };
    request.body = read_body(reader, &request)?;
    request.at = Instant::now();
    Ok(Some(request))
}

fn read_body(reader: &mut BufReader<&TcpStream>, request: &Request) -> io::Result<Vec<u8>> {
    if request
        .header("transfer-encoding")
        .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    {
        return read_chunks(reader);
    }
    let length = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn read_chunks(reader: &mut BufReader<&TcpStream>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader)?.unwrap_or_default();
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let begin = body.len();
        body.resize(begin + length, 0);
        reader.read_exact(&mut body[begin..])?;
        read_line(reader)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

fn read_line(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn write_response(mut stream: &TcpStream, status: u16, response: &Response) -> io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {status} Told So\r\nContent-Length: {}\r\n", response.body.len());
    for (name, value) in &response.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&response.body);
    stream.write_all(&bytes)
}
