//! What the guard has said of a step, as the ledger has it.

use crate::config::Guard as Settings;
use crate::guard::{self, Finding, Trouble, Verdict};
use crate::ids::Step;
use crate::membership::EventKind;
use crate::proto;
use proto::GuardVerdict;

/// The event of a step that was not like any other.
pub(super) fn event(
    record: &proto::StepRecord,
    settings: &Settings,
) -> Option<(EventKind, String)> {
    let verdict = verdict(record.guard.as_ref()?, settings)?;
    let kind = match verdict {
        Verdict::Keep => return None,
        Verdict::Warn(_) => EventKind::Warned,
        Verdict::Skip(_) => EventKind::Skipped,
        Verdict::RollBack { .. } => EventKind::RolledBack,
        Verdict::Stop { .. } => EventKind::Halted,
    };
    let mut detail = format!("step {}: {verdict}", record.step);
    if record.nonfinite > 0 {
        detail.push_str(&format!("; {} values", record.nonfinite));
    }
    Some((kind, detail))
}

fn verdict(said: &proto::GuardRecord, settings: &Settings) -> Option<Verdict> {
    let trouble = Trouble::numbered(u64::from(said.trouble))?;
    let finding = Finding::new(trouble, said.figure, settings);
    Some(match said.verdict() {
        GuardVerdict::Unspecified => return None,
        GuardVerdict::Warn => Verdict::Warn(finding),
        GuardVerdict::Skip => Verdict::Skip(finding),
        GuardVerdict::RollBack => Verdict::RollBack {
            finding,
            to: Step(said.to),
            number: said.rollbacks,
            allowed: settings.rollbacks,
            rate: guard::rate(settings, said.rollbacks),
        },
        GuardVerdict::Stop => Verdict::Stop {
            finding,
            rollbacks: said.rollbacks,
            in_vain: said.in_vain,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_a_worker_has_said_in_numbers() {
        let settings = Settings::default();
        let record = proto::StepRecord {
            step: 812,
            nonfinite: 5,
            guard: Some(proto::GuardRecord {
                verdict: GuardVerdict::RollBack.into(),
                trouble: 1,
                figure: 20.0,
                to: 500,
                rollbacks: 2,
                in_vain: false,
            }),
            ..proto::StepRecord::default()
        };
        let (kind, detail) = event(&record, &settings).unwrap();
        assert_eq!(kind, EventKind::RolledBack);
        assert_eq!(
            detail,
            "step 812: rolled back to the networks of State(500), learning rates times 0.25 \
             (rollback 2 of 3, guard.rollbacks): gradients or batch statistics are not finite, \
             20 steps in a row (guard.nonfinite_steps = 20); 5 values"
        );
        let quiet = proto::StepRecord::default();
        assert_eq!(event(&quiet, &settings), None);
    }
}
