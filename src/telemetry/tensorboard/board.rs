//! What a run directory holds, as events.

use super::event::{self, Content, Event, Image, SessionLog, Summary, Value, What};
use super::frame;
use crate::ids::Step;
use crate::telemetry::evaluations;
use crate::telemetry::pictures::{self, Picture};
use crate::telemetry::records::Record;
use crate::telemetry::tail::Tail;
use prost::Message;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Their folder in the run directory.
pub const FOLDER: &str = "tensorboard";
/// How the names of event files begin: TensorBoard reads them in the order of their names.
const PREFIX: &str = "events.out.tfevents.";
/// The tag of sample grids.
const SAMPLES: &str = "samples";
/// How tags of scores begin.
const EVALUATION: &str = "evaluation/";

/// Why event files can't be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: can't {operation} for TensorBoard: {source}", path = path.display())]
pub struct BoardError {
    /// What was tried.
    operation: &'static str,
    /// The file or folder.
    path: PathBuf,
    /// Why not.
    source: io::Error,
}

impl BoardError {
    fn of(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            operation,
            path,
            source,
        }
    }
}

/// The newest steps that events tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Told {
    figures: Step,
    pictures: Step,
    scores: Step,
}

impl Told {
    fn count(&mut self, event: &Event) {
        let step = Step(u64::try_from(event.step).unwrap_or(0));
        for value in event.values() {
            let newest = match value.tag.as_str() {
                SAMPLES => &mut self.pictures,
                tag if tag.starts_with(EVALUATION) => &mut self.scores,
                _ => &mut self.figures,
            };
            *newest = step.max(*newest);
        }
    }
}

/// The event files of one run directory, of which the newest grows.
#[derive(Debug)]
pub struct Board {
    run_dir: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    tail: Tail,
    told: Told,
    /// The length of `evaluations.jsonl` when it was last read.
    evaluated: u64,
}

impl Board {
    /// Begins a new event file in `run_dir`, at the time `unix_seconds`. It goes on after the newest
    /// step that both earlier event files and the records tell of, which end at `recorded`.
    ///
    /// # Errors
    /// [`BoardError`]
    pub fn open(run_dir: &Path, recorded: Step, unix_seconds: f64) -> Result<Self, BoardError> {
        let folder = run_dir.join(FOLDER);
        fs::create_dir_all(&folder).map_err(BoardError::of("make the folder", &folder))?;
        let earlier = event_files(&folder)?;
        let told = told_up_to(&earlier, Step(u64::MAX))?;
        let kept = told.figures.min(recorded);
        // Most often no event is of a later step, and the files need not be read again.
        let is_late = told.pictures.max(told.scores).max(told.figures) > kept;
        let told = if is_late {
            told_up_to(&earlier, kept)?
        } else {
            told
        };
        let (path, file) = new_file(&folder, &earlier, unix_seconds)?;
        let mut board = Self {
            run_dir: run_dir.to_owned(),
            path,
            file: BufWriter::new(file),
            tail: Tail::new(run_dir.join("metrics.jsonl")),
            told,
            evaluated: 0,
        };
        let version = What::FileVersion(event::VERSION.to_owned());
        board.put(unix_seconds, Step(0), version)?;
        if !earlier.is_empty() {
            let status = event::START;
            let start = What::SessionLog(SessionLog { status });
            board.put(unix_seconds, kept.next(), start)?;
        }
        board.flush()?;
        Ok(board)
    }

    /// Writes what is new in the run directory, or a piece of it; true if there is more at once.
    ///
    /// # Errors
    /// [`BoardError`]; what stands in the file then is whole but for its end.
    pub fn catch_up(&mut self) -> Result<bool, BoardError> {
        let metrics = self.run_dir.join("metrics.jsonl");
        let read = BoardError::of("read the records", &metrics);
        let piece = self.tail.next_piece().map_err(read)?;
        if let Some(last) = piece.records.last() {
            // Records have no time of day, but the file was written with its newest.
            let origin = modified(&metrics) - last.time;
            for record in &piece.records {
                if record.step > self.told.figures {
                    self.told.figures = record.step;
                    self.put(origin + record.time, record.step, figures(record))?;
                }
            }
        }
        self.pictures()?;
        self.scores()?;
        self.flush()?;
        Ok(piece.more)
    }

    fn pictures(&mut self) -> Result<(), BoardError> {
        let folder = self.run_dir.join(pictures::FOLDER);
        let all = pictures::list(&self.run_dir);
        let all = all.map_err(BoardError::of("read the samples", &folder))?;
        for picture in all {
            if picture.step <= self.told.pictures {
                continue;
            }
            self.told.pictures = picture.step;
            let path = picture.path(&self.run_dir);
            match image_of(&picture, &self.run_dir) {
                Ok((at, image)) => {
                    let value = Value {
                        tag: SAMPLES.to_owned(),
                        content: Some(Content::Image(image)),
                    };
                    let values = vec![value];
                    self.put(at, picture.step, What::Summary(Summary { values }))?;
                }
                Err(error) => tracing::warn!("{}: no picture: {error}", path.display()),
            }
        }
        Ok(())
    }

    fn scores(&mut self) -> Result<(), BoardError> {
        let path = self.run_dir.join(evaluations::FILE);
        let len = fs::metadata(&path).map_or(0, |file| file.len());
        if len == self.evaluated {
            return Ok(());
        }
        self.evaluated = len;
        let lines = evaluations::read(&self.run_dir).map_err(|error| {
            let read = BoardError::of("read the evaluations", &path);
            read(error.source)
        })?;
        for line in lines {
            let step = line.evaluation.step;
            if step <= self.told.scores {
                continue;
            }
            self.told.scores = step;
            let values = line.evaluation.scores.iter().map(|(score, value)| {
                let tag = format!("{EVALUATION}{score}");
                scalar(&tag, *value)
            });
            let values = values.collect();
            self.put(line.unix_seconds, step, What::Summary(Summary { values }))?;
        }
        Ok(())
    }

    fn put(&mut self, wall_time: f64, step: Step, what: What) -> Result<(), BoardError> {
        let event = Event {
            wall_time,
            step: i64::try_from(step.0).unwrap_or(i64::MAX),
            what: Some(what),
        };
        frame::write(&mut self.file, &event.encode_to_vec())
            .map_err(BoardError::of("write events", &self.path))
    }

    fn flush(&mut self) -> Result<(), BoardError> {
        let flushed = self.file.flush();
        flushed.map_err(BoardError::of("write events", &self.path))
    }
}

fn scalar(tag: &str, value: f64) -> Value {
    Value {
        tag: tag.to_owned(),
        content: Some(Content::Simple(value as f32)),
    }
}

fn figures(record: &Record) -> What {
    let values = [
        ("loss/discriminator", record.loss_d),
        ("loss/generator", record.loss_g),
        ("probability/real", record.d_real),
        ("probability/fake", record.d_fake),
        ("gradient_norm/discriminator", record.grad_norm_d),
        ("gradient_norm/generator", record.grad_norm_g),
        ("images_per_second", record.images_per_s),
    ];
    let values = values.map(|(tag, value)| scalar(tag, value)).into();
    What::Summary(Summary { values })
}

/// A picture's time and its bytes as they are.
fn image_of(picture: &Picture, run_dir: &Path) -> io::Result<(f64, Image)> {
    let encoded = picture.read(run_dir)?;
    let reader = image::ImageReader::with_format(Cursor::new(&encoded), image::ImageFormat::Png);
    let (width, height) = reader.into_dimensions().map_err(io::Error::other)?;
    let image = Image {
        height: height.try_into().map_err(io::Error::other)?,
        width: width.try_into().map_err(io::Error::other)?,
        colorspace: 3,
        encoded,
    };
    Ok((picture.unix_seconds(run_dir)?, image))
}

fn modified(path: &Path) -> f64 {
    let at = fs::metadata(path).and_then(|file| file.modified());
    let since = at.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// The event files that are there, in TensorBoard's order.
fn event_files(folder: &Path) -> Result<Vec<PathBuf>, BoardError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    };
    list().map_err(BoardError::of("list event files", folder))
}

/// What these files tell of steps up to `last`.
fn told_up_to(files: &[PathBuf], last: Step) -> Result<Told, BoardError> {
    let mut told = Told::default();
    for path in files {
        let mut read = || -> io::Result<()> {
            let mut file = BufReader::new(File::open(path)?);
            while let Some(payload) = frame::read(&mut file)? {
                let event = Event::decode(payload.as_slice()).map_err(io::Error::other)?;
                if u64::try_from(event.step).is_ok_and(|step| step <= last.0) {
                    told.count(&event);
                }
            }
            Ok(())
        };
        read().map_err(BoardError::of("read the events", path))?;
    }
    Ok(told)
}

/// A new file that comes after all `earlier` ones, whatever the clock says.
fn new_file(
    folder: &Path,
    earlier: &[PathBuf],
    unix_seconds: f64,
) -> Result<(PathBuf, File), BoardError> {
    let began = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        name.split('.').next()?.parse::<u64>().ok()
    };
    let newest = earlier.iter().filter_map(began).max().unwrap_or(0);
    let mut second = (unix_seconds as u64).max(newest);
    loop {
        let path = folder.join(format!("{PREFIX}{second:010}.gan-coord"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => second += 1,
            Err(error) => return Err(BoardError::of("make a file", &path)(error)),
        }
    }
}

#[cfg(test)]
#[path = "tests/board.rs"]
mod tests;
