//! `metrics.jsonl`: one JSON object a step, for plots and scripts.

use crate::ids::{Epoch, Generation, Step};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What is recorded of a step. A figure that is not finite is written as `null`, and read as NaN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The step that was reached.
    pub step: Step,
    /// The epoch that it belongs to.
    pub epoch: Epoch,
    /// The generation that computed it.
    pub generation: Generation,
    /// Seconds since the job began, over all its runs.
    #[serde(deserialize_with = "number")]
    pub time: f64,
    /// Images a second, over all workers.
    #[serde(deserialize_with = "number")]
    pub images_per_s: f64,
    /// The discriminator's cost.
    #[serde(deserialize_with = "number")]
    pub loss_d: f64,
    /// The generator's cost.
    #[serde(deserialize_with = "number")]
    pub loss_g: f64,
    /// Mean of D(x).
    #[serde(deserialize_with = "number")]
    pub d_real: f64,
    /// Mean of D(G(z)).
    #[serde(deserialize_with = "number")]
    pub d_fake: f64,
    /// Norm of the discriminator's gradient.
    #[serde(deserialize_with = "number")]
    pub grad_norm_d: f64,
    /// Norm of the generator's gradient.
    #[serde(deserialize_with = "number")]
    pub grad_norm_g: f64,
    /// Seconds of the step that rank 0 spent in the reductions, waiting for peers included.
    #[serde(deserialize_with = "number")]
    pub reduce_s: f64,
}

fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let number = Option::<f64>::deserialize(deserializer)?;
    Ok(number.unwrap_or(f64::NAN))
}

/// Why the records can't be kept.
#[derive(Debug, thiserror::Error)]
#[error("{path}: can't {operation} the records: {source}", path = path.display())]
pub struct RecordError {
    /// What was tried.
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// The file of a run's records, open at its end.
#[derive(Debug)]
pub struct RecordLog {
    path: PathBuf,
    file: File,
    len: u64,
    last: Last,
}

/// The last line's step and time.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    step: Step,
    time: Option<f64>,
}

/// What is looked at in a line that is there.
#[derive(Deserialize)]
struct Kept {
    step: Step,
    time: Option<f64>,
}

impl RecordLog {
    /// Opens the file `path`, and creates it if it isn't there. A line that a crash has cut short
    /// goes.
    ///
    /// Records of steps that will be computed again stay: what was computed is the same.
    ///
    /// # Errors
    /// [`RecordError`]; the file is then as it was.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let failed = |operation| {
            move |source| RecordError {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("create the folder of"))?;
        }
        let last = match File::open(path) {
            Ok(file) => rewrite(path, &file).map_err(failed("rewrite"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Last::default(),
            Err(error) => return Err(failed("read")(error)),
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(failed("open"))?;
        let len = file.metadata().map_err(failed("open"))?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
            last,
        })
    }

    /// Adds `records`. When it returns, whoever reads the file sees them.
    ///
    /// # Errors
    /// [`RecordError`]; none of them is in the file then.
    pub fn append(&mut self, records: &[Record]) -> Result<(), RecordError> {
        let mut text = Vec::new();
        let written = records
            .iter()
            .try_for_each(|record| {
                serde_json::to_writer(&mut text, record)?;
                text.push(b'\n');
                Ok(())
            })
            .and_then(|()| self.file.write_all(&text))
            .and_then(|()| self.file.flush());
        if let Err(source) = written {
            // What did fit would run into the next line. If it stays, that line is lost when the
            // file is opened again; there is nothing more to be done about it here.
            let _ = self.file.set_len(self.len);
            return Err(RecordError {
                operation: "append to",
                path: self.path.clone(),
                source,
            });
        }
        self.len += text.len() as u64;
        if let Some(record) = records.last() {
            self.last = Last {
                step: record.step,
                time: Some(record.time),
            };
        }
        Ok(())
    }

    /// `time` of the last record, from which the next one goes on.
    pub fn last_time(&self) -> Option<f64> {
        self.last.time
    }

    /// The step of the last record; a later one is what comes next.
    pub fn last_step(&self) -> Step {
        self.last.step
    }
}

/// Copies the whole lines to a new file and puts it in the place of `path`. Returns the last one.
fn rewrite(path: &Path, file: &File) -> io::Result<Last> {
    let mut name = OsString::from(".tmp-");
    name.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(name);
    let copied = copy(path, file, &temporary).and_then(|last| {
        fs::rename(&temporary, path)?;
        Ok(last)
    });
    if copied.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    copied
}

fn copy(path: &Path, file: &File, temporary: &Path) -> io::Result<Last> {
    let mut reader = BufReader::new(file);
    let mut writer = BufWriter::new(File::create(temporary)?);
    let (mut line, mut number, mut last) = (Vec::new(), 0u64, Last::default());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        number += 1;
        match serde_json::from_slice::<Kept>(&line) {
            Ok(record) => {
                writer.write_all(line.trim_ascii_end())?;
                writer.write_all(b"\n")?;
                last = Last {
                    step: record.step,
                    time: record.time.or(last.time),
                };
            }
            Err(error) => tracing::warn!(
                file = %path.display(),
                line = number,
                %error,
                "dropping a line that is no record"
            ),
        }
    }
    writer.into_inner()?.sync_all()?;
    Ok(last)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(step: u64) -> Record {
        Record {
            step: Step(step),
            epoch: Epoch(1),
            generation: Generation(2),
            time: step as f64 * 0.5,
            images_per_s: 1000.0,
            loss_d: 1.25,
            loss_g: 0.75,
            d_real: 0.6,
            d_fake: 0.4,
            grad_norm_d: 3.0,
            grad_norm_g: 4.0,
            reduce_s: 0.5,
        }
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        let step = |line| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            record["step"].as_u64().unwrap()
        };
        text.lines().map(step).collect()
    }

    /// A file of steps 1 to 5.
    fn five(dir: &Path) -> PathBuf {
        let path = dir.join("runs/tiny/metrics.jsonl");
        let mut log = RecordLog::open(&path).unwrap();
        assert_eq!(log.last_time(), None);
        log.append(&[record(1), record(2)]).unwrap();
        assert_eq!(steps(&path), [1, 2], "seen at once");
        log.append(&[]).unwrap();
        log.append(&[record(3), record(4), record(5)]).unwrap();
        assert_eq!(log.last_time(), Some(2.5));
        path
    }

    #[test]
    fn a_line_has_exactly_these_fields() {
        let dir = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(five(dir.path())).unwrap();
        assert_eq!(
            text.lines().next().unwrap(),
            "{\"step\":1,\"epoch\":1,\"generation\":2,\"time\":0.5,\"images_per_s\":1000.0,\
             \"loss_d\":1.25,\"loss_g\":0.75,\"d_real\":0.6,\"d_fake\":0.4,\
             \"grad_norm_d\":3.0,\"grad_norm_g\":4.0,\"reduce_s\":0.5}"
        );
    }

    #[test]
    fn a_log_that_is_opened_again_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = five(dir.path());
        let mut log = RecordLog::open(&path).unwrap();
        assert_eq!((log.last_step(), log.last_time()), (Step(5), Some(2.5)));
        log.append(&[record(6)]).unwrap();
        assert_eq!(log.last_step(), Step(6));
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "no temporary file stays");
    }

    #[test]
    fn a_torn_last_line_is_dropped_wherever_it_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = five(dir.path());
        let good = fs::read(&path).unwrap();
        let last = good.len() - good.split(|&byte| byte == b'\n').nth(4).unwrap().len() - 1;
        for len in last..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            let mut log = RecordLog::open(&path).unwrap();
            log.append(&[record(6)]).unwrap();
            // Only the newline is missing: that record is whole.
            let whole = len == good.len() - 1;
            let expected: &[u64] = if whole {
                &[1, 2, 3, 4, 5, 6]
            } else {
                &[1, 2, 3, 4, 6]
            };
            assert_eq!(steps(&path), expected, "cut after {len} bytes");
        }
    }

    #[test]
    fn what_is_not_finite_is_null_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = five(dir.path());
        let mut log = RecordLog::open(&path).unwrap();
        let broken = Record {
            loss_d: f64::NAN,
            grad_norm_g: f64::INFINITY,
            reduce_s: 0.5,
            ..record(6)
        };
        log.append(&[broken, record(7)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().nth(5).unwrap()).unwrap();
        assert!(line["loss_d"].is_null() && line["grad_norm_g"].is_null());
        assert_eq!(line["loss_g"], 0.75);

        let log = RecordLog::open(&path).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(log.last_time(), Some(3.5));
    }

    #[test]
    fn an_error_says_where() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = RecordLog::open(&dir.path().join("file/metrics.jsonl")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("file/metrics.jsonl: can't create"),
            "{error}"
        );
    }
}
