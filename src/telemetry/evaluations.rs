//! `evaluations.jsonl`: one JSON object an evaluation, and which of them is the best.
//!
//! The file is the one place that says how checkpoints fared; `checkpoints/best` and a status follow
//! from it. It only grows, and every worker that led may have added to it. A line that a crash has
//! cut short is passed over, and the next one begins on a line of its own.

use super::records::RecordError;
use crate::config::Score;
use crate::ids::Step;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Its name in the run directory.
pub const FILE: &str = "evaluations.jsonl";

/// Scores by name. All of them are finite.
pub type Scores = BTreeMap<Score, f64>;

/// What a checkpoint is worth: a function of the checkpoint, the data and the settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The state that it is after.
    pub step: Step,
    /// Identity of the training state: [`crate::checkpoint::digest`].
    pub digest: String,
    /// What was compared with what, by what. Scores of other protocols can't be compared.
    pub protocol: Protocol,
    /// Scores of the samples against the data.
    pub scores: Scores,
    /// The same scores of one half of the data against the other: what a perfect generator gets.
    pub floor: Scores,
}

/// What was compared with what, by what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Whose samples.
    pub samples_of: SamplesOf,
    /// Whether a pyramid's level was scored alone, upon the data's own images at half the side.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refines_data: bool,
    /// How many.
    pub samples: u64,
    /// Seed of their latents.
    pub seed: u64,
    /// Identity of the packed data.
    pub data: String,
    /// How many real samples they were compared with.
    pub reals: u64,
    /// Real samples in each half of the floor.
    pub floor_samples: u64,
    /// What made features of both.
    pub extractor: Extractor,
}

/// Whose samples were scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplesOf {
    /// The generator's average.
    Average,
    /// The generator's newest weights.
    Newest,
    /// Somebody else's: images that were given.
    Given,
}

impl fmt::Display for SamplesOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SamplesOf::Average => "averaged weights",
            SamplesOf::Newest => "newest weights",
            SamplesOf::Given => "given images",
        })
    }
}

/// What makes features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extractor {
    /// `classifier` or `torchscript`; `none` where samples are points in a plane.
    pub kind: String,
    /// SHA-256 of its weights, or of its file.
    pub hash: String,
    /// Numbers in a feature vector.
    pub features: u64,
    /// Share of samples that it was not trained on whose label it tells, if it is a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What was found.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// When, seconds since 1970 (UTC).
    pub unix_seconds: f64,
    /// How long it took.
    pub seconds: f64,
}

/// Adds a line to the file in `run_dir`. When it returns, the line is on the disk.
///
/// # Errors
/// [`RecordError`]; a part of the line may be there then, which readers pass over.
pub fn append(run_dir: &Path, line: &Line) -> Result<(), RecordError> {
    let path = run_dir.join(FILE);
    let put = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)?;
        let mut text = Vec::new();
        if !ends_a_line(&mut file)? {
            text.push(b'\n');
        }
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
        // In one piece: another writer's line stays whole.
        file.write_all(&text)?;
        file.sync_data()
    };
    put().map_err(|source| RecordError {
        operation: "append to",
        path,
        source,
    })
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// The evaluations in `run_dir`, in the order in which they were made; none if there is no file.
///
/// # Errors
/// [`RecordError`], if the file can't be read.
pub fn read(run_dir: &Path) -> Result<Vec<Line>, RecordError> {
    let path = run_dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(RecordError {
                operation: "read",
                path,
                source,
            });
        }
    };
    let lines = text.split(|&byte| byte == b'\n');
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

/// The best by `score` of those that are comparable with the newest, have that score, and whose
/// checkpoint `is_there`; of equals the first.
pub fn best(
    lines: &[Line],
    score: Score,
    mut is_there: impl FnMut(Step, &str) -> bool,
) -> Option<&Line> {
    let protocol = &lines.last()?.evaluation.protocol;
    let mut found: Option<(&Line, f64)> = None;
    for line in lines {
        let Evaluation {
            step,
            digest,
            scores,
            ..
        } = &line.evaluation;
        let Some(&value) = scores.get(&score) else {
            continue;
        };
        let is_better = found.is_none_or(|(_, best)| score.rank(value, best).is_lt());
        if is_better && line.evaluation.protocol == *protocol && is_there(*step, digest) {
            found = Some((line, value));
        }
    }
    found.map(|(line, _)| line)
}

impl Evaluation {
    /// In one line, for a log.
    pub fn summary(&self) -> String {
        let scores = self.scores.iter();
        let scores = scores.map(|(score, value)| format!("{score} {}", figure(*value)));
        scores.collect::<Vec<_>>().join("  ")
    }
}

/// A score as people read it: four digits that count.
pub fn figure(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && magnitude < 0.001 {
        format!("{value:.3e}")
    } else {
        let decimals = match magnitude {
            100.0.. => 1,
            10.0.. => 2,
            1.0.. => 3,
            _ => 4,
        };
        format!("{value:.decimals$}")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn line(step: u64, fid: f64) -> Line {
        Line {
            evaluation: Evaluation {
                step: Step(step),
                digest: format!("digest {step}"),
                protocol: Protocol {
                    samples_of: SamplesOf::Average,
                    samples: 100,
                    seed: 0,
                    data: "data".to_owned(),
                    reals: 100,
                    floor_samples: 50,
                    refines_data: false,
                    extractor: Extractor {
                        kind: "classifier".to_owned(),
                        hash: "hash".to_owned(),
                        features: 128,
                        accuracy: Some(0.75),
                    },
                },
                scores: Scores::from([(Score::Fid, fid), (Score::KlData, 0.1)]),
                floor: Scores::from([(Score::Fid, 0.1 + 0.2)]),
            },
            unix_seconds: 1_700_000_000.25,
            seconds: 3.5,
        }
    }

    fn steps(lines: &[Line]) -> Vec<u64> {
        lines.iter().map(|line| line.evaluation.step.0).collect()
    }

    #[test]
    fn what_is_written_is_read_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), []);
        for step in 1..4 {
            append(dir.path(), &line(step, 1.0 / step as f64)).unwrap();
        }
        let expected: Vec<Line> = (1..4).map(|step| line(step, 1.0 / step as f64)).collect();
        assert_eq!(read(dir.path()).unwrap(), expected);
    }

    #[test]
    fn a_line_that_a_crash_cut_short_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), &line(1, 1.0)).unwrap();
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        append(dir.path(), &line(2, 2.0)).unwrap();
        let two = fs::read(&path).unwrap();
        for len in whole.len()..two.len() - 1 {
            fs::write(&path, &two[..len]).unwrap();
            append(dir.path(), &line(3, 3.0)).unwrap();
            assert_eq!(steps(&read(dir.path()).unwrap()), [1, 3], "{len} bytes");
        }
    }

    #[test]
    fn the_best_is_comparable_and_there() {
        let mut lines = vec![line(1, 5.0), line(2, 3.0), line(3, 3.0), line(4, 9.0)];
        let best_of = |lines: &[Line], gone: &[u64]| {
            let found = best(lines, Score::Fid, |step, digest| {
                !gone.contains(&step.0) && digest == format!("digest {step}")
            });
            found.map(|line| line.evaluation.step.0)
        };
        assert_eq!(best_of(&lines, &[]), Some(2), "of equals the first");
        assert_eq!(best_of(&lines, &[2]), Some(3));
        assert_eq!(best_of(&lines, &[1, 2, 3, 4]), None);
        assert_eq!(best_of(&[], &[]), None);
        let modes = best(&lines, Score::Modes, |_, _| true);
        assert_eq!(modes, None, "nobody has that score");
        lines[3].evaluation.protocol.samples = 200;
        assert_eq!(
            best_of(&lines, &[]),
            Some(4),
            "the others are not comparable"
        );
    }

    #[test]
    fn figures_have_the_digits_that_count() {
        let shown = [123.456, 12.3456, 1.23456, 0.123456, 0.000123456, 0.0, -2.5];
        let text: Vec<String> = shown.into_iter().map(figure).collect();
        let expected = [
            "123.5", "12.35", "1.235", "0.1235", "1.235e-4", "0.0000", "-2.500",
        ];
        assert_eq!(text, expected);
    }
}
