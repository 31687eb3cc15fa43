//! The sample grids of a run: which there are, found by looking into their folder and nowhere else.

use crate::ids::Step;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Their folder in the run directory.
pub const FOLDER: &str = "samples";
/// A larger file is no grid of ours.
const LARGEST: u64 = 64 << 20;

/// A sample grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Its file's name: `step-00000500.png`.
    pub name: String,
    /// The state that it was drawn from.
    pub step: Step,
}

impl Picture {
    /// The picture of a file with this name, if it is one.
    fn named(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("step-")?.strip_suffix(".png")?;
        let is_number = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let step = digits.parse().ok().filter(|_| is_number)?;
        Some(Self {
            name: name.to_owned(),
            step: Step(step),
        })
    }

    /// Its file.
    pub fn path(&self, run_dir: &Path) -> PathBuf {
        run_dir.join(FOLDER).join(&self.name)
    }

    /// When it was written, seconds since 1970.
    ///
    /// # Errors
    /// [`io::Error`], if it is gone.
    pub fn unix_seconds(&self, run_dir: &Path) -> io::Result<f64> {
        let at = fs::metadata(self.path(run_dir))?.modified()?;
        Ok(at
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |at| at.as_secs_f64()))
    }

    /// Its file's bytes.
    ///
    /// # Errors
    /// [`io::Error`], also if it is larger than any grid.
    pub fn read(&self, run_dir: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.path(run_dir))?;
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }
}

/// The pictures of a run directory, by step; none if there is no folder. Only plain files count: a
/// link could lead anywhere.
///
/// # Errors
/// [`io::Error`], if the folder is there and can't be read.
pub fn list(run_dir: &Path) -> io::Result<Vec<Picture>> {
    let entries = match fs::read_dir(run_dir.join(FOLDER)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut pictures = Vec::new();
    for entry in entries {
        let entry = entry?;
        let picture = entry.file_name().to_str().and_then(Picture::named);
        if let Some(picture) = picture
            && entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            pictures.push(picture);
        }
    }
    pictures.sort_unstable_by_key(|picture| picture.step);
    Ok(pictures)
}

/// The picture of this name, if it is in the folder's listing; whatever else a name may say, it leads
/// nowhere.
///
/// # Errors
/// As [`list`].
pub fn find(run_dir: &Path, name: &str) -> io::Result<Option<Picture>> {
    if Picture::named(name).is_none() {
        return Ok(None);
    }
    let mut pictures = list(run_dir)?.into_iter();
    Ok(pictures.find(|picture| picture.name == name))
}

/// At most about `count` of the pictures, evenly, the first and the newest among them. As pictures are
/// added the choice stays the same, or every second one of it goes.
pub fn evenly(pictures: &[Picture], count: usize) -> Vec<Picture> {
    let stride = pictures
        .len()
        .div_ceil(count.max(1))
        .max(1)
        .next_power_of_two();
    let mut chosen: Vec<Picture> = pictures.iter().step_by(stride).cloned().collect();
    if let Some(newest) = pictures.last()
        && chosen.last() != Some(newest)
    {
        chosen.push(newest.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(steps: &[u64]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(FOLDER)).unwrap();
        for step in steps {
            let name = format!("{FOLDER}/step-{step:08}.png");
            fs::write(dir.path().join(name), step.to_string()).unwrap();
        }
        dir
    }

    #[test]
    fn only_grids_count_in_the_order_of_their_steps() {
        let dir = run_of(&[500, 8, 123_456_789]);
        let folder = dir.path().join(FOLDER);
        for name in [
            "step-1.png",
            "step-+0000001.png",
            "notes.txt",
            ".tmp-step-00000009.png-7",
        ] {
            fs::write(folder.join(name), "").unwrap();
        }
        fs::create_dir(folder.join("step-00000001.png")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", folder.join("step-00000002.png")).unwrap();
        let steps: Vec<u64> = list(dir.path()).unwrap().iter().map(|p| p.step.0).collect();
        assert_eq!(steps, [8, 500, 123_456_789]);
        assert_eq!(list(&dir.path().join("nowhere")).unwrap(), []);
    }

    #[test]
    fn a_name_leads_nowhere_but_to_a_listed_grid() {
        let dir = run_of(&[8]);
        let folder = dir.path().join(FOLDER);
        fs::write(dir.path().join("step-00000009.png"), "outside").unwrap();
        std::os::unix::fs::symlink("../step-00000009.png", folder.join("step-00000007.png"))
            .unwrap();
        let found = find(dir.path(), "step-00000008.png").unwrap().unwrap();
        assert_eq!(found.read(dir.path()).unwrap(), b"8");
        for name in [
            "../step-00000009.png",
            "step-00000009.png",
            "step-00000007.png",
            "step-../../step-00000009.png",
            "/etc/passwd",
            "..",
            "",
            "step-00000008.png/",
            "step-00000008.png\0",
            "STEP-00000008.PNG",
        ] {
            assert_eq!(find(dir.path(), name).unwrap(), None, "{name:?}");
        }
    }

    #[test]
    fn a_choice_has_both_ends_and_hardly_changes_as_pictures_come() {
        let all: Vec<Picture> = (1..=1000)
            .map(|step| Picture::named(&format!("step-{step:08}.png")).unwrap())
            .collect();
        assert_eq!(evenly(&[], 60), []);
        let mut before: Vec<Picture> = Vec::new();
        for len in 1..=all.len() {
            let chosen = evenly(&all[..len], 60);
            assert!(
                chosen.len() <= 61 && (len < 60 || chosen.len() > 30),
                "{len}"
            );
            assert_eq!(
                (&chosen[0], &chosen[chosen.len() - 1]),
                (&all[0], &all[len - 1])
            );
            // All but the newest stay, or every second one.
            before.pop();
            let kept = before
                .iter()
                .filter(|picture| chosen.contains(picture))
                .count();
            assert!(
                kept >= before.len() / 2,
                "{len}: {kept} of {}",
                before.len()
            );
            before = chosen;
        }
    }
}
