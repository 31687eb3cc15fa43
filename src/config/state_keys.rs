//! What the state of a job depends on: its identity, as far as bits go.

use super::Job;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A key of the job file, `section.key`, and its value as JSON.
pub type StateKeys = BTreeMap<String, serde_json::Value>;

/// A key that the state depends on, and that has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyDifference {
    /// `section.key`
    pub key: String,
    /// Its value when the state was made, if it was there.
    pub then: Option<serde_json::Value>,
    /// Its value now, if it is there.
    pub now: Option<serde_json::Value>,
}

impl fmt::Display for KeyDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<serde_json::Value>| match value {
            Some(value) => value.to_string(),
            None => "absent".to_owned(),
        };
        let (now, then) = (text(&self.now), text(&self.then));
        write!(f, "{} is {now}, was {then}", self.key)
    }
}

/// The keys that forbid going on from a state, in order; none if it may be gone on from.
///
/// The data is not compared here: its identity is its digest.
pub fn differences(then: &StateKeys, now: &StateKeys) -> Vec<KeyDifference> {
    let keys: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    keys.into_iter()
        .filter(|key| then.get(*key) != now.get(*key))
        .map(|key| KeyDifference {
            key: key.clone(),
            then: then.get(key).cloned(),
            now: now.get(key).cloned(),
        })
        .collect()
}

impl Job {
    /// The keys that the state depends on, with their values. A job may be resumed with other
    /// values of all keys but these. What the data holds is known by its digest, not by its path.
    pub fn state_keys(&self) -> StateKeys {
        let mut keys = StateKeys::new();
        if let Ok(serde_json::Value::Object(sections)) = serde_json::to_value(self) {
            flatten("", sections, &mut keys);
        }
        for adam in ["generator", "discriminator"] {
            keys.retain(|key, _| !key.starts_with(&format!("optimizer.{adam}.")));
        }
        if self.guard == super::Guard::default() {
            // States from before there was a guard can be gone on from.
            keys.retain(|key, _| !key.starts_with("guard."));
        }
        keys.retain(|key, _| !FREE_KEYS.contains(&key.as_str()) && !is_free_section(key));
        // Said or not, the same penalty is the same job.
        const PENALTY: &str = "regularise.gradient_penalty";
        match self.gradient_penalty() {
            0.0 => keys.remove(PENALTY),
            lambda => keys.insert(PENALTY.to_owned(), lambda.into()),
        };
        for (network, adam) in [
            ("generator", self.optimizer.generator()),
            ("discriminator", self.optimizer.discriminator()),
        ] {
            for (name, value) in [
                ("learning_rate", adam.learning_rate),
                ("beta1", adam.beta1),
                ("beta2", adam.beta2),
                ("epsilon", adam.epsilon),
            ] {
                keys.retain(|key, _| *key != format!("optimizer.{name}"));
                keys.insert(format!("optimizer.{network}.{name}"), value.into());
            }
        }
        keys
    }
}

/// Keys that the state after a given step doesn't depend on.
const FREE_KEYS: &[&str] = &[
    "job.name",
    "data.uri",
    "data.shard_folder",
    "data.cache",
    "train.steps",
    "train.epochs",
    "workers.min",
    "workers.max",
    "workers.cuda_graphs",
    "workers.shared_memory",
];

fn is_free_section(key: &str) -> bool {
    [
        "checkpoint.",
        "sample.",
        "evaluate.",
        "telemetry.",
        "deadlines.",
    ]
    .iter()
    .any(|section| key.starts_with(section))
}

fn flatten(prefix: &str, table: serde_json::Map<String, serde_json::Value>, out: &mut StateKeys) {
    for (name, value) in table {
        let key = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            serde_json::Value::Object(inner) => flatten(&key, inner, out),
            value => {
                out.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Job;
    use super::super::load::least;
    use super::differences;

    fn read(sets: &[&str]) -> Job {
        least(sets).unwrap()
    }

    #[test]
    fn the_state_depends_on_what_it_should() {
        let base = read(&[]).state_keys();
        for free in [
            "train.steps=9",
            "workers.max=3",
            "checkpoint.every_steps=7",
            "evaluate.samples=7",
            "telemetry.tensorboard=false",
            "evaluate.cores=2",
            "evaluate.extractor=inception.pt",
            "deadlines.form=1s",
            "job.name=other",
            "data.uri=elsewhere",
            "data.shard_folder=elsewhere",
            "data.cache=device",
            "workers.cuda_graphs=false",
            "workers.shared_memory=false",
        ] {
            assert_eq!(read(&[free]).state_keys(), base, "{free}");
        }
        for bound in [
            "job.seed=1",
            "data.fit=pad",
            "data.shard_samples=7",
            "model.latent=7",
            "model.kernel=5",
            "model.spectral_norm=true",
            "model.discriminator_norm=none",
            "model.batch_norm=together",
            "model.latent_distribution=uniform",
            "model.binary_latents=2",
            "model.latent_input=split",
            "model.hidden_noise=additive",
            "model.hidden_noise_strength=0.3",
            "data.stacked.seed=1",
            "data.synthetic.samples=7",
            "train.objective=minimax",
            "train.update=simultaneous",
            "train.replicas=4",
            "train.batch=4",
            "train.ema_decay=0.5",
            "train.precision=bf16",
            "train.memory_format=contiguous",
            "train.deterministic=false",
            "train.reduction=fast",
            "optimizer.learning_rate=0.1",
            "optimizer.generator.beta1=0.1",
            "workers.threads=2",
            "guard.nonfinite=off",
            "guard.nonfinite_steps=3",
            "guard.collapsed=warn",
            "guard.overpowered_loss=0.1",
            "guard.rate_factor=0.25",
        ] {
            assert_ne!(read(&[bound]).state_keys(), base, "{bound}");
        }
        // Said for all or said for each, the same settings are the same job.
        assert_eq!(
            read(&["optimizer.beta1=0.2"]).state_keys(),
            read(&[
                "optimizer.generator.beta1=0.2",
                "optimizer.discriminator.beta1=0.2"
            ])
            .state_keys()
        );
    }

    /// A checkpoint of before these keys existed is the same job's.
    #[test]
    fn keys_of_later_versions_are_absent_unless_they_are_changed() {
        let keys = read(&[]).state_keys();
        let names: Vec<&str> = keys.keys().map(String::as_str).collect();
        let of = |section: &str| -> Vec<&str> {
            let names = names.iter().filter(|name| name.starts_with(section));
            names.copied().collect()
        };
        assert_eq!(of("data."), ["data.fit", "data.shard_samples"]);
        assert_eq!(
            of("model."),
            [
                "model.channels",
                "model.discriminator_width",
                "model.generator_width",
                "model.image_size",
                "model.latent",
            ]
        );
    }

    #[test]
    fn a_state_from_before_there_was_a_guard_can_be_gone_on_from() {
        let keys = read(&[]).state_keys();
        assert!(keys.keys().all(|key| !key.starts_with("guard.")));
        let keys = read(&["guard.collapsed=warn"]).state_keys();
        assert_eq!(keys["guard.collapsed"], "warn");
        assert_eq!(keys["guard.nonfinite"], "stop");
    }

    #[test]
    fn a_difference_names_the_key_and_both_values() {
        let (then, now) = (
            read(&[]).state_keys(),
            read(&["train.batch=32"]).state_keys(),
        );
        let [difference] = &differences(&then, &now)[..] else {
            panic!("one key has changed");
        };
        assert_eq!(difference.to_string(), "train.batch is 32, was 16");
        let mut older = then.clone();
        older.remove("train.batch");
        let difference = differences(&older, &then).remove(0);
        assert_eq!(difference.to_string(), "train.batch is 16, was absent");
        assert!(differences(&then, &then).is_empty());
    }
}
