//! PURE. The guard: from the figures of a step, which all workers see alike, to what becomes of it.
//!
//! A step is kept, skipped, or followed by a rollback; or it is the last one. [`Guard`] is part of
//! State(t), so the same is decided again wherever a step is done again. This room knows no tensors,
//! no files and no clock; `train` does what it says, and `coordinator` writes it down.
//!
//! ```text
//! skip        State(t+1) = State(t), but for t
//! roll back   State(t+1) = the networks of State(anchor), with lower learning rates
//! stop        State(t+1) is the last; whoever holds it knows
//! ```
//!
//! t never goes back: the plan, the ledger and the epochs know nothing of all this, and after a
//! rollback there are other data and latents, so that it needn't end as before.
//!
//! A mean is taken over the newest n steps at first, and then with weight 1/n for the newest. It is
//! judged from the nth step on; steps that are skipped are not in it.

#[cfg(test)]
mod tests;

use crate::config::{Guard as Settings, Policy};
use crate::ids::Step;
use std::fmt;

/// What a step tells. All of it comes out of the reductions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Values of the mean gradients and batch statistics that are not finite.
    pub nonfinite: u64,
    /// J_D.
    pub loss_d: f64,
    /// Mean D(x) - mean D(G(z)).
    pub gap: f64,
    /// The fakes' standard deviation in the mean over pixels, in units of the real images'; if it is
    /// watched.
    pub diversity: Option<f64>,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Values that are not finite, in steps one after the other.
    Nonfinite,
    /// D knows too well: D(x) - D(G(z)).
    Gap,
    /// D's cost is too low.
    Loss,
    /// G's samples are all alike.
    Collapse,
}

impl Trouble {
    const ALL: [Self; 4] = [Self::Nonfinite, Self::Gap, Self::Loss, Self::Collapse];

    /// Its number, from 1; 0 is no trouble.
    pub fn number(self) -> u8 {
        match self {
            Trouble::Nonfinite => 1,
            Trouble::Gap => 2,
            Trouble::Loss => 3,
            Trouble::Collapse => 4,
        }
    }

    /// The trouble of this number.
    pub fn numbered(number: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|trouble| u64::from(trouble.number()) == number)
    }

    fn policy(self, settings: &Settings) -> Policy {
        match self {
            Trouble::Nonfinite => settings.nonfinite,
            Trouble::Gap | Trouble::Loss => settings.overpowered,
            Trouble::Collapse => settings.collapsed,
        }
    }

    fn steps(self, settings: &Settings) -> u64 {
        match self {
            Trouble::Nonfinite => settings.nonfinite_steps,
            Trouble::Gap | Trouble::Loss => settings.overpowered_steps,
            Trouble::Collapse => settings.collapsed_steps,
        }
    }
}

/// Trouble, with its number and the limit that it passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// What.
    pub trouble: Trouble,
    /// Steps in a row, or the mean.
    pub figure: f64,
    /// The setting that it passed; of steps that aren't finite, how many there may be in a row.
    pub limit: f64,
    /// Steps that it was looked at.
    pub steps: u64,
}

impl Finding {
    /// Of this figure, under these settings.
    pub fn new(trouble: Trouble, figure: f64, settings: &Settings) -> Self {
        let steps = trouble.steps(settings);
        let limit = match trouble {
            Trouble::Nonfinite => steps as f64,
            Trouble::Gap => settings.overpowered_gap,
            Trouble::Loss => settings.overpowered_loss.unwrap_or(f64::NAN),
            Trouble::Collapse => settings.collapsed_diversity,
        };
        Self {
            trouble,
            figure,
            limit,
            steps,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trouble,
            figure,
            limit,
            steps,
        } = self;
        match trouble {
            Trouble::Nonfinite => write!(
                f,
                "gradients or batch statistics are not finite, {figure} steps in a row \
                 (guard.nonfinite_steps = {limit})"
            ),
            Trouble::Gap => write!(
                f,
                "D(x) - D(G(z)) is {figure:.4} in the mean over {steps} steps, above \
                 guard.overpowered_gap = {limit}"
            ),
            Trouble::Loss => write!(
                f,
                "J_D is {figure:.4e} in the mean over {steps} steps, below \
                 guard.overpowered_loss = {limit}"
            ),
            Trouble::Collapse => write!(
                f,
                "fakes vary {figure:.4} times as much as real images in the mean over {steps} \
                 steps, below guard.collapsed_diversity = {limit}"
            ),
        }
    }
}

/// What becomes of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It is a step like any other.
    Keep,
    /// It is, but there is something to be told.
    Warn(Finding),
    /// Nothing of it becomes the state.
    Skip(Finding),
    /// The networks are those of an older state.
    RollBack {
        /// Why.
        finding: Finding,
        /// Which state's.
        to: Step,
        /// How many rollbacks the job has had, with this one.
        number: u64,
        /// How many there may be.
        allowed: u32,
        /// What the job's learning rates are multiplied with from now on.
        rate: f64,
    },
    /// The job ends here.
    Stop {
        /// Why.
        finding: Finding,
        /// How many rollbacks the job has had.
        rollbacks: u64,
        /// It would have been another rollback, were there not too many.
        in_vain: bool,
    },
}

impl Verdict {
    /// What it is about; nothing if the step is kept.
    pub fn finding(&self) -> Option<Finding> {
        match self {
            Verdict::Keep => None,
            Verdict::Warn(finding)
            | Verdict::Skip(finding)
            | Verdict::RollBack { finding, .. }
            | Verdict::Stop { finding, .. } => Some(*finding),
        }
    }

    /// Whether the next step starts from what this one has made.
    pub fn takes_the_step(&self) -> bool {
        match self {
            Verdict::Keep | Verdict::Warn(_) => true,
            Verdict::Skip(_) | Verdict::RollBack { .. } => false,
            Verdict::Stop { finding, .. } => finding.trouble != Trouble::Nonfinite,
        }
    }

    /// The newest step whose state is known to be sound, if the job ends at `step`.
    pub fn sound(&self, step: Step) -> Step {
        match self.finding() {
            // What wasn't finite never became the state.
            Some(finding) if finding.trouble != Trouble::Nonfinite => {
                Step(step.0.saturating_sub(finding.steps))
            }
            _ => step,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Keep => f.write_str("kept"),
            Verdict::Warn(finding) => finding.fmt(f),
            Verdict::Skip(finding) => write!(f, "skipped: {finding}"),
            Verdict::RollBack {
                finding,
                to,
                number,
                allowed,
                rate,
            } => write!(
                f,
                "rolled back to the networks of State({to}), learning rates times {rate} \
                 (rollback {number} of {allowed}, guard.rollbacks): {finding}"
            ),
            Verdict::Stop {
                finding,
                rollbacks,
                in_vain,
            } => {
                finding.fmt(f)?;
                if *in_vain {
                    write!(f, "; after {rollbacks} rollbacks (guard.rollbacks)")?;
                }
                Ok(())
            }
        }
    }
}

/// A running mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Window {
    /// Steps that it has seen.
    seen: u64,
    mean: f64,
}

impl Window {
    fn see(&mut self, figure: f64, steps: u64) {
        if figure.is_finite() {
            self.seen = self.seen.saturating_add(1);
            self.mean += (figure - self.mean) / self.seen.min(steps) as f64;
        }
    }

    fn is_full(&self, steps: u64) -> bool {
        self.seen >= steps
    }
}

/// The guard's part of State(t).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guard {
    /// Steps in a row that were not finite.
    streak: u64,
    rollbacks: u64,
    /// Why this state is the last one.
    halted: Option<Trouble>,
    /// The state that a rollback leads to.
    anchor: Step,
    /// The one after it, which is not yet known to be sound.
    candidate: Step,
    gap: Window,
    loss: Window,
    diversity: Window,
}

/// What is decided about a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The guard's part of the next state.
    pub guard: Guard,
    /// What becomes of the step.
    pub verdict: Verdict,
    /// The candidate becomes the anchor, and the next state's networks the candidate.
    pub captures: bool,
}

/// The numbers that a guard is made of.
pub const WORDS: usize = 11;

/// Names of [`Guard::words`].
pub const NAMES: [&str; WORDS] = [
    "streak",
    "rollbacks",
    "halted",
    "anchor",
    "candidate",
    "gap.seen",
    "gap.mean",
    "loss.seen",
    "loss.mean",
    "diversity.seen",
    "diversity.mean",
];

impl Guard {
    /// What becomes of the step that reaches `step`.
    pub fn judge(&self, settings: &Settings, step: Step, figures: &Figures) -> Decision {
        let mut next = *self;
        let verdict = next.verdict(settings, figures);
        let moves = !matches!(verdict, Verdict::RollBack { .. } | Verdict::Stop { .. });
        let captures =
            moves && settings.rolls_back() && step.0.is_multiple_of(settings.anchor_every);
        if captures {
            next.anchor = next.candidate;
            next.candidate = step;
        }
        Decision {
            guard: next,
            verdict,
            captures,
        }
    }

    fn verdict(&mut self, settings: &Settings, figures: &Figures) -> Verdict {
        if settings.nonfinite != Policy::Off {
            if figures.nonfinite > 0 {
                self.streak = self.streak.saturating_add(1);
                let finding = Finding::new(Trouble::Nonfinite, self.streak as f64, settings);
                if self.streak < settings.nonfinite_steps || settings.nonfinite == Policy::Warn {
                    return Verdict::Skip(finding);
                }
                return self.act(finding, settings);
            }
            self.streak = 0;
        }
        let steps = settings.overpowered_steps;
        if settings.overpowered != Policy::Off {
            self.gap.see(figures.gap, steps);
            if settings.overpowered_loss.is_some() {
                self.loss.see(figures.loss_d, steps);
            }
        }
        if let Some(diversity) = figures.diversity
            && settings.watches_diversity()
        {
            self.diversity.see(diversity, settings.collapsed_steps);
        }
        // One at a time: a second one is still there at the next step, unless this one ends it.
        match self.found(settings) {
            Some(finding) => self.act(finding, settings),
            None => Verdict::Keep,
        }
    }

    fn found(&self, settings: &Settings) -> Option<Finding> {
        let loss = settings.overpowered_loss.unwrap_or(f64::NEG_INFINITY);
        let passed = [
            (
                Trouble::Collapse,
                self.diversity,
                self.diversity.mean < settings.collapsed_diversity,
            ),
            (
                Trouble::Gap,
                self.gap,
                self.gap.mean > settings.overpowered_gap,
            ),
            (Trouble::Loss, self.loss, self.loss.mean < loss),
        ];
        passed
            .into_iter()
            .find(|(trouble, window, passed)| *passed && window.is_full(trouble.steps(settings)))
            .map(|(trouble, window, _)| Finding::new(trouble, window.mean, settings))
    }

    /// Does what the policy says.
    fn act(&mut self, finding: Finding, settings: &Settings) -> Verdict {
        let rollbacks = self.rollbacks;
        match finding.trouble.policy(settings) {
            Policy::Off => Verdict::Keep,
            Policy::Warn => {
                // The next warning comes after as many steps again.
                match finding.trouble {
                    Trouble::Nonfinite => {}
                    Trouble::Gap => self.gap = Window::default(),
                    Trouble::Loss => self.loss = Window::default(),
                    Trouble::Collapse => self.diversity = Window::default(),
                }
                Verdict::Warn(finding)
            }
            Policy::RollBack if rollbacks < u64::from(settings.rollbacks) => {
                *self = Self {
                    rollbacks: rollbacks + 1,
                    anchor: self.anchor,
                    // The one there was may be in trouble already.
                    candidate: self.anchor,
                    ..Self::default()
                };
                Verdict::RollBack {
                    finding,
                    to: self.anchor,
                    number: self.rollbacks,
                    allowed: settings.rollbacks,
                    rate: self.rate(settings),
                }
            }
            policy @ (Policy::RollBack | Policy::Stop) => {
                self.halted = Some(finding.trouble);
                Verdict::Stop {
                    finding,
                    rollbacks,
                    in_vain: policy == Policy::RollBack,
                }
            }
        }
    }

    /// Why this state is the job's last, if it is.
    pub fn halt(&self, settings: &Settings) -> Option<Verdict> {
        let trouble = self.halted?;
        let figure = match trouble {
            Trouble::Nonfinite => self.streak as f64,
            Trouble::Gap => self.gap.mean,
            Trouble::Loss => self.loss.mean,
            Trouble::Collapse => self.diversity.mean,
        };
        Some(Verdict::Stop {
            finding: Finding::new(trouble, figure, settings),
            rollbacks: self.rollbacks,
            in_vain: trouble.policy(settings) == Policy::RollBack,
        })
    }

    /// What the job's learning rates are multiplied with.
    pub fn rate(&self, settings: &Settings) -> f64 {
        rate(settings, self.rollbacks)
    }

    /// t of the state that a rollback leads to, and of the one that is to follow it.
    pub fn anchors(&self) -> [Step; 2] {
        [self.anchor, self.candidate]
    }

    /// All that it is, as numbers: means by their bits.
    pub fn words(&self) -> [u64; WORDS] {
        let Self {
            streak,
            rollbacks,
            halted,
            anchor,
            candidate,
            gap,
            loss,
            diversity,
        } = *self;
        [
            streak,
            rollbacks,
            halted.map_or(0, |trouble| u64::from(trouble.number())),
            anchor.0,
            candidate.0,
            gap.seen,
            gap.mean.to_bits(),
            loss.seen,
            loss.mean.to_bits(),
            diversity.seen,
            diversity.mean.to_bits(),
        ]
    }

    /// The guard of these [`Guard::words`].
    ///
    /// # Errors
    /// The name of the first one that can't be.
    pub fn from_words(words: [u64; WORDS]) -> Result<Self, &'static str> {
        let window = |at: usize| {
            let window = Window {
                seen: words[at],
                mean: f64::from_bits(words[at + 1]),
            };
            match window.mean.is_finite() {
                true => Ok(window),
                false => Err(NAMES[at + 1]),
            }
        };
        let halted = match words[2] {
            0 => None,
            number => Some(Trouble::numbered(number).ok_or(NAMES[2])?),
        };
        Ok(Self {
            streak: words[0],
            rollbacks: words[1],
            halted,
            anchor: Step(words[3]),
            candidate: Step(words[4]),
            gap: window(5)?,
            loss: window(7)?,
            diversity: window(9)?,
        })
    }
}

/// What learning rates are multiplied with after so many rollbacks: one multiplication each, the same
/// on any machine.
pub fn rate(settings: &Settings, rollbacks: u64) -> f64 {
    (0..rollbacks.min(u64::from(settings.rollbacks)))
        .fold(1.0, |rate, _| rate * settings.rate_factor)
}
