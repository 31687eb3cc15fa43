//! What the programs print for people and pipes.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Prints. A reader that has gone, as `head` does, is no error.
///
/// # Errors
/// Whatever else standard output refuses with, a full disk say.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints what clap has to say, help or a fault, and gives the exit code: 64 (`EX_USAGE`) for a
/// fault, as everything else that the person who typed must mend.
pub fn usage(said: clap::Error) -> ExitCode {
    // If nobody reads it, nobody needs it.
    let _ = said.print();
    if said.use_stderr() {
        ExitCode::from(64)
    } else {
        ExitCode::SUCCESS
    }
}
