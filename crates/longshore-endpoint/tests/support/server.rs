//! A server for tests: HTTP/1.1 over real sockets, with keep-alive, whose answers a test decides on.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) line: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A status with header lines and a body, which goes with its length.
    Status(u16, Vec<String>, String),
    /// The body in chunks of some bytes.
    Chunked(String),
    /// These bytes; then the connection is closed.
    Raw(Vec<u8>),
    /// Nothing, until the client goes.
    Hang,
}

impl Reply {
    pub(crate) fn ok(body: &Value) -> Self {
        Self::Status(200, Vec::new(), body.to_string())
    }

    pub(crate) fn error(status: u16, message: &str) -> Self {
        Self::Status(status, Vec::new(), json!({"error": {"message": message}}).to_string())
    }

    /// With one more header line.
    pub(crate) fn with(self, header: &str) -> Self {
        match self {
            Self::Status(status, mut headers, body) => {
                headers.push(header.to_owned());
                Self::Status(status, headers, body)
            }
            other => other,
        }
    }
}

type Handler = Box<dyn Fn(usize, &Seen) -> Reply + Send + Sync>;

struct State {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    handler: Handler,
}

/// A running server; its threads end with the process.
pub(crate) struct Server {
    pub(crate) url: String,
    state: Arc<State>,
}

impl Server {
    /// A server whose `handler` gets each request with its number, from 0.
    pub(crate) fn new(handler: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
        let handler = Box::new(handler);
        let state = Arc::new(State { seen: Mutex::new(Vec::new()), connections: AtomicUsize::new(0), handler });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                state.connections.fetch_add(1, Ordering::SeqCst);
                // A client that goes away ends its connection.
                std::thread::spawn(move || drop(state.serve(stream)));
            }
        });
        Self { url, state }
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(seen) = read(&mut reader)? {
            let number = {
                let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(seen.clone());
                all.len() - 1
            };
            match (self.handler)(number, &seen) {
                Reply::Status(status, headers, body) => {
                    let headers = headers.iter().flat_map(|line| [line.as_str(), "\r\n"]).collect::<String>();
                    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
                    stream.write_all((head + &body).as_bytes())?;
                }
                Reply::Chunked(body) => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                    for chunk in body.as_bytes().chunks(7) {
                        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                        stream.write_all(&[chunk, b"\r\n"].concat())?;
                    }
                    stream.write_all(b"0\r\n\r\n")?;
                }
                Reply::Raw(bytes) => return stream.write_all(&bytes),
                Reply::Hang => return reader.read_to_end(&mut Vec::new()).map(drop),
            }
        }
        Ok(())
    }
}

/// One request; `None` at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut seen = Seen { line: line.trim_end().to_owned(), headers, body: Value::Null };
    if let Some(length) = seen.header("content-length").and_then(|text| text.parse::<usize>().ok()) {
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        seen.body = serde_json::from_slice(&body).unwrap_or_default();
    }
    Ok(Some(seen))
}
