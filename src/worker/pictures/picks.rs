//! Latents that a person has named: images by their numbers in a seed's grid.

use std::fmt;
use std::str::FromStr;

/// The largest number of an image.
const LARGEST: u32 = 65_535;
/// The most images that are named at a time.
const MOST: usize = 4096;

/// An image: the one with this number in the grid that `gan-worker sample` draws of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    /// Whose grid; `None` is the command's own `--seed`.
    pub(super) seed: Option<u64>,
    /// Its number, row by row from 0.
    pub(super) number: u32,
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seed {
            Some(seed) => write!(f, "{seed}:{}", self.number),
            None => write!(f, "{}", self.number),
        }
    }
}

/// Images: `3,17,25`, `0-7`, or `9:3` for image 3 of seed 9.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Picks(pub(super) Vec<Pick>);

impl Picks {
    /// The first `count` images.
    pub(super) fn first(count: u32) -> Self {
        let pick = |number| Pick { seed: None, number };
        Self((0..count).map(pick).collect())
    }

    /// As texts, for captions.
    pub(super) fn captions(&self) -> Vec<String> {
        self.0.iter().map(Pick::to_string).collect()
    }
}

impl FromStr for Picks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |part: &str| {
            format!(
                "{part:?} is no image; expected numbers up to {LARGEST} as in 3,17,25 or 0-7, or 9:3 for image 3 of seed 9"
            )
        };
        let number = |text: &str| text.parse().ok().filter(|&number: &u32| number <= LARGEST);
        let mut picks = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            let (seed, numbers) = match part.split_once(':') {
                Some((seed, rest)) => (Some(seed.parse().map_err(|_| wrong(part))?), rest),
                None => (None, part),
            };
            let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
            let range = number(first).zip(number(last));
            let (first, last) = range
                .filter(|(first, last)| first <= last)
                .ok_or_else(|| wrong(part))?;
            picks.extend((first..=last).map(|number| Pick { seed, number }));
            if picks.len() > MOST {
                return Err(format!("more than {MOST} images"));
            }
        }
        Ok(Self(picks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_by_number_range_and_seed() {
        let picks: Picks = "3, 17,9:0-2".parse().unwrap();
        assert_eq!(picks.captions(), ["3", "17", "9:0", "9:1", "9:2"]);
        assert_eq!(Picks::first(2), "0-1".parse().unwrap());
        for text in ["", "x", "3,", "-1", "5-3", "a:1", "1:", "65536", "0-60000"] {
            let refused = text.parse::<Picks>().unwrap_err();
            assert!(!refused.is_empty(), "{text}");
        }
    }
}
