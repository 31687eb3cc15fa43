//! The progress of a job on the terminal: a bar, or now and then a line where there is no terminal.

use crate::ids::Step;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Without a terminal, the least time from one line to the next.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Time left is judged by the pace of this last while, so that a pause is soon forgotten.
const WINDOW: Duration = Duration::from_secs(60);

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProgressView {
    /// The newest step.
    pub step: Step,
    /// Images a second, over all workers.
    pub images_per_second: f64,
    /// The discriminator's cost.
    pub loss_d: f64,
    /// The generator's cost.
    pub loss_g: f64,
    /// Mean of D(x).
    pub d_real: f64,
    /// Mean of D(G(z)).
    pub d_fake: f64,
}

/// A job's progress.
#[derive(Debug)]
pub struct Progress {
    total: u64,
    surface: Surface,
    /// When which step was seen, over the window.
    pace: VecDeque<(Instant, Step)>,
    last: Option<String>,
}

enum Surface {
    Bar(ProgressBar),
    Lines {
        out: Box<dyn Write + Send>,
        printed_at: Option<Instant>,
    },
}

impl Debug for Surface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Surface::Bar(_) => "Bar",
            Surface::Lines { .. } => "Lines",
        })
    }
}

impl Progress {
    /// Progress on stderr of a job of `total_steps` that begins after `start_step`.
    pub fn new(total_steps: u64, start_step: Step) -> Self {
        if !io::stderr().is_terminal() {
            return Self::lines(total_steps, Box::new(io::stderr()));
        }
        let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {prefix}\n{wide_msg}") {
            bar.set_style(style);
        }
        bar.set_position(start_step.0);
        Self::on(total_steps, Surface::Bar(bar))
    }

    fn lines(total_steps: u64, out: Box<dyn Write + Send>) -> Self {
        let printed_at = None;
        Self::on(total_steps, Surface::Lines { out, printed_at })
    }

    fn on(total: u64, surface: Surface) -> Self {
        Self {
            total,
            surface,
            pace: VecDeque::new(),
            last: None,
        }
    }

    /// Shows `view`, at time `now`.
    pub fn update(&mut self, view: &ProgressView, now: Instant) {
        let left = self.time_left(view.step, now);
        match &mut self.surface {
            // Two lines, so that all of it fits a terminal of 80 columns.
            Surface::Bar(bar) => {
                bar.set_position(view.step.0);
                bar.set_prefix(left.map_or_else(String::new, time_left));
                bar.set_message(line(view, self.total));
            }
            Surface::Lines { out, printed_at } => {
                let mut text = line(view, self.total);
                if let Some(left) = left {
                    text += "  ";
                    text += &time_left(left);
                }
                let due = printed_at.is_none_or(|at| now.duration_since(at) >= LINE_INTERVAL);
                if due {
                    *printed_at = Some(now);
                    self.last = None;
                    print(out, &text);
                } else {
                    self.last = Some(text);
                }
            }
        }
    }

    /// Prints a line of its own, such as an event, above the bar.
    pub fn note(&mut self, text: &str) {
        match &mut self.surface {
            Surface::Bar(bar) => bar.println(text),
            Surface::Lines { out, .. } => print(out, text),
        }
    }

    /// Ends with a line that says how. The last view stays in sight.
    pub fn finish(mut self, text: &str) {
        let last = self.last.take();
        match &mut self.surface {
            Surface::Bar(bar) => {
                bar.abandon();
                print(&mut io::stderr(), text);
            }
            Surface::Lines { out, .. } => {
                for text in last.iter().map(String::as_str).chain([text]) {
                    print(out, text);
                }
            }
        }
    }

    fn time_left(&mut self, step: Step, now: Instant) -> Option<Duration> {
        // After a failure the job goes on from an earlier step.
        if self.pace.back().is_some_and(|&(_, newest)| newest > step) {
            self.pace.clear();
        }
        self.pace.push_back((now, step));
        while self.pace.len() > 2
            && self
                .pace
                .front()
                .is_some_and(|&(at, _)| now.duration_since(at) > WINDOW)
        {
            self.pace.pop_front();
        }
        let &(since, first) = self.pace.front()?;
        let done = step.0.checked_sub(first.0).filter(|&done| done > 0)?;
        let seconds = now.duration_since(since).as_secs_f64() / done as f64;
        Duration::try_from_secs_f64(seconds * self.total.saturating_sub(step.0) as f64).ok()
    }
}

/// A terminal that is gone is no reason to stop training.
fn print(out: &mut dyn Write, text: &str) {
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A view as text.
fn line(view: &ProgressView, total: u64) -> String {
    let ProgressView {
        step,
        images_per_second,
        loss_d,
        loss_g,
        d_real,
        d_fake,
    } = view;
    format!(
        "step {step}/{total}  {images_per_second:.0} images/s  \
         loss D {loss_d:.3} G {loss_g:.3}  D(x) {d_real:.3}  D(G(z)) {d_fake:.3}"
    )
}

fn time_left(left: Duration) -> String {
    format!("{} left", duration(left))
}

/// A duration to two units.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    if hours >= 24 {
        format!("{}d {:02}h", hours / 24, hours % 24)
    } else if hours > 0 {
        format!("{hours}h {:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// The packing of a data set, on a terminal's stderr; nothing is shown elsewhere.
pub struct Packing(ProgressBar);

impl Packing {
    /// Shows nothing until there is something to show.
    #[expect(clippy::new_without_default, reason = "it reaches for the terminal")]
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{bar:24} packing image {pos}/{len}, {eta} left")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// `done` of `total` images are packed.
    pub fn update(&mut self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn view(step: u64) -> ProgressView {
        ProgressView {
            step: Step(step),
            images_per_second: 1234.4,
            loss_d: 1.38629,
            loss_g: 0.7002,
            d_real: 0.5,
            d_fake: 0.25,
        }
    }

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

    impl Buffer {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn a_view_reads_well() {
        assert_eq!(
            line(&view(1500), 10_000),
            "step 1500/10000  1234 images/s  loss D 1.386 G 0.700  D(x) 0.500  D(G(z)) 0.250"
        );
        assert_eq!(time_left(Duration::from_secs(125)), "2m 05s left");
        let diverged = ProgressView {
            loss_d: f64::NAN,
            ..view(1)
        };
        let text = line(&diverged, 2);
        assert!(text.contains("loss D NaN"), "{text}");
    }

    #[test]
    fn durations_have_two_units() {
        let texts = [0, 59, 60, 3599, 3600, 86_399, 90_000]
            .map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(
            texts,
            [
                "0s", "59s", "1m 00s", "59m 59s", "1h 00m", "23h 59m", "1d 01h"
            ]
        );
    }

    #[test]
    fn without_a_terminal_a_line_comes_every_ten_seconds_at_most() {
        let out = Buffer::default();
        #[expect(
            clippy::disallowed_methods,
            reason = "an instant to invent others from"
        )]
        let start = Instant::now();
        let mut progress = Progress::lines(1000, Box::new(out.clone()));
        for tenths in 0..=250u64 {
            progress.update(&view(tenths), start + Duration::from_millis(100 * tenths));
        }
        let lines = out.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("step 0/1000") && !lines[0].contains("left"));
        assert!(lines[1].starts_with("step 100/1000") && lines[1].ends_with("1m 30s left"));
        assert!(lines[2].starts_with("step 200/1000") && lines[2].ends_with("1m 20s left"));

        progress.note("worker 2 is gone");
        progress.finish("stopped after step 250");
        let lines = out.lines();
        assert_eq!(lines[3], "worker 2 is gone");
        assert!(
            lines[4].starts_with("step 250/1000"),
            "the last view is not lost"
        );
        assert_eq!(lines[5], "stopped after step 250");
        assert_eq!(lines.len(), 6);
    }

    #[test]
    fn time_left_forgets_a_pause_and_survives_a_step_back() {
        #[expect(
            clippy::disallowed_methods,
            reason = "an instant to invent others from"
        )]
        let start = Instant::now();
        let mut progress = Progress::lines(1000, Box::new(io::sink()));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(progress.time_left(Step(0), at(0)), None);
        // An hour's pause, then a step a second.
        for second in 0..100 {
            progress.time_left(Step(second + 1), at(3600 + second));
        }
        let left = progress.time_left(Step(101), at(3700));
        assert_eq!(left, Some(Duration::from_secs(899)));
        assert_eq!(progress.time_left(Step(50), at(3701)), None);
        assert_eq!(
            progress.time_left(Step(52), at(3702)),
            Some(Duration::from_secs(474))
        );
        assert_eq!(
            progress.time_left(Step(1000), at(3800)),
            Some(Duration::ZERO)
        );
    }
}
