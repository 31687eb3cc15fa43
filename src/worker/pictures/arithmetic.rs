//! `gan-worker arithmetic`: sums and differences of latents (figure 19 of the tutorial, after
//! Radford et al. 2015, figure 7).

use super::picks::Picks;
use super::source::{Source, scale};
use super::{PictureError, Report, named};
use crate::command::Failure;
use crate::random::{Domain, Key};
use crate::sample::geometry::{self, Sign};
use crate::sample::{
    Canvas, Format, GAP, Images, SampleError, magnification, text_height, text_width, write_picture,
};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};
use image::DynamicImage;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// What is added up, and how far one looks around the result.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: look for three images of each kind in a numbered grid, then add their means up
  gan-worker sample runs/mnist --numbers --out grid.png
  gan-worker arithmetic runs/mnist --plus 3,17,25 --minus 4,9,11 --plus 5,6,7 --out sum.png

The picture has a column for each term: its images, and under them that of their mean. Right of
it is the sum's image, among eight of latents that lie near.")]
pub(in crate::worker) struct Arithmetic {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    terms: Terms,
    /// The picture (PNG) to write.
    #[arg(long)]
    out: PathBuf,
    /// How far the latents around the sum differ from it, in each number.
    #[arg(long, default_value_t = 0.25)]
    around: f32,
    /// Repeat each pixel so often along a row [default: 64 pixels an image].
    #[arg(long, value_parser = scale())]
    scale: Option<u32>,
}

/// Terms in the order in which they were typed.
#[derive(Debug)]
struct Terms(Vec<(Sign, Picks)>);

const SIGNS: [(&str, Sign); 2] = [("plus", Sign::Plus), ("minus", Sign::Minus)];

impl Args for Terms {
    fn augment_args(command: clap::Command) -> clap::Command {
        let argument = |name: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .value_name("IMAGES")
                .action(ArgAction::Append)
                .value_parser(|text: &str| text.parse::<Picks>())
                .help(help)
        };
        command
            .arg(argument(
                "plus",
                "Add the mean of these images, by their numbers in the grid of `gan-worker sample`; \
                 9:3 is image 3 of seed 9. May be repeated",
            ).required(true))
            .arg(argument("minus", "Take the mean of these images away. May be repeated"))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Terms {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut placed = Vec::new();
        for (name, sign) in SIGNS {
            let places = matches.indices_of(name).into_iter().flatten();
            let given = matches.get_many::<Picks>(name).into_iter().flatten();
            placed.extend(
                places
                    .zip(given)
                    .map(|(place, picks)| (place, sign, picks.clone())),
            );
        }
        placed.sort_by_key(|(place, ..)| *place);
        Ok(Self(
            placed
                .into_iter()
                .map(|(_, sign, picks)| (sign, picks))
                .collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Images of a square around the sum, row by row: it is the middle one.
const AROUND: usize = 9;

impl Arithmetic {
    pub(in crate::worker) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.source.json;
        self.draw()?.print(json)
    }

    fn draw(self) -> Result<Report, PictureError> {
        let out = named(&self.out, "png");
        Format::expect(&out, &[Format::Png])?;
        if !(0.0..=10.0).contains(&self.around) {
            let message = format!("--around {}: expected 0 to 10", self.around);
            return Err(PictureError::Command(message));
        }
        let painter = self.source.open()?;
        // What is drawn, in this order: each term's images and their mean; the sum's neighbourhood.
        let mut latents: Vec<Vec<f32>> = Vec::new();
        let mut means = Vec::new();
        for (sign, picks) in &self.terms.0 {
            let term = painter.latents(picks)?;
            let mean = geometry::mean(&term.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let mean = mean.ok_or_else(no_terms)?;
            latents.extend(term);
            latents.push(mean.clone());
            means.push((*sign, mean));
        }
        let signed: Vec<_> = means
            .iter()
            .map(|(sign, mean)| (*sign, mean.as_slice()))
            .collect();
        let sum = geometry::sum(&signed).ok_or_else(no_terms)?;
        let mut moves = Key::new(Domain::Moves, &[self.source.seed]).stream();
        for place in 0..AROUND {
            let moved = sum.iter().map(|z| {
                // Uniform in -1 … 1.
                let step = moves.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
                z + self.around * step
            });
            let moved: Vec<f32> = moved.collect();
            latents.push(if place == AROUND / 2 {
                sum.clone()
            } else {
                moved
            });
        }
        let images = painter.paint(&latents)?;
        write_picture(&out, &self.layout(&images)?)?;
        let terms = self.terms.0.iter().map(|(sign, picks)| {
            let images = picks.captions().join(",");
            format!("{} mean({images})", sign.symbol())
        });
        let terms: Vec<String> = terms.collect();
        let text = format!(
            "{}: {}, {}",
            out.display(),
            terms.join(" ").trim_start_matches("+ "),
            painter.says()
        );
        let object = json!({
            "out": out,
            "checkpoint": painter.weights.json(),
            "seed": self.source.seed,
            "terms": terms,
            "around": self.around,
            "sum": sum,
        });
        Ok(Report { text, object })
    }

    /// Columns of images over their means, with signs between, and the square on the right.
    fn layout(&self, images: &Images) -> Result<DynamicImage, SampleError> {
        let scale = self.scale.unwrap_or_else(|| magnification(images.size, 64));
        let side = images.size.saturating_mul(scale);
        let dots = (side / 32).clamp(1, 3);
        let line = text_height(dots);
        let row = side.saturating_add(line).saturating_add(GAP);
        // A sign as wide as half an image.
        let large = (side / 16).max(1);
        let sign_width = side / 2 + 2 * GAP;
        let terms = &self.terms.0;
        let longest = terms
            .iter()
            .map(|(_, picks)| picks.0.len())
            .max()
            .unwrap_or(1) as u32;
        // All means stand in one row, under a gap; the square beside is at least three images high.
        let means_top = GAP
            .saturating_add(longest.saturating_mul(row))
            .saturating_add(2 * GAP);
        let square = 3 * (side + GAP);
        let height = means_top.saturating_add(row).max(square + 2 * GAP);
        let count = terms.len() as u32;
        let width = count
            .saturating_mul(side.saturating_add(sign_width))
            .saturating_add(square + 2 * GAP);
        let mut page = Canvas::new(width, height)?;
        let signs = means_top + (side.saturating_sub(8 * large)) / 2;
        let mut left = GAP;
        let mut next = 0;
        for (place, (sign, picks)) in terms.iter().enumerate() {
            // The first one's sign goes without saying, if it is a plus.
            if place > 0 {
                let symbol = sign.symbol().to_string();
                page.centred(&symbol, [left, signs], sign_width, large);
                left += sign_width;
            } else if *sign == Sign::Minus {
                let wide = text_width("-", dots);
                page.text("-", [left, means_top + side + dots], dots);
                left += wide;
            }
            let first = longest - picks.0.len() as u32;
            for (n, name) in picks.captions().iter().enumerate() {
                let top = GAP + (first + n as u32) * row;
                page.image(images, next, [left, top], scale);
                page.centred(name, [left, top + side + dots], side, dots);
                next += 1;
            }
            page.image(images, next, [left, means_top], scale);
            page.centred("mean", [left, means_top + side + dots], side, dots);
            next += 1;
            left += side;
        }
        page.centred("=", [left, signs], sign_width, large);
        left += sign_width;
        let top = height.saturating_sub(square + line);
        for place in 0..AROUND as u32 {
            let at = [
                left + place % 3 * (side + GAP),
                top + place / 3 * (side + GAP),
            ];
            page.image(images, next + place, at, scale);
        }
        Ok(page.finish())
    }
}

fn no_terms() -> PictureError {
    PictureError::Command("there are no terms; expected --plus IMAGES".to_owned())
}
