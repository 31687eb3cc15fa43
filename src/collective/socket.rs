//! Reading a connection with an end in sight.

use super::limit::Limit;
use super::stream::Stream;
use std::io::{self, Read};

/// Reads until `buffer` holds at least `enough` bytes, of which it holds `filled` already; returns
/// how many it holds then. It may read more, up to the buffer's end.
///
/// # Errors
/// `TimedOut` when the limit is over, `UnexpectedEof` when the peer has closed the connection.
pub(super) fn fill(
    mut stream: &Stream,
    buffer: &mut [u8],
    mut filled: usize,
    enough: usize,
    limit: &Limit,
) -> io::Result<usize> {
    while filled < enough {
        let left = limit.left().ok_or(io::ErrorKind::TimedOut)?;
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection",
                ));
            }
            Ok(read) => filled += read,
            // The limit tells a wait that is over from one that was disturbed.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads exactly one message of a known length.
pub(super) fn read<const N: usize>(stream: &Stream, limit: &Limit) -> io::Result<[u8; N]> {
    let mut message = [0; N];
    fill(stream, &mut message, 0, N, limit)?;
    Ok(message)
}

/// Whether a read or a write ended because its time was over.
pub(super) fn timed_out(error: &io::Error) -> bool {
    // A socket with a timeout says either, by platform.
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
