use super::*;

const SOUND: Figures = Figures {
    nonfinite: 0,
    loss_d: 1.0,
    gap: 0.3,
    diversity: Some(0.9),
};
const BROKEN: Figures = Figures {
    nonfinite: 7,
    loss_d: f64::NAN,
    gap: f64::NAN,
    diversity: Some(f64::NAN),
};

fn settings() -> Settings {
    Settings {
        nonfinite_steps: 3,
        overpowered_steps: 4,
        collapsed_steps: 4,
        anchor_every: 5,
        ..Settings::default()
    }
}

/// The verdicts of these steps, from the first one on, and the guard in the end.
fn run(settings: &Settings, figures: &[Figures]) -> (Vec<Verdict>, Guard) {
    let mut guard = Guard::default();
    let mut verdicts = Vec::new();
    for (figures, step) in figures.iter().zip(1..) {
        let decision = guard.judge(settings, Step(step), figures);
        guard = decision.guard;
        verdicts.push(decision.verdict);
    }
    (verdicts, guard)
}

fn short(verdicts: &[Verdict]) -> String {
    let letter = |verdict: &Verdict| match verdict {
        Verdict::Keep => '.',
        Verdict::Warn(_) => 'w',
        Verdict::Skip(_) => 's',
        Verdict::RollBack { .. } => 'r',
        Verdict::Stop { .. } => '!',
    };
    verdicts.iter().map(letter).collect()
}

#[test]
fn a_sound_run_under_the_defaults_leaves_no_trace_in_the_state() {
    let (verdicts, guard) = run(&Settings::default(), &[SOUND; 700]);
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Keep));
    assert_eq!(guard, Guard::default());
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_too_many_in_a_row_act() {
    let steps = [BROKEN, BROKEN, SOUND, BROKEN, BROKEN, BROKEN];
    let (verdicts, guard) = run(&settings(), &steps);
    assert_eq!(short(&verdicts), "ss.ss!");
    assert!(!verdicts[5].takes_the_step());
    assert_eq!(verdicts[5].sound(Step(6)), Step(6));
    assert_eq!(guard.halt(&settings()), Some(verdicts[5]));
    let (verdicts, guard) = run(&settings(), &steps[..3]);
    assert_eq!(
        (short(&verdicts).as_str(), guard),
        ("ss.", Guard::default())
    );

    let warn = Settings {
        nonfinite: Policy::Warn,
        ..settings()
    };
    assert_eq!(short(&run(&warn, &[BROKEN; 5]).0), "sssss");
    let off = Settings {
        nonfinite: Policy::Off,
        ..settings()
    };
    assert_eq!(short(&run(&off, &[BROKEN; 5]).0), ".....");
}

#[test]
fn an_overpowering_discriminator_is_noticed_by_its_mean_over_a_window() {
    let strong = |gap| Figures { gap, ..SOUND };
    let warn = Settings {
        overpowered: Policy::Warn,
        overpowered_gap: 0.9,
        ..settings()
    };
    // One weak step among strong ones changes little; three of four can't be enough.
    let (verdicts, _) = run(&warn, &[strong(1.0); 8]);
    assert_eq!(
        short(&verdicts),
        "...w...w",
        "and again after as many steps"
    );
    let figures = [1.0, 1.0, 0.8, 1.0].map(strong);
    assert_eq!(short(&run(&warn, &figures).0), "...w");
    let figures = [1.0, 1.0, 0.5, 1.0].map(strong);
    assert_eq!(short(&run(&warn, &figures).0), "....");
    // What is skipped is not in the mean.
    let figures = [strong(1.0), BROKEN, strong(1.0), strong(1.0), strong(1.0)];
    assert_eq!(short(&run(&warn, &figures).0), ".s..w");

    let by_loss = Settings {
        overpowered_loss: Some(0.1),
        ..warn
    };
    let cheap = Figures {
        loss_d: 0.05,
        ..SOUND
    };
    assert_eq!(short(&run(&by_loss, &[cheap; 4]).0), "...w");
    assert_eq!(short(&run(&warn, &[cheap; 4]).0), "....");
}

#[test]
fn a_collapse_is_noticed_and_a_second_trouble_waits_for_its_turn() {
    let bad = Figures {
        diversity: Some(0.01),
        gap: 1.0,
        ..SOUND
    };
    let both = Settings {
        overpowered: Policy::Warn,
        collapsed: Policy::Warn,
        ..settings()
    };
    let (verdicts, _) = run(&both, &[bad; 5]);
    assert_eq!(short(&verdicts), "...ww");
    let troubles: Vec<_> = verdicts.iter().filter_map(Verdict::finding).collect();
    assert_eq!(troubles[0].trouble, Trouble::Collapse);
    assert_eq!(troubles[1].trouble, Trouble::Gap);
}

#[test]
fn a_rollback_leads_to_a_state_that_is_older_than_the_window() {
    let back = Settings {
        collapsed: Policy::RollBack,
        collapsed_diversity: 0.5,
        rollbacks: 2,
        rate_factor: 0.5,
        ..settings()
    };
    let bad = Figures {
        diversity: Some(0.0),
        ..SOUND
    };
    let mut guard = Guard::default();
    let mut backs = Vec::new();
    for step in 1..60 {
        // Sound until 12, and never again.
        let figures = if step <= 12 { SOUND } else { bad };
        let Decision {
            guard: next,
            verdict,
            captures,
        } = guard.judge(&back, Step(step), &figures);
        assert!(!captures || step.is_multiple_of(5));
        guard = next;
        if let Verdict::RollBack {
            to, number, rate, ..
        } = verdict
        {
            assert!(to.0 + back.anchor_every <= step, "{to} at {step}");
            assert!(!captures);
            backs.push((step, to.0, number, rate));
        }
        if let Verdict::Stop {
            rollbacks, in_vain, ..
        } = verdict
        {
            assert_eq!((rollbacks, in_vain), (2, true));
            assert!(verdict.takes_the_step(), "its values are finite");
            assert_eq!(verdict.sound(Step(step)), Step(step - 4));
            backs.push((step, 0, 0, 0.0));
            break;
        }
    }
    // The mean of 0.9, 0.9·3/4 … is below a half from step 15 on. The state of 10 is not proved.
    assert_eq!(backs, [(15, 5, 1, 0.5), (19, 5, 2, 0.25), (23, 0, 0, 0.0)]);
    assert_eq!(guard.rate(&back), 0.25);
    let (Some(halt), settings) = (guard.halt(&back), &back) else {
        panic!("it is the last state");
    };
    let text = halt.to_string();
    for word in [
        "guard.collapsed_diversity = 0.5",
        "over 4 steps",
        "after 2 rollbacks",
    ] {
        assert!(text.contains(word), "{text}");
    }
    // And it stays the last one, wherever it is loaded.
    let again = Guard::from_words(guard.words()).unwrap();
    assert_eq!(again.halt(settings), Some(halt));
}

#[test]
fn numbers_and_back() {
    let (_, guard) = run(
        &Settings {
            overpowered: Policy::Warn,
            collapsed: Policy::RollBack,
            ..settings()
        },
        &[SOUND, BROKEN, SOUND, BROKEN],
    );
    assert_ne!(guard, Guard::default());
    assert_eq!(Guard::from_words(guard.words()), Ok(guard));
    assert_eq!(Guard::from_words([0; WORDS]), Ok(Guard::default()));
    for (at, value, name) in [
        (2, 9, "halted"),
        (6, f64::NAN.to_bits(), "gap.mean"),
        (10, f64::INFINITY.to_bits(), "diversity.mean"),
    ] {
        let mut words = guard.words();
        words[at] = value;
        assert_eq!(Guard::from_words(words), Err(name));
    }
}

#[test]
fn each_verdict_names_the_setting_and_its_value() {
    let settings = Settings {
        overpowered_loss: Some(0.125),
        ..settings()
    };
    let finding = |trouble| Finding::new(trouble, 0.25, &settings);
    for (trouble, words) in [
        (Trouble::Nonfinite, "guard.nonfinite_steps = 3"),
        (Trouble::Gap, "guard.overpowered_gap = 0.98"),
        (Trouble::Loss, "guard.overpowered_loss = 0.125"),
        (Trouble::Collapse, "guard.collapsed_diversity = 0.2"),
    ] {
        let finding = finding(trouble);
        let stop = Verdict::Stop {
            finding,
            rollbacks: 0,
            in_vain: false,
        };
        let back = Verdict::RollBack {
            finding,
            to: Step(5),
            number: 1,
            allowed: 3,
            rate: 0.5,
        };
        for verdict in [Verdict::Warn(finding), Verdict::Skip(finding), back, stop] {
            let text = verdict.to_string();
            let figure = text.contains("0.25") || text.contains("2.5000e-1");
            assert!(text.contains(words) && figure, "{text}");
        }
        assert_eq!(
            Trouble::numbered(u64::from(trouble.number())),
            Some(trouble)
        );
    }
    assert_eq!(Trouble::numbered(0), None);
}
