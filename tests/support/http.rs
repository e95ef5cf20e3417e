//! Requests over HTTP as they are written, byte by byte.
#![allow(dead_code, reason = "each area of the tests uses a part of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// As they came.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value; names are compared in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = |line: &str| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(key, _)| key.len() + 2);
        self.head.lines().find_map(|line| value(line).map(|at| &line[at..]))
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The sentence of an answer that says no.
    pub fn error(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        json["error"].as_str().unwrap().to_owned()
    }
}

/// Asks with the method, the address and lines of headers, and reads to the end.
pub fn ask(server: SocketAddr, line: &str, headers: &[&str]) -> Answer {
    ask_with(server, line, headers, "")
}

/// The same with a body.
pub fn ask_with(server: SocketAddr, line: &str, headers: &[&str], body: &str) -> Answer {
    let mut request = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
    headers.iter().for_each(|header| request += &format!("{header}\r\n"));
    if !body.is_empty() {
        request += &format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", body.len());
    }
    exchange(server, &format!("{request}\r\n{body}"))
}

/// Sends `bytes` and reads to the end.
pub fn exchange(server: SocketAddr, bytes: &str) -> Answer {
    let mut stream = connect(server);
    stream.write_all(bytes.as_bytes()).unwrap();
    read(&mut stream)
}

/// A connection whose reads do not wait for ever.
pub fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// What comes to the end of the connection; what is refused in the middle of a request may end in a reset.
pub fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(error.kind() == ErrorKind::ConnectionReset && !bytes.is_empty(), "{error}: {}", String::from_utf8_lossy(&bytes));
    }
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&bytes)));
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: bytes[end + 4..].to_vec() }
}

/// After what time the other end has closed a connection.
pub fn closed_after(stream: &mut TcpStream) -> Duration {
    let begin = Instant::now();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("not closed within {:?}: {error}", begin.elapsed()),
    }
    begin.elapsed()
}
