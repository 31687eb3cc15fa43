//! Every metric: its name, kind, unit, meaning, labels and exporter. Names stand nowhere else.

use std::fmt::Write;

/// The version that `gan_build_info` tells.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which program exports a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `gan-coord`
    Coordinator,
    /// `gan-worker`
    Worker,
}

/// A metric's Prometheus type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows; every series starts at 0 when the program does.
    Counter,
    /// Goes up and down. `from` is the value that it has until it is first set; without one, it
    /// isn't there until then.
    Gauge {
        /// The first value.
        from: Option<f64>,
    },
    /// Counts by upper bounds.
    Histogram {
        /// The bounds, ascending; +Inf is added.
        buckets: &'static [f64],
    },
}

impl Kind {
    /// Prometheus' word for it.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge { .. } => "gauge",
            Kind::Histogram { .. } => "histogram",
        }
    }
}

/// A label, and all values that it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: &'static [&'static str],
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its Prometheus type.
    pub kind: Kind,
    /// What one is: seconds, bytes, images, …; empty for a number without a unit.
    pub unit: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its label, if it has one.
    pub label: Option<Label>,
    /// Who exports it.
    pub roles: &'static [Role],
}

/// A label and its values as an enum, so that call sites can't misspell one.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident($label:literal) { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$value_doc])* $value,)+
        }

        impl $name {
            /// The label, with all values.
            pub const LABEL: Label = Label { name: $label, values: &[$($text),+] };
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// The value as it is exported.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }
    };
}

label! {
    /// A part of a training step, as the training thread sees it.
    StepPhase("phase") {
        /// Waiting for the batch.
        Data = "data",
        /// Computing, or handing work to the device: whatever is in no other phase.
        Compute = "compute",
        /// In the reductions, waiting for peers included.
        Reduce = "reduce",
        /// The whole step.
        Whole = "whole",
    }
}
label! {
    /// One of the two networks.
    Net("net") {
        /// G.
        Generator = "generator",
        /// D.
        Discriminator = "discriminator",
    }
}
label! {
    /// What a worker is doing.
    WorkerState("state") {
        /// Connected, getting its data ready.
        Joining = "joining",
        /// Ready, and not in the generation.
        Waiting = "waiting",
        /// In a generation that is being formed.
        Forming = "forming",
        /// Training.
        Training = "training",
        /// About to go, by its own wish.
        Leaving = "leaving",
    }
}
label! {
    /// Why a generation was formed.
    Cause("cause") {
        /// The job started, or went on from a checkpoint.
        Start = "start",
        /// A worker came.
        Join = "join",
        /// A worker went, by its own wish.
        Leave = "leave",
        /// A worker died.
        Death = "death",
        /// A reduction failed, and nobody is known to be dead.
        CollectiveFailure = "collective_failure",
        /// The coordinator came back.
        CoordinatorRestart = "coordinator_restart",
        /// Replicas were dealt anew, for a worker was slow.
        Rebalance = "rebalance",
        /// The job ended, and the newest state had to be saved.
        Close = "close",
    }
}
label! {
    /// A part of a change of membership.
    RecoveryPhase("phase") {
        /// From the last sign of life to the death notice; 0 if nobody died.
        Detect = "detect",
        /// Until every survivor has left its step.
        Abort = "abort",
        /// Until the workers of the new generation are connected.
        Form = "form",
        /// Until all of them hold the newest state.
        Heal = "heal",
        /// Until the first step is done.
        FirstStep = "first_step",
        /// All of it.
        Whole = "whole",
    }
}
label! {
    /// What the guard has made of a step that was not like any other.
    GuardVerdict("verdict") {
        /// It was told, and kept.
        Warn = "warn",
        /// Nothing of it became the state.
        Skip = "skip",
        /// The networks were set back.
        RollBack = "roll_back",
        /// It was the job's last.
        Stop = "stop",
    }
}
label! {
    /// What has become of a span of the current epoch.
    SpanState("state") {
        /// Dealt to a worker.
        Assigned = "assigned",
        /// In the state of a committed step.
        Done = "done",
    }
}
label! {
    /// What is done with a checkpoint.
    CheckpointOp("op") {
        /// Writing it, until it is on the disk.
        Write = "write",
        /// Reading and verifying it.
        Read = "read",
    }
}

/// The label of a score: as [`crate::config::Score`] spells them.
pub const SCORE: Label = Label {
    name: "score",
    values: &[
        "fid",
        "kid",
        "kid-deviation",
        "precision",
        "recall",
        "density",
        "coverage",
        "modes",
        "kl-uniform",
        "kl-data",
        "high-quality",
    ],
};

/// Parts of a millisecond, for a reduction between GPUs of one machine, to the default deadline
/// of a reduction.
const STEP_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0,
];
/// A death notice on one machine comes in milliseconds; the heartbeat's default is 10 s.
const RECOVERY_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0,
];
/// From a small state on a local disk to the default deadline of a checkpoint.
const CHECKPOINT_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// From some points in a plane to an extractor that is trained first, at the lowest priority.
const EVALUATION_SECONDS: &[f64] = &[
    0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];

const COORDINATOR: &[Role] = &[Role::Coordinator];
const WORKER: &[Role] = &[Role::Worker];
const NOT_YET: Kind = Kind::Gauge { from: None };
const FROM_ZERO: Kind = Kind::Gauge { from: Some(0.0) };

macro_rules! metrics {
    ($($id:ident = $name:literal, $kind:expr, $unit:literal, $label:expr, $roles:expr, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: $name,
                kind: $kind,
                unit: $unit,
                help: $help,
                label: $label,
                roles: $roles,
            };
        )+

        /// Every metric.
        pub const ALL: &[Metric] = &[$($id),+];
    };
}

metrics! {
    WORKER_IMAGES = "gan_worker_images_total", Kind::Counter, "images", None, WORKER,
        "Real images that this worker trained on.";
    WORKER_STEP_DURATION = "gan_worker_step_duration_seconds",
        Kind::Histogram { buckets: STEP_SECONDS }, "seconds", Some(StepPhase::LABEL), WORKER,
        "Duration of a training step, by phase; `whole` is all of it.";
    WORKER_ALLREDUCE_DURATION = "gan_worker_allreduce_duration_seconds",
        Kind::Histogram { buckets: STEP_SECONDS }, "seconds", None, WORKER,
        "Time that a step spent in its reductions, waiting for peers included.";
    WORKER_ALLREDUCE_BYTES = "gan_worker_allreduce_bytes_total", Kind::Counter, "bytes", None, WORKER,
        "Bytes that this worker sent to its peers in reductions.";
    TRAIN_LOSS = "gan_train_loss", NOT_YET, "", Some(Net::LABEL), WORKER,
        "Cost of each network in the newest step, over all replicas.";
    TRAIN_D_REAL_MEAN = "gan_train_d_real_mean", NOT_YET, "", None, WORKER,
        "Mean of D(x) over the real images of the newest step.";
    TRAIN_D_FAKE_MEAN = "gan_train_d_fake_mean", NOT_YET, "", None, WORKER,
        "Mean of D(G(z)) over the fakes of the newest step.";
    TRAIN_GRAD_NORM = "gan_train_grad_norm", NOT_YET, "", Some(Net::LABEL), WORKER,
        "Euclidean norm of each network's gradient in the newest step.";
    TRAIN_NONFINITE = "gan_train_nonfinite_total", Kind::Counter, "elements", None, WORKER,
        "Elements of gradients and batch statistics that were NaN or infinite.";
    TRAIN_GUARD_VERDICTS = "gan_train_guard_verdicts_total", Kind::Counter, "steps",
        Some(GuardVerdict::LABEL), WORKER,
        "Steps that the guard had something to say of, by what became of them.";
    TRAIN_RATE_FACTOR = "gan_train_rate_factor", NOT_YET, "", None, WORKER,
        "What both learning rates are multiplied with: by the guard at each rollback, and by optimizer.schedule.";
    TRAIN_DIVERSITY = "gan_train_diversity", NOT_YET, "", None, WORKER,
        "Standard deviation of the newest step's fakes in units of the real images', if it is watched.";
    TRAIN_EPOCH = "gan_train_epoch", NOT_YET, "", None, WORKER,
        "Epoch of the newest step.";
    TRAIN_STEP = "gan_train_step", NOT_YET, "steps", None, WORKER,
        "The newest step that this worker holds the state of.";
    COORD_WORKERS = "gan_coord_workers", FROM_ZERO, "workers", Some(WorkerState::LABEL), COORDINATOR,
        "Workers, by what they are doing.";
    COORD_WORKERS_WANTED = "gan_coord_workers_wanted", FROM_ZERO, "workers", None, COORDINATOR,
        "Workers that should take part: as many as have, less those that left in good order.";
    COORD_GENERATION = "gan_coord_generation", FROM_ZERO, "", None, COORDINATOR,
        "The current generation; it only grows.";
    COORD_RECONFIGURATIONS = "gan_coord_reconfigurations_total", Kind::Counter, "generations",
        Some(Cause::LABEL), COORDINATOR,
        "Generations formed, by cause.";
    COORD_RECOVERY_DURATION = "gan_coord_recovery_duration_seconds",
        Kind::Histogram { buckets: RECOVERY_SECONDS }, "seconds", Some(RecoveryPhase::LABEL), COORDINATOR,
        "Duration of a change of membership, by phase; `whole` is all of it, to the first step's end.";
    COORD_SPANS = "gan_coord_spans", FROM_ZERO, "spans", Some(SpanState::LABEL), COORDINATOR,
        "Spans of the current epoch, by what has become of them.";
    COORD_WORKER_LAG = "gan_coord_worker_lag_steps", FROM_ZERO, "steps", None, COORDINATOR,
        "Steps between the most and the least advanced worker of the generation.";
    CHECKPOINT_DURATION = "gan_checkpoint_duration_seconds",
        Kind::Histogram { buckets: CHECKPOINT_SECONDS }, "seconds", Some(CheckpointOp::LABEL), WORKER,
        "Duration of writing a checkpoint, or of reading and verifying one.";
    CHECKPOINT_LAST_SUCCESS = "gan_checkpoint_last_success_timestamp_seconds", NOT_YET, "seconds", None,
        WORKER,
        "When this worker last wrote a checkpoint, seconds since 1970 (UTC).";
    CHECKPOINT_BYTES = "gan_checkpoint_bytes", NOT_YET, "bytes", None, WORKER,
        "Size of the last checkpoint that this worker wrote.";
    CHECKPOINT_FAILURES = "gan_checkpoint_failures_total", Kind::Counter, "checkpoints", None, WORKER,
        "Checkpoints that could not be written.";
    EVALUATE_SCORE = "gan_evaluate_score", NOT_YET, "", Some(SCORE), WORKER,
        "Scores of the newest evaluation that this worker made.";
    EVALUATE_STEP = "gan_evaluate_step", NOT_YET, "", None, WORKER,
        "Step of the checkpoint that this worker evaluated last.";
    EVALUATE_BEST_STEP = "gan_evaluate_best_step", NOT_YET, "", None, WORKER,
        "Step of the best checkpoint by `checkpoint.keep_best`.";
    EVALUATE_DURATION = "gan_evaluate_duration_seconds",
        Kind::Histogram { buckets: EVALUATION_SECONDS }, "seconds", None, WORKER,
        "Duration of an evaluation; the first one trains the feature extractor, if nobody has.";
    EVALUATE_LEFT_OUT = "gan_evaluate_left_out_total", Kind::Counter, "evaluations", None, WORKER,
        "Evaluations that were due while the one before was still under way.";
    EVALUATE_FAILURES = "gan_evaluate_failures_total", Kind::Counter, "evaluations", None, WORKER,
        "Evaluations that failed.";
    BUILD_INFO = "gan_build_info", Kind::Gauge { from: Some(1.0) }, "",
        Some(Label { name: "version", values: &[VERSION] }), &[Role::Coordinator, Role::Worker],
        "Always 1; the label tells the version.";
}

/// The metrics that `role` exports.
pub fn of(role: Role) -> impl Iterator<Item = &'static Metric> {
    ALL.iter()
        .filter(move |metric| metric.roles.contains(&role))
}

/// All metrics as a Markdown table, for the documentation.
pub fn markdown() -> String {
    let mut table = String::from(
        "| metric | type | unit | labels | exported by | meaning |\n|---|---|---|---|---|---|\n",
    );
    for metric in ALL {
        let label = match metric.label {
            Some(label) if label.name == "version" => "`version`".to_owned(),
            Some(label) => format!("`{}`: {}", label.name, label.values.join(", ")),
            None => String::new(),
        };
        let role = match metric.roles {
            [Role::Coordinator] => "gan-coord",
            [Role::Worker] => "gan-worker",
            _ => "both",
        };
        // Writing to a string can't fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {label} | {role} | {} |",
            metric.name,
            metric.kind.label(),
            metric.unit,
            metric.help
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_tells_of_every_metric() {
        let readme = include_str!("../../README.md");
        let table = readme.split("<!-- metrics -->\n").nth(1).unwrap();
        let table = table.split("<!-- /metrics -->").next().unwrap();
        assert!(
            table == markdown(),
            "README.md should have:\n{}",
            markdown()
        );
    }

    #[test]
    fn every_score_has_its_label() {
        let scores = crate::config::Score::ALL.map(|score| score.as_str());
        assert_eq!(SCORE.values, scores);
    }

    /// Dashboards and alerts hang on these names.
    #[test]
    fn the_names_are_fixed() {
        let names: Vec<String> = ALL
            .iter()
            .map(|metric| match metric.label {
                Some(label) => format!("{}{{{}}}", metric.name, label.name),
                None => metric.name.to_owned(),
            })
            .collect();
        assert_eq!(
            names,
            [
                "gan_worker_images_total",
                "gan_worker_step_duration_seconds{phase}",
                "gan_worker_allreduce_duration_seconds",
                "gan_worker_allreduce_bytes_total",
                "gan_train_loss{net}",
                "gan_train_d_real_mean",
                "gan_train_d_fake_mean",
                "gan_train_grad_norm{net}",
                "gan_train_nonfinite_total",
                "gan_train_guard_verdicts_total{verdict}",
                "gan_train_rate_factor",
                "gan_train_diversity",
                "gan_train_epoch",
                "gan_train_step",
                "gan_coord_workers{state}",
                "gan_coord_workers_wanted",
                "gan_coord_generation",
                "gan_coord_reconfigurations_total{cause}",
                "gan_coord_recovery_duration_seconds{phase}",
                "gan_coord_spans{state}",
                "gan_coord_worker_lag_steps",
                "gan_checkpoint_duration_seconds{op}",
                "gan_checkpoint_last_success_timestamp_seconds",
                "gan_checkpoint_bytes",
                "gan_checkpoint_failures_total",
                "gan_evaluate_score{score}",
                "gan_evaluate_step",
                "gan_evaluate_best_step",
                "gan_evaluate_duration_seconds",
                "gan_evaluate_left_out_total",
                "gan_evaluate_failures_total",
                "gan_build_info{version}",
            ]
        );
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        for metric in ALL {
            let counter = metric.kind == Kind::Counter;
            assert_eq!(metric.name.ends_with("_total"), counter, "{}", metric.name);
            if let Kind::Histogram { buckets } = metric.kind {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
                assert!(buckets.is_sorted_by(|a, b| a < b), "{}", metric.name);
            }
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            for unit in ["seconds", "bytes"] {
                let named = metric.name.contains(&format!("_{unit}"));
                assert_eq!(named, metric.unit == unit, "{}", metric.name);
            }
        }
    }

    #[test]
    fn each_program_exports_its_own() {
        for (role, prefixes) in [
            (Role::Coordinator, &["gan_coord_", "gan_build_info"][..]),
            (
                Role::Worker,
                &[
                    "gan_worker_",
                    "gan_train_",
                    "gan_checkpoint_",
                    "gan_evaluate_",
                    "gan_build_info",
                ],
            ),
        ] {
            for metric in of(role) {
                let fits = prefixes
                    .iter()
                    .any(|prefix| metric.name.starts_with(prefix));
                assert!(fits, "{} from {role:?}", metric.name);
            }
        }
        assert_eq!(
            of(Role::Coordinator).count() + of(Role::Worker).count(),
            ALL.len() + 1
        );
        assert_eq!(markdown().lines().count(), ALL.len() + 2);
    }
}
