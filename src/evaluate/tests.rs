use crate::random::{Domain, Key};
use crate::torch::Generator;
use tch::{Device, Kind, Tensor};

/// Fails unless `found` is `expected`, but for `tolerance`.
#[track_caller]
pub(super) fn close(found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{found}, expected {expected}"
    );
}

/// Draws of N(0, 1), f64.
pub(super) fn normal(seed: u64, sides: &[i64]) -> Tensor {
    let mut drawn = Tensor::zeros(sides, (Kind::Double, Device::Cpu));
    Generator::new(Device::Cpu, Key::new(Domain::Evaluation, &[99, seed]))
        .unwrap()
        .normal_(&mut drawn, 0.0, 1.0)
        .unwrap();
    drawn
}
