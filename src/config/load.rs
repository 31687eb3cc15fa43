//! From the job file's text and `--set` to a checked [`Job`].

use super::data::{STACKED, SYNTHETIC};
use super::{Job, validate};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What can be wrong with a job file. Each message says where, what, and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: can't read the job file: {source}")]
    Read {
        /// The job file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or a key is unknown, missing, or of the wrong type.
    #[error("{origin}: {detail}")]
    Syntax {
        /// The job file.
        origin: String,
        /// The parser's account, with line and key.
        detail: String,
    },
    /// A value that can't be.
    #[error("{origin}: {key} = {value}: expected {expected}")]
    Value {
        /// The job file.
        origin: String,
        /// `section.key`
        key: String,
        /// The value found.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// A `--set` that is not `section.key=value`.
    #[error("--set {text}: expected section.key=value, as in --set train.steps=100")]
    Override {
        /// What was typed.
        text: String,
    },
}

/// One `--set section.key=value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    path: Vec<String>,
    value: toml::Value,
}

impl FromStr for Override {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Override {
            text: text.to_owned(),
        };
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if path.len() < 2 || path.iter().any(String::is_empty) {
            return Err(wrong());
        }
        // What is no TOML value is taken as a string, so that no quotes are needed in a shell.
        let value = value.trim();
        let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        Ok(Self { path, value })
    }
}

/// Reads, overrides and checks a job file. Relative paths in it start at its own folder, those in
/// `overrides` at the current one.
///
/// # Errors
/// [`ConfigError`], whose message is meant for the person who wrote the file.
pub fn load(path: &Path, overrides: &[Override]) -> Result<Job, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    parse(&text, &path.display().to_string(), folder, overrides)
}

/// [`load`] for text that is already there; `origin` names it in messages.
///
/// # Errors
/// As [`load`].
pub fn parse(
    text: &str,
    origin: &str,
    folder: &Path,
    overrides: &[Override],
) -> Result<Job, ConfigError> {
    let syntax = |detail: String| ConfigError::Syntax {
        origin: origin.to_owned(),
        detail,
    };
    let mut table: toml::Table =
        toml::from_str(text).map_err(|error| syntax(error.to_string().trim_end().to_owned()))?;
    let folder = absolute(folder);
    root_paths(&mut table, &folder);
    for change in overrides {
        change.apply(&mut table).map_err(syntax)?;
    }
    root_paths(&mut table, &absolute(Path::new(".")));
    let job: Job = serde_path_to_error::deserialize(table).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        let mut reason = plain(reason.message());
        if path == "job.seed" {
            reason = format!("{reason}: {}", validate::SEEDS);
        }
        if path == "." {
            syntax(reason)
        } else {
            syntax(format!("{path}: {reason}"))
        }
    })?;
    validate::check(&job).map_err(|fault| ConfigError::Value {
        origin: origin.to_owned(),
        key: fault.key.to_owned(),
        value: fault.value,
        expected: fault.expected,
    })?;
    Ok(job)
}

impl Override {
    fn apply(&self, table: &mut toml::Table) -> Result<(), String> {
        let Some((last, sections)) = self.path.split_last() else {
            return Ok(());
        };
        let mut place = table;
        for section in sections {
            place = place
                .entry(section.clone())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut()
                .ok_or_else(|| format!("--set {}: {section} is no table", self.path.join(".")))?;
        }
        // `steps` and `epochs` exclude each other: what is set last stands.
        if self.path[0] == "train" && (last == "steps" || last == "epochs") {
            place.remove("steps");
            place.remove("epochs");
        }
        place.insert(last.clone(), self.value.clone());
        Ok(())
    }
}

/// A deserializer's reason in the words of a job file instead of Rust's, on one line. The key is
/// known from elsewhere.
fn plain(reason: &str) -> String {
    let reason = reason.lines().collect::<Vec<_>>().join(" ");
    let Some((found, expected)) = reason.rsplit_once(", expected ") else {
        return reason;
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" => "a string, in quotes",
        other => other,
    };
    let found = found
        .replace("integer `", "number `")
        .replace("floating point `", "number `");
    format!("{found}, expected {expected}")
}

/// The path as seen from the root: workers that get the job have other current folders.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn root_paths(table: &mut toml::Table, folder: &Path) {
    root_path(table, "data", "uri", folder);
    root_path(table, "data", "shard_folder", folder);
    root_path(table, "evaluate", "extractor", folder);
}

fn root_path(table: &mut toml::Table, section: &str, key: &str, folder: &Path) {
    if let Some(toml::Value::String(path)) = table
        .get_mut(section)
        .and_then(toml::Value::as_table_mut)
        .and_then(|section| section.get_mut(key))
    {
        let (stacked, rest) = match path.strip_prefix(STACKED) {
            Some(rest) => (STACKED, rest),
            None => ("", path.as_str()),
        };
        let plain = rest.strip_prefix("file://").unwrap_or(rest);
        // An empty path would become the folder itself: it is left to be refused.
        let named = plain.is_empty() || plain.contains("://") || plain.starts_with(SYNTHETIC);
        if !named && Path::new(plain).is_relative() {
            *path = format!("{stacked}{}", folder.join(plain).display());
        }
    }
}

/// A job of the least that it takes, and these `section.key=value`; or why it is refused.
#[cfg(test)]
pub(super) fn least(sets: &[&str]) -> Result<Job, String> {
    let text = "[job]\nname = \"j\"\n[data]\nuri = \"d\"\n[train]\nsteps = 3\n";
    let overrides: Vec<Override> = sets.iter().map(|s| s.parse().unwrap()).collect();
    parse(text, "job.toml", Path::new("/jobs"), &overrides).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const JOB: &str = "[job]\nname = \"j\"\n[data]\nuri = \"d\"\n[train]\nsteps = 3\n";

    fn read(text: &str, sets: &[&str]) -> Result<Job, String> {
        let overrides: Vec<Override> = sets.iter().map(|s| s.parse().unwrap()).collect();
        parse(text, "job.toml", Path::new("/jobs"), &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_fill_what_is_not_said() {
        let job = read(JOB, &[]).unwrap();
        assert_eq!((job.train.replicas, job.train.batch), (8, 16));
        assert_eq!(job.data.uri, "/jobs/d");
        assert_eq!(job.deadlines.heartbeat, Duration::from_secs(10));
        assert_eq!(job.max_workers(), 8);
    }

    #[test]
    fn a_job_written_out_reads_back_the_same() {
        let job = read(
            JOB,
            &["optimizer.generator.beta1=0.1", "deadlines.form=90s"],
        )
        .unwrap();
        let text = toml::to_string(&job).unwrap();
        assert_eq!(read(&text, &[]).unwrap(), job);
    }

    #[test]
    fn overrides_win_and_need_no_quotes() {
        let job = read(
            JOB,
            &[
                "train.epochs=2",
                "train.update=simultaneous",
                "data.uri=here",
            ],
        )
        .unwrap();
        assert_eq!((job.train.steps, job.train.epochs), (None, Some(2)));
        assert_eq!(job.train.update, super::super::Update::Simultaneous);
        let here = std::env::current_dir().unwrap().join("here");
        assert_eq!(Path::new(&job.data.uri), here);
    }

    #[test]
    fn what_stands_before_a_path_stays_there() {
        let uri = |uri: &str| {
            let text = JOB.replace("\"d\"", &format!("\"{uri}\""));
            read(&text, &["model.architecture=dcgan"]).unwrap().data.uri
        };
        assert_eq!(uri("stacked:digits"), "stacked:/jobs/digits");
        assert_eq!(uri("stacked:/digits"), "stacked:/digits");
        let points = ["model.architecture=mlp", "data.uri=synthetic:ring"];
        assert_eq!(read(JOB, &points).unwrap().data.uri, "synthetic:ring");
    }

    #[test]
    fn messages_name_file_key_and_expectation() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("[job", &[], &["job.toml", "line 1"]),
            (JOB, &["train.bach=3"], &["job.toml", "bach", "batch"]),
            (JOB, &["train.batch=lots"], &["train.batch", "lots"]),
            (JOB, &["train.batch=0"], &["train.batch = 0", "expected"]),
            (
                JOB,
                &["train.objective=hing"],
                &["train.objective", "non-saturating"],
            ),
            (
                JOB,
                &["model.image_size=48"],
                &["model.image_size = 48", "64"],
            ),
            (
                JOB,
                &["model.channels=2"],
                &["model.channels = 2", "1", "3"],
            ),
            (
                JOB,
                &["workers.min=9"],
                &["workers.min = 9", "train.replicas"],
            ),
            (JOB, &["deadlines.join=soon"], &["deadlines.join", "30s"]),
            (
                JOB,
                &["optimizer.beta1=1.0"],
                &["optimizer.beta1", "below 1"],
            ),
            (
                JOB,
                &["optimizer.generator.beta2=-1"],
                &["optimizer.generator.beta2"],
            ),
            (JOB, &["data.uri="], &["data.uri = \"\"", "a path"]),
            (JOB, &["data.uri=file://"], &["data.uri", "a path"]),
            (
                JOB,
                &["model.generator_width=1025"],
                &["model.generator_width = 1025", "1 to 1024"],
            ),
            (
                JOB,
                &["model.discriminator_width=4096"],
                &["model.discriminator_width = 4096", "1 to 1024"],
            ),
            (JOB, &["model.latent=4097"], &["model.latent", "1 to 4096"]),
            (
                JOB,
                &["model.latent=7", "model.binary_latents=8"],
                &["model.binary_latents = 8", "0 to 7"],
            ),
            (JOB, &["model.kernel=3"], &["model.kernel = 3", "4 or 5"]),
            (
                JOB,
                &["model.latent_input=split", "model.latent=3"],
                &["model.latent = 3", "at least 4"],
            ),
            (
                JOB,
                &["model.hidden_noise_strength=0"],
                &["model.hidden_noise_strength", "above 0"],
            ),
            (
                JOB,
                &["model.batch_norm=together", "model.discriminator_norm=none"],
                &["model.batch_norm", "model.discriminator_norm"],
            ),
            (
                JOB,
                &["model.conditional=projection"],
                &["model.classes = 0", "number of labels"],
            ),
            (
                JOB,
                &["model.classes=10"],
                &["model.classes = 10", "model.conditional"],
            ),
            (
                JOB,
                &["model.architecture=mlp"],
                &["data.uri", "synthetic:ring"],
            ),
            (
                JOB,
                &["data.uri=synthetic:ring"],
                &["data.uri", "model.architecture = \"mlp\""],
            ),
            (
                JOB,
                &["data.uri=synthetic:star", "model.architecture=mlp"],
                &["data.uri", "synthetic:grid"],
            ),
            (
                JOB,
                &[
                    "data.uri=synthetic:grid",
                    "model.architecture=mlp",
                    "data.synthetic.modes=24",
                ],
                &["data.synthetic.modes = 24", "a square"],
            ),
            (
                JOB,
                &["data.uri=stacked:digits", "model.channels=1"],
                &["model.channels = 1", "stacked"],
            ),
            (
                JOB,
                &["train.steps=1099511627777"],
                &["train.steps = 1099511627777", "1099511627776"],
            ),
            (
                JOB,
                &["train.epochs=1099511627777"],
                &["train.epochs = 1099511627777", "1099511627776"],
            ),
            (JOB, &["job.name=a/b"], &["job.name", "letters"]),
            (
                JOB,
                &["evaluate.every_steps=250"],
                &["evaluate.every_steps = 250", "checkpoint.every_steps (500)"],
            ),
            (
                JOB,
                &["checkpoint.keep_best=fid"],
                &["checkpoint.keep_best = \"fid\"", "evaluate.every_steps"],
            ),
            (
                JOB,
                &["checkpoint.keep_best=is"],
                &["checkpoint.keep_best", "kl-data"],
            ),
            (
                "[job]\nname = \"j\"\n[data]\nuri = \"d\"\n[train]\n",
                &[],
                &["train.steps", "train.epochs"],
            ),
            (
                "[job]\nname = \"j\"\n[train]\nsteps = 1\n",
                &[],
                &["missing field `data`"],
            ),
        ];
        for (text, sets, needles) in cases {
            let message = read(text, sets).expect_err(&format!("{sets:?} must be refused"));
            for needle in *needles {
                assert!(
                    message.contains(needle),
                    "{sets:?}: {message:?} lacks {needle:?}"
                );
            }
        }
    }

    #[test]
    fn type_errors_are_one_line_of_plain_words() {
        for (set, says) in [
            ("train.steps=abc", "a whole number"),
            ("train.batch=-3", "a whole number"),
            ("train.batch=1.5", "a whole number"),
            ("train.batch=5000000000", "a whole number"),
            ("optimizer.beta1=half", "expected a number"),
            ("job.name=7", "a string"),
            ("deadlines.join=30", "a duration such as \"30s\""),
            ("deadlines.join=1.5", "a duration such as \"30s\""),
            ("deadlines.join=true", "a duration such as \"30s\""),
        ] {
            let message = read(JOB, &[set]).unwrap_err();
            let (key, _) = set.split_once('=').unwrap();
            assert_eq!(message.matches(key).count(), 1, "{message:?}");
            assert!(message.contains(says), "{message:?} lacks {says:?}");
            assert!(!message.contains('\n'), "{message:?}");
            for rust in ["u32", "u64", "f64", "usize"] {
                assert!(!message.contains(rust), "{message:?}");
            }
        }
    }

    #[test]
    fn seeds_go_to_two_to_the_63rd() {
        let most = format!("job.seed={}", i64::MAX);
        assert_eq!(read(JOB, &[&most]).unwrap().job.seed, i64::MAX as u64);
        for seed in ["9223372036854775808", "18446744073709551615", "-1"] {
            let message = read(JOB, &[&format!("job.seed={seed}")]).unwrap_err();
            for needle in ["job.seed", "9223372036854775807"] {
                assert!(message.contains(needle), "{message:?} lacks {needle:?}");
            }
            let text = JOB.replace("[data]", &format!("seed = {seed}\n[data]"));
            assert!(read(&text, &[]).unwrap_err().contains("seed"));
        }
        let job = read(JOB, &[]).unwrap();
        let text = serde_json::to_string(&job).unwrap();
        let text = text.replace("\"seed\":0", "\"seed\":9223372036854775808");
        let job: Job = serde_json::from_str(&text).unwrap();
        assert!(validate::check(&job).is_err());
    }

    #[test]
    fn an_override_needs_a_section_and_a_value() {
        for text in ["steps=3", "train.steps", "train.=3", ""] {
            assert!(text.parse::<Override>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_job_files_that_come_along_are_good() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = ["deploy/jobs", "benches/compare", "tests/data"];
        let files = folders
            .iter()
            .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
        let jobs: Vec<_> = files
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "toml")
            })
            .collect();
        assert!(jobs.len() >= 4, "{jobs:?}");
        for path in jobs {
            load(&path, &[]).unwrap();
        }
    }
}
