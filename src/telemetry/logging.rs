//! Logs: `tracing` events as text or JSON, to stderr or to a file, with UTC timestamps.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Mutex;
use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// What is logged when neither `GAN_LOG` nor `RUST_LOG` says otherwise.
pub const DEFAULT_FILTER: &str = "info";

/// How an event looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Where events go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// To stderr, in colour if it is a terminal and `NO_COLOR` isn't set.
    #[default]
    Stderr,
    /// To the end of a file, which is created with the folders above it.
    File(PathBuf),
}

/// Why logging can't start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is no filter.
    #[error(
        "{variable}={text}: no log filter ({detail}); expected a level such as debug, or module=level,…"
    )]
    Filter {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        text: String,
        /// What the parser found.
        detail: String,
    },
    /// The file can't be opened.
    #[error("{path}: can't open the log file: {source}", path = path.display())]
    Open {
        /// The log file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Logging has been started before in this process.
    #[error("logging is set up already in this process: set it up once, in main")]
    AlreadySet,
}

/// Starts logging for the whole process. What is logged is said by `GAN_LOG`, or else `RUST_LOG`
/// (`debug`, `ganglion::coordinator=debug,warn`, …), or else [`DEFAULT_FILTER`].
///
/// # Errors
/// [`LoggingError`]; [`LoggingError::AlreadySet`] the second time.
pub fn init(format: LogFormat, target: &LogTarget) -> Result<(), LoggingError> {
    let variable = |name| env::var(name).ok();
    let filter = filter(variable("GAN_LOG"), variable("RUST_LOG"))?;
    let (writer, colour) = match target {
        LogTarget::Stderr => {
            let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
            (BoxMakeWriter::new(io::stderr), colour)
        }
        LogTarget::File(path) => {
            let failed = |source| LoggingError::Open {
                path: path.clone(),
                source,
            };
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(failed)?;
            }
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(failed)?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
    };
    tracing::subscriber::set_global_default(subscriber(format, filter, writer, colour))
        .map_err(|_| LoggingError::AlreadySet)
}

/// The filter that the environment asks for. An empty variable counts as none.
fn filter(gan_log: Option<String>, rust_log: Option<String>) -> Result<EnvFilter, LoggingError> {
    let (variable, text) = [("GAN_LOG", gan_log), ("RUST_LOG", rust_log)]
        .into_iter()
        .find_map(|(variable, text)| Some((variable, text.filter(|text| !text.is_empty())?)))
        .unwrap_or(("GAN_LOG", DEFAULT_FILTER.to_owned()));
    EnvFilter::builder()
        .parse(&text)
        .map_err(|error| LoggingError::Filter {
            variable,
            text,
            detail: error.to_string(),
        })
}

fn subscriber(
    format: LogFormat,
    filter: EnvFilter,
    writer: BoxMakeWriter,
    colour: bool,
) -> Box<dyn Subscriber + Send + Sync> {
    // The default clock writes UTC, RFC 3339.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colour);
    match format {
        LogFormat::Text => Box::new(builder.with_target(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, gan_log: &str, rust_log: &str) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let filter = filter(Some(gan_log.to_owned()), Some(rust_log.to_owned())).unwrap();
        let writer = BoxMakeWriter::new(move || writer.clone());
        tracing::subscriber::with_default(subscriber(format, filter, writer, false), || {
            tracing::debug!("quiet");
            tracing::info!(generation = 3, "formed");
            tracing::warn!("loud");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_has_a_utc_time_a_level_and_the_fields() {
        let text = logged(LogFormat::Text, "", "");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "debug is off by default: {text}");
        let (time, rest) = lines[0].split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        assert_eq!(rest.trim(), "INFO formed generation=3");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, "", "");
        let event: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(event["message"], "formed");
        assert_eq!(event["generation"], 3);
        assert_eq!(event["level"], "INFO");
        assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
        assert!(event["target"].as_str().unwrap().starts_with("ganglion::"));
    }

    #[test]
    fn gan_log_goes_before_rust_log() {
        assert_eq!(logged(LogFormat::Text, "warn", "debug").lines().count(), 1);
        assert_eq!(logged(LogFormat::Text, "", "debug").lines().count(), 3);
        let message = filter(None, Some("=loud=".to_owned()))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("RUST_LOG==loud=: no log filter"),
            "{message}"
        );
    }

    #[test]
    fn logging_starts_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = LogTarget::File(dir.path().join("logs/job.log"));
        init(LogFormat::Json, &target).unwrap();
        assert!(matches!(
            init(LogFormat::Text, &LogTarget::Stderr),
            Err(LoggingError::AlreadySet)
        ));
        tracing::error!("to the file");
        let text = fs::read_to_string(dir.path().join("logs/job.log")).unwrap();
        assert!(text.contains("to the file"), "{text}");
    }
}
