//! The smallest HTTP server that a scraper needs: GET /metrics, one response per connection. Clients are untrusted:
//! request size, request time and the number of connections are limited. When the limit of connections is reached, the
//! oldest connection is closed, and one that has not sent its request yet before all others, so that silent connections
//! do not lock scrapers out.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::metrics::text::Exposition;
use crate::output::error::CommandError;

/// Maximum number of open connections.
const CLIENTS: usize = 64;
/// Timeout for receiving a request; a scraper sends it immediately.
const HEADER: Duration = Duration::from_secs(2);
/// Timeout for sending a response.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes per write.
const PIECE: usize = 16 << 10;
/// Maximum size of a request, in bytes.
const REQUEST_MAX: usize = 8 << 10;

/// The address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// An address and a port.
    Tcp(String),
}

impl MetricsAddress {
    /// Parses `unix:///PATH`, `tcp://ADDRESS:PORT` or `ADDRESS:PORT`.
    pub fn parse(text: &str) -> Result<Self, CommandError> {
        let wrong = |problem: &str| CommandError::bad_input(format!("listen on {text}: {problem}"));
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(wrong("write an absolute path, as unix:///run/bpfman-hook-metrics/http.sock")),
            };
        }
        let address = text.strip_prefix("tcp://").unwrap_or(text);
        match address.parse::<std::net::SocketAddr>() {
            Ok(_) => Ok(Self::Tcp(address.to_owned())),
            Err(_) => Err(wrong("write unix:///PATH, or an address and a port as 127.0.0.1:9437")),
        }
    }
}

/// A connection.
trait Stream: Read + Write + Send + 'static {
    fn limit(&self, read: Duration, write: Duration) -> io::Result<()>;
    fn end(&self);
    /// Another handle to the same connection.
    fn handle(&self) -> io::Result<Self>
    where
        Self: Sized;
    /// Shuts the connection down in both directions: a thread that reads or writes it stops.
    fn cut(&self);
}

macro_rules! stream {
    ($socket:ty) => {
        impl Stream for $socket {
            fn handle(&self) -> io::Result<Self> {
                self.try_clone()
            }

            fn cut(&self) {
                let _ = self.shutdown(std::net::Shutdown::Both);
            }

            fn limit(&self, read: Duration, write: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(read)).and_then(|()| self.set_write_timeout(Some(write)))
            }

            fn end(&self) {
                let _ = self.shutdown(std::net::Shutdown::Write);
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);

/// Produces a page.
pub type Pages = dyn Fn(Exposition) -> Result<String, CommandError> + Send + Sync;

/// Listens and serves until the process ends.
///
/// # Errors
/// If it cannot listen.
pub fn serve(address: &MetricsAddress, pages: Arc<Pages>) -> Result<(), CommandError> {
    let failed = |error: io::Error| {
        CommandError::doing(match address {
            MetricsAddress::Unix(path) => format!("listen on {}", path.display()),
            MetricsAddress::Tcp(address) => format!("listen on {address}"),
        })(error)
    };
    match address {
        MetricsAddress::Tcp(address) => {
            let listener = TcpListener::bind(address).map_err(failed)?;
            accept(|| listener.accept().map(|(stream, _)| stream), pages)
        }
        MetricsAddress::Unix(path) => {
            clear(path).map_err(failed)?;
            let listener = UnixListener::bind(path).map_err(failed)?;
            accept(|| listener.accept().map(|(stream, _)| stream), pages)
        }
    }
}

/// Removes the stale socket of a process that has exited, and nothing else.
fn clear(path: &Path) -> io::Result<()> {
    let stale = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    if stale { fs::remove_file(path) } else { Ok(()) }
}

/// The open connections, oldest first.
#[derive(Debug)]
struct Open<S>(Mutex<VecDeque<ScrapeConnection<S>>>);

/// One open connection.
#[derive(Debug)]
struct ScrapeConnection<S> {
    number: u64,
    stream: S,
    /// True once its request has been received.
    asked: bool,
}

impl<S: Stream> Open<S> {
    fn clients(&self) -> MutexGuard<'_, VecDeque<ScrapeConnection<S>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection; if the limit is reached, another one is closed for it.
    fn admit(&self, number: u64, stream: S) {
        let mut clients = self.clients();
        if clients.len() >= CLIENTS {
            let silent = clients.iter().position(|client| !client.asked).unwrap_or(0);
            if let Some(client) = clients.remove(silent) {
                client.stream.cut();
            }
        }
        clients.push_back(ScrapeConnection { number, stream, asked: false });
    }

    fn asked(&self, number: u64) {
        self.clients().iter_mut().filter(|client| client.number == number).for_each(|client| client.asked = true);
    }

    fn gone(&self, number: u64) {
        self.clients().retain(|client| client.number != number);
    }
}

fn accept<S: Stream>(next: impl Fn() -> io::Result<S>, pages: Arc<Pages>) -> ! {
    let open = Arc::new(Open(Mutex::default()));
    for number in 0.. {
        let admitted = next().and_then(|stream| {
            stream.limit(HEADER, PATIENCE)?;
            open.admit(number, stream.handle()?);
            Ok(stream)
        });
        let Ok(mut stream) = admitted else {
            // Out of descriptors, or the client disconnected immediately.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        let (pages, held) = (pages.clone(), open.clone());
        let spawned = thread::Builder::new().spawn(move || {
            let _ = exchange(&mut stream, &*pages, || held.asked(number));
            held.gone(number);
        });
        if spawned.is_err() {
            open.gone(number);
        }
    }
    unreachable!("2^64 connections are never made")
}

/// Reads a request and sends the response; `asked` is called in between.
fn exchange(stream: &mut impl Stream, pages: &Pages, asked: impl FnOnce()) -> io::Result<()> {
    let request = match request(stream) {
        Ok(request) => request,
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            return answer(stream, "431 Request Header Fields Too Large", "text/plain", "the request is too long\n", true);
        }
        Err(error) => return Err(error),
    };
    asked();
    let (status, kind, body, with_body) = respond(&request, pages);
    answer(stream, status, kind, &body, with_body)
}

/// The bytes up to the empty line.
fn request(stream: &mut impl Stream) -> io::Result<String> {
    let (end, mut bytes, mut buffer) = (Instant::now() + HEADER, Vec::new(), [0; 1024]);
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") && !bytes.windows(2).any(|w| w == b"\n\n") {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.limit(left.max(Duration::from_millis(1)), PATIENCE)?;
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
        if bytes.len() > REQUEST_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Status, content type, body, and whether the body is sent.
fn respond(request: &str, pages: &Pages) -> (&'static str, &'static str, String, bool) {
    let mut lines = request.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next());
    let plain = "text/plain; charset=utf-8";
    let with_body = method != "HEAD";
    if !version.is_some_and(|version| version.starts_with("HTTP/1.")) || words.next().is_some() {
        return ("400 Bad Request", plain, "this is not an HTTP/1 request\n".to_owned(), true);
    }
    if !matches!(method, "GET" | "HEAD") {
        return ("405 Method Not Allowed", plain, "GET only\n".to_owned(), true);
    }
    if target.split('?').next() != Some("/metrics") {
        return ("404 Not Found", plain, "see /metrics\n".to_owned(), with_body);
    }
    let accept: Vec<&str> = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("accept"))
        .map(|(_, value)| value)
        .collect();
    let exposition = Exposition::accepted(&accept.join(","));
    match pages(exposition) {
        Ok(page) => ("200 OK", exposition.content_type(), page, with_body),
        Err(error) => ("503 Service Unavailable", plain, format!("{error}\n"), with_body),
    }
}

fn answer(stream: &mut impl Stream, status: &str, kind: &str, body: &str, with_body: bool) -> io::Result<()> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let length = body.len();
    let mut text =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n");
    if with_body {
        text.push_str(body);
    }
    // One deadline for the whole response: a timeout per write would restart with every byte that a slow reader
    // accepts.
    let (end, mut rest) = (Instant::now() + PATIENCE, text.as_bytes());
    while !rest.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.limit(PATIENCE, left)?;
        // A single write of the whole response would block in the kernel repeatedly.
        match stream.write(&rest[..rest.len().min(PIECE)]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.end();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Arc<Pages> {
        Arc::new(|exposition| Ok(format!("{exposition:?}\n")))
    }

    #[test]
    fn requests_get_the_expected_responses() {
        for (request, status) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
            ("GET /metrics?x=y HTTP/1.0\r\n\r\n", "200 OK"),
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("GET /metrics/../etc HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("GET /metrics\r\n\r\n", "400 Bad Request"),
            ("GET /metrics HTTP/1.1 x\r\n\r\n", "400 Bad Request"),
            ("\r\n\r\n", "400 Bad Request"),
        ] {
            assert_eq!(respond(request, &*pages()).0, status, "{request}");
        }
        let (_, kind, body, _) = respond("GET /metrics HTTP/1.1\r\naCCept: application/openmetrics-text\r\n\r\n", &*pages());
        assert!(kind.starts_with("application/openmetrics-text") && body == "OpenMetrics\n");
        let (status, _, body, _) = respond("GET /metrics HTTP/1.1\r\n\r\n", &|_| Err(CommandError::new("read x: no")));
        assert_eq!((status, body.as_str()), ("503 Service Unavailable", "read x: no\n"));
    }

    #[test]
    fn addresses_are_absolute_paths_or_numeric() {
        assert_eq!(MetricsAddress::parse("unix:///run/x"), Ok(MetricsAddress::Unix("/run/x".into())));
        assert_eq!(MetricsAddress::parse("127.0.0.1:9437"), Ok(MetricsAddress::Tcp("127.0.0.1:9437".into())));
        assert_eq!(MetricsAddress::parse("tcp://[::1]:9437"), Ok(MetricsAddress::Tcp("[::1]:9437".into())));
        for bad in ["unix://run/x", "localhost", "9437", "http://127.0.0.1:1", ""] {
            assert!(MetricsAddress::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn silent_connections_do_not_lock_scrapers_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("http.sock");
        // A stale socket is replaced.
        drop(UnixListener::bind(&path).unwrap());
        let address = MetricsAddress::Unix(path.clone());
        thread::spawn(move || serve(&address, pages()));
        let end = Instant::now() + Duration::from_secs(20);
        let connect = || loop {
            if let Ok(stream) = UnixStream::connect(&path) {
                return stream;
            }
            assert!(Instant::now() < end, "the server does not listen");
            thread::yield_now();
        };
        let get = || {
            let mut stream = connect();
            let mut text = String::new();
            // A connection that is closed with unread data is reset, which may discard the response.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").and_then(|()| stream.read_to_string(&mut text));
            text
        };
        assert!(get().starts_with("HTTP/1.1 200 OK\r\n"));
        let mut long = connect();
        let _ = long.write_all(&[b'x'; 20_000]);
        let mut text = Vec::new();
        let _ = long.read_to_end(&mut text);
        assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 431"));
        // More silent connections than the limit: every scrape is still answered, and the oldest connections are
        // closed.
        let mut silent: Vec<UnixStream> = (0..2 * CLIENTS).map(|_| connect()).collect();
        for _ in 0..10 {
            assert!(get().starts_with("HTTP/1.1 200"), "silent connections lock scrapers out");
        }
        silent[0].set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(silent[0].read(&mut [0; 1]).unwrap(), 0, "the oldest connection is closed");
        drop(silent);
    }

    #[test]
    fn a_slow_reader_does_not_keep_its_connection() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let page = "x".repeat(64 << 20);
        let began = Instant::now();
        let reader = thread::spawn(move || {
            // More often than any timeout per write.
            let mut some = [0; 64 << 10];
            while matches!(theirs.read(&mut some), Ok(1..)) {
                thread::sleep(Duration::from_millis(50));
            }
        });
        let error = answer(&mut ours, "200 OK", "text/plain", &page, true).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
        assert!(began.elapsed() < 3 * PATIENCE);
        drop(ours);
        reader.join().unwrap();
    }
}
