//! An HTTP proxy on a loopback port that tunnels (CONNECT) every request to one address, and may require credentials.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// How a proxy treats its clients.
#[derive(Debug, Clone)]
pub enum Manners {
    /// Connects every client.
    Open,
    /// Connects clients that send this in `Proxy-Authorization`.
    Login(&'static str),
    /// Responds with this status.
    Refuse(u16),
    /// Never responds.
    Stall,
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy that connects to `to`.
    pub fn start(to: &str, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("the port");
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, end, to) = (asked.clone(), stop.clone(), to.to_owned());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), log, to, manners) = (stream, log.clone(), to.clone(), manners.clone()) else { continue };
                std::thread::spawn(move || serve(&stream, &log, &to, &manners));
            }
        });
        Self { address, asked, stop, thread: Some(thread) }
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The requested CONNECT targets.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic holds it").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, log: &Mutex<Vec<String>>, to: &str, manners: &Manners) {
    let mut reader = BufReader::new(stream);
    let head: Vec<String> = (&mut reader).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(target) = head.first().and_then(|line| line.strip_prefix("CONNECT ")?.split(' ').next()) else { return };
    log.lock().expect("no panic holds it").push(target.to_owned());
    let shown = head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.trim())
    });
    let say = |text: &str| drop((&mut &*stream).write_all(text.as_bytes()));
    match manners {
        Manners::Login(wanted) if shown != Some(wanted) => {
            say(
                "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n",
            );
        }
        Manners::Refuse(status) => say(&format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n")),
        Manners::Stall => drop(reader.read_line(&mut String::new())),
        Manners::Open | Manners::Login(_) => {
            let Ok(there) = TcpStream::connect(to) else { return say("HTTP/1.1 502 X\r\n\r\n") };
            say("HTTP/1.1 200 Connection established\r\n\r\n");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = std::io::copy(&mut reader, &mut &there);
                    let _ = there.shutdown(std::net::Shutdown::Write);
                });
                let _ = std::io::copy(&mut &there, &mut &*stream);
                let _ = stream.shutdown(std::net::Shutdown::Both);
            });
        }
    }
}
