//! What comes to a door without belonging there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends bytes, and wants the door to close the connection.
pub fn is_shown_out(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // It may close before all is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// What a web server says, from the status on.
pub fn answer(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What is no HTTP/2, no TLS, and nothing at all.
pub fn garbage(address: &str) {
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: coordinator\r\n\r\n"[..],
        &[0; 4096],
        &[0xff; 100],
        // The beginning of a TLS handshake, of a length that it doesn't have.
        &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 5, 9, 9, 9, 9, 9],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ] {
        is_shown_out(address, bytes);
    }
}

/// Those that say nothing, or a byte now and then. They stay as long as this lives.
pub fn slow(address: &str, count: usize) -> Vec<TcpStream> {
    let connect = |index: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&b"PRI * "[..index % 7]).unwrap();
        stream
    };
    (0..count).map(connect).collect()
}

/// The TCP ports on which a process listens.
pub fn listening(pid: u32) -> Vec<u16> {
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.ok()?.path()).ok()?;
            let target = target.to_str()?.to_owned();
            Some(
                target
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A");
        let own = sockets
            .iter()
            .any(|inode| fields.get(9) == Some(&inode.as_str()));
        let (_, port) = fields.get(1)?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (listens && own).then_some(port)
    };
    table.lines().skip(1).filter_map(port).collect()
}
