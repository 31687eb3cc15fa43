//! Adam on vectors in host memory, in one pass over it.
//!
//! libtorch's fused kernel changes vectors in place. Where the old ones must stay, because a step may
//! still fail, they are copied first, and that is half of the memory's traffic. This pass reads the
//! one and writes the other; the gradient's norm is taken on the way. Every number has the bits that
//! the copies and libtorch's kernel give: which products and sums that kernel's compiler has fused
//! is found out by trying, and where no guess has its bits, it is used itself.

use super::{FusedAdam, TorchError, learning_rate};
use std::slice;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// One step of Adam from vectors in host memory to others: flat, contiguous, `f32`, all as long.
#[derive(Debug)]
pub struct AdamPass<'a> {
    /// Parameters, first moment, second moment.
    pub from: [&'a Tensor; 3],
    /// Where the next ones go, in other memory.
    pub to: [&'a mut Tensor; 3],
    /// The mean gradient.
    pub gradients: &'a Tensor,
    /// One f32 that counts steps from 1.
    pub count: &'a Tensor,
    /// Step size, as [`learning_rate`](super::learning_rate) makes one.
    pub learning_rate: &'a Tensor,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

/// What was seen of a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// Its L2 norm.
    pub norm: f64,
    /// How many of its elements are not finite.
    pub nonfinite: u64,
}

impl AdamPass<'_> {
    /// Does it, on the calling thread.
    ///
    /// # Errors
    /// [`TorchError::Shim`], for vectors that are not as they must be, or share memory.
    pub fn apply(mut self) -> Result<Measure, TorchError> {
        self.check()?;
        let length = self.gradients.numel();
        // libtorch's kernel treats what fills no register in another way.
        let most = match fused() {
            Some(_) => length - length % REGISTER,
            None => 0,
        };
        let mut lanes = Lanes::default();
        if let (Some(fused), 1..) = (fused(), most) {
            let terms = Terms::new(&self)?;
            let gradients = self.gradients;
            // SAFETY: seven live tensors of `length` floats in a row in host memory, of which those
            // that are written lie apart from all others, as checked above. Nobody writes to those
            // that are read, and nobody else reaches those that are written, for as long as the
            // slices live: the pass runs no other code, `to` is borrowed for writing, and a
            // `HostVector` gives no slice of memory that a tensor reaches.
            let (from, to) = unsafe {
                let source = |tensor: &Tensor| {
                    slice::from_raw_parts(tensor.data_ptr().cast::<f32>().cast_const(), most)
                };
                let target = |tensor: &mut Tensor| {
                    slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), most)
                };
                let [p, m, v] = self.from.map(source);
                (
                    [p, m, v, source(gradients)],
                    self.to.each_mut().map(|to| target(to)),
                )
            };
            lanes = pass(fused, &terms, from, to);
        }
        let rest = self.apply_by_libtorch(most)?;
        for block in rest.chunks(BLOCK) {
            lanes.add(block);
        }
        Ok(lanes.measure())
    }

    /// What the pass relies on.
    fn check(&self) -> Result<(), TorchError> {
        let length = self.gradients.numel();
        let [p, m, v] = self.from;
        let read = [p, m, v, self.gradients];
        let written = self.to.each_ref().map(|to| &**to);
        let all = || read.into_iter().chain(written);
        let fits = |tensor: &Tensor| {
            tensor.device() == Device::Cpu
                && tensor.kind() == Kind::Float
                && tensor.is_contiguous()
                && tensor.size() == [length as i64]
        };
        let apart = |one: &Tensor, other: &Tensor| {
            let (one, other) = (one.data_ptr() as usize, other.data_ptr() as usize);
            one.abs_diff(other) >= size_of::<f32>() * length
        };
        let alone = |(index, to): (usize, &Tensor)| {
            let mut others = all().enumerate();
            others.all(|(other, tensor)| other == index || apart(to, tensor))
        };
        if all().all(fits) && (read.len()..).zip(written).all(alone) {
            return Ok(());
        }
        Err(TorchError::Shim {
            doing: "apply Adam",
            message: "parameters, gradients and moments must be flat f32 vectors of one length in \
                      host memory, and the next ones must lie elsewhere"
                .to_owned(),
        })
    }

    /// From element `start` on, by copies and libtorch's kernel. Returns that part of the gradient.
    fn apply_by_libtorch(&mut self, start: usize) -> Result<Vec<f32>, TorchError> {
        let length = self.gradients.numel() - start;
        if length == 0 {
            return Ok(Vec::new());
        }
        let part = |tensor: &Tensor| tensor.f_narrow(0, start as i64, length as i64);
        let gradients = part(self.gradients)?;
        let [mut parameters, mut exp_avg, mut exp_avg_sq] = {
            let [p, m, v] = &self.to;
            [part(p)?, part(m)?, part(v)?]
        };
        let [p, m, v] = self.from;
        parameters.f_copy_(&part(p)?)?;
        exp_avg.f_copy_(&part(m)?)?;
        exp_avg_sq.f_copy_(&part(v)?)?;
        FusedAdam {
            parameters: &mut parameters,
            gradients: &gradients,
            exp_avg: &mut exp_avg,
            exp_avg_sq: &mut exp_avg_sq,
            count: self.count,
            learning_rate: self.learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
        }
        .apply()?;
        let mut values = vec![0.0; length];
        gradients.f_copy_data(&mut values, length)?;
        Ok(values)
    }
}

/// What libtorch makes of the settings before it turns to the elements.
struct Terms {
    /// The first moment goes from a base by this share of the way from it to the gradient. The base
    /// is the moment, or beyond half of the way the gradient, and then the share is negative.
    from_gradient: bool,
    share: f32,
    beta2: f32,
    square_share: f32,
    rate: f32,
    square_correction: f32,
    epsilon: f32,
}

impl Terms {
    fn new(pass: &AdamPass<'_>) -> Result<Self, TorchError> {
        let count = pass.count.f_double_value(&[])?;
        let learning_rate = pass.learning_rate.f_double_value(&[])?;
        let weight = (1.0 - pass.beta1) as f32;
        let from_gradient = weight.abs() >= 0.5;
        let correction = |beta: f64| 1.0 - beta.powf(count);
        Ok(Self {
            from_gradient,
            share: if from_gradient { weight - 1.0 } else { weight },
            beta2: pass.beta2 as f32,
            square_share: (1.0 - pass.beta2) as f32,
            rate: -(learning_rate / correction(pass.beta1)) as f32,
            square_correction: correction(pass.beta2).sqrt() as f32,
            epsilon: pass.epsilon as f32,
        })
    }
}

/// Sums over the gradient, in one order whatever adds them up: element i is in lane i mod 16.
#[derive(Default)]
struct Lanes {
    squares: [f64; LANES],
    nonfinite: u64,
}

const LANES: usize = 16;

impl Lanes {
    #[inline(always)]
    fn add(&mut self, gradient: &[f32]) {
        let mut bad = [0u32; LANES];
        for lane in gradient.chunks(LANES) {
            for ((square, bad), value) in self.squares.iter_mut().zip(&mut bad).zip(lane) {
                *square += f64::from(*value) * f64::from(*value);
                *bad += u32::from(!value.is_finite());
            }
        }
        self.nonfinite += bad.iter().map(|&bad| u64::from(bad)).sum::<u64>();
    }

    fn measure(&self) -> Measure {
        Measure {
            norm: self.squares.iter().sum::<f64>().sqrt(),
            nonfinite: self.nonfinite,
        }
    }
}

/// The norm of a gradient and how many of its elements are not finite: the figures don't depend on
/// threads or workers.
pub fn measure(gradient: &[f32]) -> Measure {
    let mut lanes = Lanes::default();
    for block in gradient.chunks(BLOCK) {
        lanes.add(block);
    }
    lanes.measure()
}

/// Elements that are measured and used while they are in the L1 cache: whole lanes.
const BLOCK: usize = 1024;

/// Elements of the widest register that libtorch has kernels for.
const REGISTER: usize = 16;

/// Which products and sums are fused, and rounded once.
type Fused = u8;
const NONE: Fused = 0;
/// In the first moment; in the second one the gradient's square.
const SQUARE: Fused = 1;
/// In the first moment; in the second one what is left of it.
const DECAY: Fused = 2;

/// Which are in libtorch's kernel on this processor. Nothing, if it has other bits than all of them.
fn fused() -> Option<Fused> {
    static FOUND: OnceLock<Option<Fused>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = if can_fuse() {
            [SQUARE, DECAY, NONE]
                .into_iter()
                .find(|guess| has_its_bits(*guess))
        } else {
            Some(NONE).filter(|guess| has_its_bits(*guess))
        };
        if found.is_none() {
            tracing::debug!("libtorch's Adam has bits of its own here; states are copied for it");
        }
        found
    })
}

/// Tries a guess on numbers of many sizes.
fn has_its_bits(guess: Fused) -> bool {
    let length = 4 * BLOCK;
    let values = |seed: usize, scale: f32| -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + seed) as f32 * 0.37).sin();
        let value = |i: usize| value(i) * scale * 10f32.powi((i % 7) as i32 - 3);
        (0..length).map(value).collect()
    };
    let square = values(3, 0.01).into_iter().map(f32::abs).collect();
    let from = [values(1, 1.0), values(2, 0.1), square];
    let gradient = values(4, 0.3);
    [0.5, 0.9].into_iter().all(|beta1| {
        let tensors = from.each_ref().map(|values| Tensor::from_slice(values));
        let mut to = from.each_ref().map(|values| Tensor::from_slice(values));
        let (gradients, count) = (Tensor::from_slice(&gradient), Tensor::from(7f32));
        let Ok(rate) = learning_rate(2e-4, Device::Cpu) else {
            return false;
        };
        let mut whole = AdamPass {
            from: tensors.each_ref(),
            to: to.each_mut(),
            gradients: &gradients,
            count: &count,
            learning_rate: &rate,
            beta1,
            beta2: 0.999,
            epsilon: 1e-8,
        };
        let Ok(terms) = Terms::new(&whole) else {
            return false;
        };
        if whole.apply_by_libtorch(0).is_err() {
            return false;
        }
        let mut found = from.clone();
        let [p, m, v] = from.each_ref().map(Vec::as_slice);
        let places = found.each_mut().map(Vec::as_mut_slice);
        pass(guess, &terms, [p, m, v, &gradient], places);
        let bits = |values: &[f32]| {
            values
                .iter()
                .map(|value| value.to_bits())
                .collect::<Vec<_>>()
        };
        to.iter().zip(&found).all(|(expected, found)| {
            let expected = Vec::<f32>::try_from(expected).unwrap_or_default();
            bits(&expected) == bits(found)
        })
    })
}

fn can_fuse() -> bool {
    #[cfg(target_arch = "x86_64")]
    let can = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let can = cfg!(target_arch = "aarch64");
    can
}

fn pass(fused: Fused, terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) -> Lanes {
    #[cfg(target_arch = "x86_64")]
    if can_fuse() {
        // SAFETY: the processor has the instructions that it is compiled for.
        return unsafe { pass_with_fma(fused, terms, from, to) };
    }
    choose(fused, terms, from, to)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn pass_with_fma(fused: Fused, terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) -> Lanes {
    choose(fused, terms, from, to)
}

#[inline(always)]
fn choose(fused: Fused, terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) -> Lanes {
    match fused {
        SQUARE => blocks::<SQUARE>(terms, from, to),
        DECAY => blocks::<DECAY>(terms, from, to),
        _ => blocks::<NONE>(terms, from, to),
    }
}

#[inline(always)]
fn blocks<const FUSED: Fused>(terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) -> Lanes {
    let mut lanes = Lanes::default();
    let [p, m, v, g] = from;
    let [p_next, m_next, v_next] = to;
    for start in (0..g.len()).step_by(BLOCK) {
        let block = start..g.len().min(start + BLOCK);
        lanes.add(&g[block.clone()]);
        let from = [p, m, v, g].map(|all| &all[block.clone()]);
        let to = [&mut *p_next, &mut *m_next, &mut *v_next].map(|all| &mut all[block.clone()]);
        elements::<FUSED>(terms, from, to);
    }
    lanes
}

/// As ATen/native/cpu/FusedAdamKernel.cpp has it.
#[inline(always)]
fn elements<const FUSED: Fused>(terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) {
    let add = |a: f32, b: f32, c: f32| match FUSED {
        NONE => a * b + c,
        _ => a.mul_add(b, c),
    };
    let [p, m, v, g] = from;
    let [p_next, m_next, v_next] = to;
    let n = g.len();
    let (p, m, v) = (&p[..n], &m[..n], &v[..n]);
    let (p_next, m_next, v_next) = (&mut p_next[..n], &mut m_next[..n], &mut v_next[..n]);
    for i in 0..n {
        let base = if terms.from_gradient { g[i] } else { m[i] };
        let mean = add(terms.share, g[i] - m[i], base);
        let part = terms.square_share * g[i];
        let square = match FUSED {
            DECAY => add(v[i], terms.beta2, part * g[i]),
            _ => add(part, g[i], v[i] * terms.beta2),
        };
        let denominator = square.sqrt() / terms.square_correction + terms.epsilon;
        p_next[i] = p[i] + terms.rate * mean / denominator;
        m_next[i] = mean;
        v_next[i] = square;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(length: usize, scale: f32) -> Tensor {
        let value = |i: usize| ((i * 7919 % 10_007) as f32 * 0.37).sin() * scale;
        Tensor::from_slice(&(0..length).map(value).collect::<Vec<_>>())
    }

    #[test]
    fn it_has_the_bits_of_copies_and_libtorchs_kernel() {
        let length = 3 * BLOCK + 37;
        for (beta1, count) in [(0.5, 1.0), (0.9, 7.0), (0.0, 1000.0)] {
            let from = [
                vector(length, 1.0),
                vector(length, 0.1),
                vector(length, 0.01).abs(),
            ];
            let gradients = vector(length, 0.3).flip([0]);
            let count = Tensor::from(count as f32);
            let rate = learning_rate(2e-4, Device::Cpu).unwrap();
            let mut expected = from.each_ref().map(Tensor::copy);
            let [parameters, exp_avg, exp_avg_sq] = &mut expected;
            FusedAdam {
                parameters,
                gradients: &gradients,
                exp_avg,
                exp_avg_sq,
                count: &count,
                learning_rate: &rate,
                beta1,
                beta2: 0.999,
                epsilon: 1e-8,
            }
            .apply()
            .unwrap();
            let before = from.each_ref().map(Tensor::copy);
            let mut to = from.each_ref().map(Tensor::zeros_like);
            let measured = AdamPass {
                from: from.each_ref(),
                to: to.each_mut(),
                gradients: &gradients,
                count: &count,
                learning_rate: &rate,
                beta1,
                beta2: 0.999,
                epsilon: 1e-8,
            }
            .apply()
            .unwrap();
            for (index, (found, expected)) in to.iter().zip(&expected).enumerate() {
                assert!(found.equal(expected), "vector {index}, beta1 {beta1}");
                assert!(
                    from[index].equal(&before[index]),
                    "what is read is left alone"
                );
            }
            let values: Vec<f32> = (&gradients).try_into().unwrap();
            assert_eq!(measured, measure(&values));
        }
    }

    #[test]
    fn the_norm_is_exact_and_counts_what_is_not_finite() {
        let of = |values: &[f32]| (measure(values).norm, measure(values).nonfinite);
        assert_eq!(of(&[3.0, 4.0]), (5.0, 0));
        let mut values = vec![1.0f32; 5000];
        assert!((of(&values).0 - 5000f64.sqrt()).abs() < 1e-12);
        values[3] = f32::NAN;
        values[4999] = f32::INFINITY;
        assert_eq!(of(&values).1, 2);
        assert_eq!(of(&[]), (0.0, 0));
    }

    #[test]
    fn vectors_that_overlap_or_differ_are_refused() {
        let whole = vector(30, 1.0);
        let (a, g) = (vector(10, 1.0), vector(10, 0.1));
        let refused = |from: &Tensor, mut to: Tensor| {
            let (mut m, mut v) = (a.zeros_like(), a.zeros_like());
            let pass = AdamPass {
                from: [from, &a, &a],
                to: [&mut to, &mut m, &mut v],
                gradients: &g,
                count: &Tensor::from(1f32),
                learning_rate: &learning_rate(1e-3, Device::Cpu).unwrap(),
                beta1: 0.5,
                beta2: 0.999,
                epsilon: 1e-8,
            };
            pass.apply().is_err()
        };
        assert!(!refused(&whole.narrow(0, 0, 10), whole.narrow(0, 10, 10)));
        assert!(refused(&whole.narrow(0, 0, 10), whole.narrow(0, 9, 10)));
        assert!(refused(&a, a.shallow_clone()));
        assert!(refused(&whole, a.zeros_like()));
        assert!(refused(
            &a,
            Tensor::zeros([10], (Kind::Double, Device::Cpu))
        ));
    }
}
