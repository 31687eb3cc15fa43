//! What both command lines share: how they print, how they fail, and with which exit code.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// The command, the job file or the data is wrong: trying again won't help (`EX_USAGE`).
const WRONG: u8 = 64;
/// Everything else that fails.
const FAILED: u8 = 1;

/// Why a command has failed, with its exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Whoever typed the command must mend it.
    pub fn wrong(message: impl Display) -> Self {
        Self {
            code: WRONG,
            message: message.to_string(),
        }
    }

    /// Something broke; another attempt may succeed.
    pub fn failed(message: impl Display) -> Self {
        Self {
            code: FAILED,
            message: message.to_string(),
        }
    }
}

/// Ends a program: its exit code, or the reason why it has failed, on stderr.
pub fn end(program: &str, result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| {
        // If nobody reads it, the exit code still tells.
        let _ = writeln!(io::stderr(), "{program}: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

/// What an error comes from in the end. tonic wraps the operating system's word several times.
pub fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Prints. A reader that has gone, as `head` does, is no error.
///
/// # Errors
/// Whatever else standard output refuses with, a full disk say.
pub fn print(text: &str) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints what clap has to say, help or a fault, and gives the exit code.
pub fn usage(said: clap::Error) -> ExitCode {
    // If nobody reads it, nobody needs it.
    let _ = said.print();
    if said.use_stderr() {
        ExitCode::from(WRONG)
    } else {
        ExitCode::SUCCESS
    }
}
