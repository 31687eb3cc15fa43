//! PURE. Curves of a run of any length in bounded room: steps are gathered in buckets, and whenever
//! there would be too many, two neighbours become one.

use crate::telemetry::records::Record;
use serde::Serialize;
use std::collections::BTreeMap;

/// Points of a curve, at most; even, so that all of them are in pairs.
pub(super) const POINTS: usize = 1000;

type Figure = fn(&Record) -> f64;

/// What is drawn, under the names that the records have for it.
const SERIES: [(&str, Figure); 8] = [
    ("loss_d", |record| record.loss_d),
    ("loss_g", |record| record.loss_g),
    ("d_real", |record| record.d_real),
    ("d_fake", |record| record.d_fake),
    ("grad_norm_d", |record| record.grad_norm_d),
    ("grad_norm_g", |record| record.grad_norm_g),
    ("images_per_s", |record| record.images_per_s),
    ("reduce_s", |record| record.reduce_s),
];

/// Values of some steps. Those that are not finite are not counted.
#[derive(Clone, Copy, Debug)]
struct Values {
    count: u32,
    sum: f64,
    min: f64,
    max: f64,
}

impl Values {
    const NONE: Self = Self {
        count: 0,
        sum: 0.0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
    };

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    fn of(value: f64) -> Self {
        if !value.is_finite() {
            return Self::NONE;
        }
        Self {
            count: 1,
            sum: value,
            min: value,
            max: value,
        }
    }
}

/// Steps that follow each other.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// The newest of them; 0 if there is none.
    last: u64,
    /// When that was, seconds since the job began.
    time: f64,
    values: [Values; SERIES.len()],
}

impl Bucket {
    const EMPTY: Self = Self {
        last: 0,
        time: 0.0,
        values: [Values::NONE; SERIES.len()],
    };

    fn add(&mut self, other: &Self) {
        if other.last > self.last {
            (self.last, self.time) = (other.last, other.time);
        }
        for (values, others) in self.values.iter_mut().zip(&other.values) {
            values.add(others);
        }
    }
}

/// The curves of a run.
#[derive(Debug)]
pub(super) struct Curves {
    /// Steps of a bucket: bucket i has the steps i·width + 1 to (i + 1)·width.
    width: u64,
    buckets: Vec<Bucket>,
    /// How often they were begun anew.
    life: u64,
    newest: Option<Record>,
}

/// What a browser has of the curves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    life: u64,
    width: u64,
    buckets: usize,
    /// The newest step of the last bucket.
    last: u64,
}

/// Curves from a bucket on, for a browser: a column for each figure.
#[derive(Debug, Serialize)]
pub(super) struct Columns {
    /// Steps of a bucket.
    width: u64,
    /// The first bucket that is here: those before it stay as they were told.
    from: usize,
    /// The newest step of each bucket; null if it has none.
    step: Vec<Option<u64>>,
    /// And its time, seconds since the job began.
    time: Vec<f32>,
    series: BTreeMap<&'static str, Column>,
}

/// One figure: null where no value is finite.
#[derive(Debug, Default, Serialize)]
struct Column {
    mean: Vec<Option<f32>>,
    /// Left out where buckets have one step each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    min: Vec<Option<f32>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    max: Vec<Option<f32>>,
}

impl Curves {
    pub(super) fn new() -> Self {
        Self {
            width: 1,
            buckets: Vec::new(),
            life: 1,
            newest: None,
        }
    }

    /// Forgets everything: the records begin anew.
    pub(super) fn clear(&mut self) {
        let life = self.life + 1;
        *self = Self {
            life,
            ..Self::new()
        };
    }

    /// The newest record.
    pub(super) fn newest(&self) -> Option<&Record> {
        self.newest.as_ref()
    }

    /// Takes in a step.
    pub(super) fn add(&mut self, record: &Record) {
        let place = record.step.0.saturating_sub(1);
        while place / self.width >= POINTS as u64 {
            self.halve();
        }
        // It is less than POINTS.
        let index = (place / self.width) as usize;
        if index >= self.buckets.len() {
            self.buckets.resize(index + 1, Bucket::EMPTY);
        }
        self.buckets[index].add(&Bucket {
            last: record.step.0,
            time: record.time,
            values: SERIES.map(|(_, value)| Values::of(value(record))),
        });
        self.newest = Some(*record);
    }

    fn halve(&mut self) {
        let pairs = self.buckets.chunks(2).map(|pair| {
            let mut sum = pair[0];
            pair.iter().skip(1).for_each(|other| sum.add(other));
            sum
        });
        self.buckets = pairs.collect();
        self.width *= 2;
    }

    /// What a browser lacks that has got as far as `cursor`, and how far it is then; none if it lacks
    /// nothing.
    pub(super) fn since(&self, cursor: Cursor) -> Option<(Columns, Cursor)> {
        let now = Cursor {
            life: self.life,
            width: self.width,
            buckets: self.buckets.len(),
            last: self.buckets.last().map_or(0, |bucket| bucket.last),
        };
        if now == cursor {
            return None;
        }
        let goes_on = (now.life, now.width) == (cursor.life, cursor.width);
        // The last bucket may have grown.
        let from = if goes_on {
            cursor.buckets.saturating_sub(1)
        } else {
            0
        };
        Some((self.columns(from), now))
    }

    fn columns(&self, from: usize) -> Columns {
        let buckets = &self.buckets[from.min(self.buckets.len())..];
        let column = |index: usize| {
            let values = buckets.iter().map(|bucket| bucket.values[index]);
            let of = |value: fn(&Values) -> f64| {
                let values = values.clone();
                let shown = values.map(move |v| (v.count > 0).then(|| value(&v) as f32));
                shown.collect::<Vec<_>>()
            };
            let spread = self.width > 1;
            Column {
                mean: of(|values| values.sum / f64::from(values.count)),
                min: if spread { of(|v| v.min) } else { Vec::new() },
                max: if spread { of(|v| v.max) } else { Vec::new() },
            }
        };
        let series = SERIES.iter().enumerate();
        Columns {
            width: self.width,
            from,
            step: buckets
                .iter()
                .map(|bucket| (bucket.last > 0).then_some(bucket.last))
                .collect(),
            time: buckets.iter().map(|bucket| bucket.time as f32).collect(),
            series: series
                .map(|(index, (name, _))| (*name, column(index)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Step;
    use crate::telemetry::records::tests::record;

    fn with_loss(step: u64, loss_d: f64) -> Record {
        Record {
            loss_d,
            ..record(step)
        }
    }

    fn curves_of(records: impl IntoIterator<Item = Record>) -> Curves {
        let mut curves = Curves::new();
        for record in records {
            curves.add(&record);
        }
        curves
    }

    fn all(curves: &Curves) -> serde_json::Value {
        let (columns, _) = curves.since(Cursor::default()).unwrap();
        serde_json::to_value(columns).unwrap()
    }

    #[test]
    fn a_short_run_is_shown_step_by_step() {
        let curves = curves_of([with_loss(1, 3.0), with_loss(2, f64::NAN), with_loss(4, 1.5)]);
        let all = all(&curves);
        assert_eq!(all["width"], 1);
        assert_eq!(all["step"], serde_json::json!([1, 2, null, 4]));
        let loss = &all["series"]["loss_d"];
        assert_eq!(loss["mean"], serde_json::json!([3.0, null, null, 1.5]));
        assert!(loss.get("min").is_none());
        assert_eq!(curves.newest().unwrap().step, Step(4));
    }

    /// Whatever the length: no more than POINTS, each the mean and the bounds of its own steps.
    #[test]
    fn a_long_run_is_shown_in_bounded_room_and_loses_no_extreme() {
        let len = 10_007u64;
        let loss = |step: u64| {
            if step == 6_543 {
                1e6
            } else {
                (step % 10) as f64
            }
        };
        let curves = curves_of((1..=len).map(|step| with_loss(step, loss(step))));
        let all = all(&curves);
        let width = all["width"].as_u64().unwrap();
        assert_eq!(width, 16, "10007 steps in at most {POINTS} buckets");
        let steps = all["step"].as_array().unwrap();
        assert!(steps.len() <= POINTS && steps.len() > POINTS / 2);
        assert_eq!(steps.last().unwrap().as_u64(), Some(len));
        let column = &all["series"]["loss_d"];
        for (index, step) in steps.iter().enumerate() {
            let first = index as u64 * width + 1;
            let last = step.as_u64().unwrap();
            let mine: Vec<f64> = (first..=last).map(loss).collect();
            let mean = mine.iter().sum::<f64>() / mine.len() as f64;
            let shown = |name: &str| column[name][index].as_f64().unwrap();
            assert!(
                (shown("mean") - mean).abs() < 1e-2 * mean.max(1.0),
                "{index}"
            );
            assert_eq!(shown("max"), mine.iter().copied().fold(0.0, f64::max));
            assert_eq!(shown("min"), mine.iter().copied().fold(1e9, f64::min));
        }
    }

    /// What a browser is told piece by piece is what it would be told at once.
    #[test]
    fn a_browser_that_follows_has_what_one_that_comes_late_gets() {
        let mut curves = Curves::new();
        let (mut cursor, mut followed, mut widths) = (Cursor::default(), Vec::new(), Vec::new());
        for step in 1..=4_321u64 {
            curves.add(&with_loss(step, step as f64));
            if step % 37 != 0 && step != 4_321 {
                continue;
            }
            let (columns, now) = curves.since(cursor).unwrap();
            assert!(columns.from == 0 || columns.from + 1 == cursor.buckets);
            followed.truncate(columns.from);
            followed.extend(columns.series["loss_d"].mean.iter().copied());
            widths.push(columns.width);
            cursor = now;
            assert!(curves.since(cursor).is_none(), "nothing is new");
        }
        widths.dedup();
        assert_eq!(widths, [1, 2, 4, 8]);
        let (columns, _) = curves.since(Cursor::default()).unwrap();
        assert_eq!(followed, columns.series["loss_d"].mean);
    }

    #[test]
    fn records_that_begin_anew_are_told_from_their_beginning() {
        let mut curves = curves_of((1..=5).map(record));
        let (_, cursor) = curves.since(Cursor::default()).unwrap();
        curves.clear();
        (1..=5).for_each(|step| curves.add(&record(step)));
        let (columns, _) = curves.since(cursor).unwrap();
        assert_eq!((columns.from, columns.step.len()), (0, 5));
    }

    #[test]
    fn a_step_of_any_size_takes_no_room() {
        let curves = curves_of([record(1), record(u64::MAX)]);
        assert!(curves.buckets.len() <= POINTS);
        assert_eq!(curves.buckets.last().unwrap().last, u64::MAX);
    }
}
