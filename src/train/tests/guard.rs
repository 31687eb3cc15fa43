//! What the guard does to the state is the same on any number of workers, on both ways through a
//! step, and wherever a run is taken up again.

use super::ahead::queued;
use super::*;
use crate::checkpoint::digest;
use crate::config::Policy;
use crate::guard::Trouble;

/// A rank that puts a NaN in D's vector of one replica in some steps.
struct Poisoned<C> {
    rank: C,
    /// The first replica that is hosted here.
    first: u32,
    poison: Poison,
    /// Reductions that are done: two a step.
    done: u64,
}

#[derive(Clone, Debug)]
struct Poison {
    steps: Range<u64>,
    replica: u32,
}

impl<C: Collective> Collective for Poisoned<C> {
    fn rank(&self) -> Rank {
        self.rank.rank()
    }
    fn world_size(&self) -> u32 {
        self.rank.world_size()
    }
    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let place = self.poison.replica.checked_sub(self.first);
        let due = self.done.is_multiple_of(2) && self.poison.steps.contains(&(self.done / 2));
        if let Some(vector) = place.and_then(|place| hosted.get_mut(place as usize))
            && due
        {
            vector[7] = f32::NAN;
        }
        self.done += 1;
        self.rank.reduce_mean(hosted, mean)
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.rank.barrier()
    }
    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        self.rank.gather(word)
    }
    fn copy(&mut self, holders: &[Rank], vector: &mut [f32]) -> Result<(), CollectiveError> {
        self.rank.copy(holders, vector)
    }
    fn sent_bytes(&self) -> u64 {
        self.rank.sent_bytes()
    }
}

/// A job, what is done to it, and its length.
struct Case {
    name: &'static str,
    job: Job,
    poison: Poison,
    steps: u64,
}

/// What became of each step, a letter each.
fn letters(reports: &[StepReport]) -> String {
    let letter = |report: &StepReport| match report.verdict {
        Verdict::Keep => '.',
        Verdict::Warn(_) => 'w',
        Verdict::Skip(_) => 's',
        Verdict::RollBack { .. } => 'r',
        Verdict::Stop { .. } => '!',
    };
    reports.iter().map(letter).collect()
}

/// Goes on to the end of the job, or to its halt.
fn go_on(
    trainer: &mut Trainer,
    collective: &mut dyn Collective,
    steps: u64,
    mut seen: impl FnMut(&Trainer),
) -> Vec<StepReport> {
    let mut reports = Vec::new();
    while trainer.tentative().0 < steps && trainer.halt().is_none() {
        let step = trainer.tentative().0;
        let job = trainer.job.clone();
        let batches = trainer.replicas().map(|of| batch(&job, step, of)).collect();
        let report = trainer.advance(batches, collective, Flags::default());
        reports.extend(report.unwrap());
        seen(trainer);
    }
    reports.extend(trainer.settle(collective).unwrap());
    reports
}

/// Every worker's last state and reports: those of a run that takes up `from`, which rank 0 alone
/// has.
fn run(
    case: &Case,
    ranges: &[Range<u32>],
    on_device: bool,
    from: Option<&Snapshot>,
) -> Vec<(Snapshot, Vec<StepReport>)> {
    let group = InProcess::group(ranges, Duration::from_secs(60)).unwrap();
    std::thread::scope(|scope| {
        let workers: Vec<_> = group
            .into_iter()
            .zip(ranges)
            .map(|(rank, range)| {
                scope.spawn(move || {
                    let mut trainer = trainer(&case.job, range.clone(), 1);
                    let number = rank.rank();
                    let start = from.map_or(Step(0), |from| from.step);
                    let poisoned = Poisoned {
                        rank,
                        first: range.start,
                        poison: case.poison.clone(),
                        done: 2 * start.0,
                    };
                    let mut host = None;
                    let mut device = None;
                    let collective: &mut dyn Collective = match on_device {
                        true => device.insert(queued(poisoned)),
                        false => host.insert(poisoned),
                    };
                    if let Some(from) = from {
                        if number == Rank(0) {
                            trainer.restore(from).unwrap();
                        }
                        trainer.copy_state(start, &[Rank(0)], collective).unwrap();
                    }
                    let reports = go_on(&mut trainer, collective, case.steps, |_| {});
                    (trainer.snapshot().unwrap(), reports)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    })
}

/// The states of a lone worker's run on the way through host memory, from State(0) on, and its
/// reports.
fn straight(case: &Case) -> (Vec<Snapshot>, Vec<StepReport>) {
    let mut trainer = trainer(&case.job, 0..REPLICAS, 2);
    let mut states = vec![trainer.snapshot().unwrap()];
    let mut poisoned = Poisoned {
        rank: Alone::default(),
        first: 0,
        poison: case.poison.clone(),
        done: 0,
    };
    let reports = go_on(&mut trainer, &mut poisoned, case.steps, |trainer| {
        states.push(trainer.snapshot().unwrap());
    });
    (states, reports)
}

fn nonfinite(update: Update, policy: Policy, in_a_row: u64) -> Case {
    let mut job = job(update, 0.9);
    job.guard.nonfinite = policy;
    job.guard.nonfinite_steps = in_a_row;
    job.guard.anchor_every = 2;
    Case {
        name: "nonfinite",
        job,
        poison: Poison {
            steps: 5..8,
            replica: 2,
        },
        steps: 11,
    }
}

/// Fakes that never vary enough, or never did.
fn collapsed(update: Update, policy: Policy) -> Case {
    let mut job = job(update, 0.0);
    job.guard.collapsed = policy;
    job.guard.collapsed_steps = 3;
    job.guard.collapsed_diversity = 1e6;
    job.guard.anchor_every = 4;
    job.guard.rollbacks = 2;
    Case {
        name: "collapsed",
        job,
        poison: Poison {
            steps: 4..5,
            replica: 0,
        },
        steps: 14,
    }
}

fn overpowered(update: Update) -> Case {
    let mut job = job(update, 0.9);
    job.guard.overpowered = Policy::RollBack;
    job.guard.overpowered_steps = 4;
    job.guard.overpowered_gap = -1.0;
    job.guard.anchor_every = 4;
    job.guard.rate_factor = 0.25;
    Case {
        name: "overpowered",
        job,
        poison: Poison {
            steps: 0..0,
            replica: 0,
        },
        steps: 11,
    }
}

fn cases() -> Vec<(Case, &'static str)> {
    UPDATES
        .into_iter()
        .flat_map(|update| {
            [
                // The defaults, but for fewer steps: skipping alone.
                (nonfinite(update, Policy::Stop, 9), ".....sss..."),
                (nonfinite(update, Policy::RollBack, 2), ".....srs..."),
                (nonfinite(update, Policy::Stop, 2), ".....s!"),
                (collapsed(update, Policy::Warn), "..w.s.w..w..w."),
                (collapsed(update, Policy::RollBack), "..r.s.r..!"),
                (overpowered(update), "...r...r..."),
            ]
        })
        .collect()
}

#[test]
fn what_the_guard_does_is_the_same_on_any_number_of_workers_and_on_both_ways() {
    for (case, expected) in cases() {
        let (states, reports) = straight(&case);
        let what = format!("{} {:?}", case.name, case.job.train.update);
        assert_eq!(letters(&reports), expected, "{what}");
        let last = states.last().unwrap();
        assert_eq!(last.step, Step(expected.len() as u64), "t never goes back");
        for ranges in [
            vec![0..4; 1],
            vec![0..2, 2..4],
            vec![0..1, 1..2, 2..4],
            vec![0..1, 1..2, 2..3, 3..4],
        ] {
            for on_device in [false, true] {
                for (state, of) in run(&case, &ranges, on_device, None) {
                    let what = format!("{what} on {ranges:?}, {on_device}");
                    assert_eq!(letters(&of), expected, "{what}");
                    assert_eq!(digest(&state), digest(last), "{what}");
                    for (found, expected) in of.iter().zip(&reports) {
                        assert_eq!(found.verdict, expected.verdict, "{what}");
                        assert_eq!(found.nonfinite, expected.nonfinite, "{what}");
                    }
                }
            }
        }
    }
}

/// From a checkpoint of every step, on two workers, one of which joins there with nothing.
#[test]
fn a_run_that_is_taken_up_anywhere_ends_with_the_same_bits() {
    for (case, expected) in cases() {
        let (states, _) = straight(&case);
        for (step, from) in states.iter().enumerate().skip(1) {
            let on_device = step % 2 == 0;
            for (state, of) in run(&case, &[0..2, 2..4], on_device, Some(from)) {
                assert_eq!(letters(&of), expected[step..], "{} {step}", case.name);
                let last = states.last().unwrap();
                assert_eq!(digest(&state), digest(last), "{} {step}", case.name);
                assert!(state == *last);
            }
        }
    }
}

/// The files of a state, but for the counts of steps.
fn networks(state: &Snapshot, prefix: &str) -> Vec<(String, Vec<TensorData>)> {
    ["generator", "discriminator", "optimizer", "generator_ema"]
        .into_iter()
        .filter_map(|name| {
            let mut tensors = state.files.get(&format!("{prefix}{name}"))?.clone();
            tensors.retain(|tensor| tensor.name != "step");
            Some((name.to_owned(), tensors))
        })
        .collect()
}

#[test]
fn a_step_that_is_skipped_leaves_nothing_but_its_number() {
    for update in UPDATES {
        let case = nonfinite(update, Policy::Stop, 9);
        let (states, reports) = straight(&case);
        for step in 5..8 {
            assert!(networks(&states[step], "") == networks(&states[step + 1], ""));
            assert!(reports[step].nonfinite > 0);
        }
        assert!(networks(&states[8], "") != networks(&states[9], ""));
        // While it looks on, the guard is part of the state; afterwards nothing is left of it.
        assert!(states[6].files.contains_key("guard"));
        assert!(!states[9].files.contains_key("guard"));
        let finite = |state: &Snapshot| {
            let tensors = state.files.values().flatten();
            let floats = tensors.filter(|tensor| tensor.kind == crate::checkpoint::Kind::F32);
            floats
                .flat_map(super::floats)
                .all(|value| value.is_finite())
        };
        assert!(states.iter().all(finite));
    }
}

#[test]
fn a_rollback_sets_back_all_networks_and_lowers_the_rate() {
    for update in UPDATES {
        let case = nonfinite(update, Policy::RollBack, 2);
        let (states, reports) = straight(&case);
        let Verdict::RollBack { to, rate, .. } = reports[6].verdict else {
            panic!("{:?}", reports[6].verdict);
        };
        assert_eq!((to, rate), (Step(4), 0.5));
        assert!(networks(&states[7], "") == networks(&states[4], ""));
        assert!(networks(&states[7], "anchor_") == networks(&states[4], ""));
        assert!(networks(&states[6], "candidate_") == networks(&states[6], ""));
        // Half the rate: Adam's first step after it goes half as far.
        let mut trainer = trainer(&case.job, 0..REPLICAS, 2);
        assert_eq!(trainer.rate(), 1.0);
        trainer.restore(&states[7]).unwrap();
        assert_eq!(trainer.rate(), 0.5);
        trainer.set_pace(Step(8)).unwrap();
        for player in [Player::Generator, Player::Discriminator] {
            let full = case.job.optimizer.generator().learning_rate;
            let now = &trainer.pace.updates[player.number() as usize][0];
            assert_eq!(now.rate.double_value(&[]), full / 2.0);
        }
    }
}

#[test]
fn a_state_that_is_the_last_one_says_so_wherever_it_is_loaded() {
    let case = nonfinite(Update::Alternating, Policy::Stop, 2);
    let (states, _) = straight(&case);
    let mut trainer = trainer(&case.job, 0..REPLICAS, 2);
    assert_eq!(trainer.halt(), None);
    trainer.restore(states.last().unwrap()).unwrap();
    let verdict = trainer.halt().unwrap();
    assert_eq!(verdict.finding().unwrap().trouble, Trouble::Nonfinite);
    assert_eq!(verdict.sound(trainer.step()), trainer.step());
}

#[test]
fn a_sound_run_has_the_bits_of_a_run_without_a_guard() {
    for update in UPDATES {
        let mut job = job(update, 0.9);
        let guarded = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
        job.guard.nonfinite = Policy::Off;
        let without = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
        assert!(guarded == without, "{update:?}");
        assert_eq!(guarded.files.len(), 4, "no file is added");
        // To watch more is to have more in a checkpoint, but the networks are the same.
        job.guard.nonfinite = Policy::RollBack;
        job.guard.collapsed = Policy::Warn;
        job.guard.overpowered = Policy::Warn;
        let watched = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
        assert!(networks(&watched, "") == networks(&guarded, ""));
        assert_eq!(watched.files.len(), 3 * 4 + 1);
    }
}

#[test]
fn anchors_and_numbers_that_do_not_fit_are_refused_by_name() {
    let case = nonfinite(Update::Alternating, Policy::RollBack, 2);
    let (states, _) = straight(&case);
    let good = &states[6];
    let mut trainer = trainer(&case.job, 0..REPLICAS, 2);
    let mut refuse = |change: &dyn Fn(&mut Snapshot), words: &[&str]| {
        let mut bad = good.clone();
        change(&mut bad);
        let message = trainer.restore(&bad).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    refuse(
        &|s| drop(s.files.remove("anchor_optimizer")),
        &["anchor_optimizer", "missing"],
    );
    refuse(&|s| drop(s.files.remove("guard")), &["step is 4", "0"]);
    refuse(
        &|s| {
            let guard = s.files.get_mut("guard").unwrap();
            let halted = guard.iter_mut().find(|t| t.name == "halted").unwrap();
            halted.bytes[0] = 77;
        },
        &["guard", "halted"],
    );
    let mut plain = case.job.clone();
    plain.guard.nonfinite = Policy::Stop;
    let error = super::trainer(&plain, 0..REPLICAS, 2)
        .restore(good)
        .unwrap_err();
    assert!(
        error.to_string().contains("anchor_discriminator"),
        "{error}"
    );
}
