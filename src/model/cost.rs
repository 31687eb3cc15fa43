//! PURE. What a training step costs, counted from the layer lists.
//!
//! The counts are of the mathematics, not of any implementation: what is divided by a measured time
//! gives the rate at which useful work was done. Where Winograd's filtering saves multiplications, that
//! may be more than a matrix product's.

use super::architecture::{Architecture, Layer};
use crate::config::{BatchNorm, Model, Precision, Train, Update};

/// Floating-point operations in convolutions and fully connected layers, which are all but a few percent of a step; a
/// multiplication and an addition are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flops {
    /// Of the forward passes.
    pub forward: u64,
    /// Of the backward passes.
    pub backward: u64,
}

impl Flops {
    /// Both together.
    pub fn total(self) -> u64 {
        self.forward + self.backward
    }
}

/// What a training step spends on one image of a minibatch. A penalty on D's slope, which goes
/// through D once more each way, is not counted.
///
/// With F(N) for a forward pass of network N and f(N) for that of its first layer:
///
/// ```text
/// forward   G(z), D(x), D(G(z))                        F(G) + 2·F(D)
///           D(G(z)) again, by the new D                        + F(D)      alternating only
/// backward  J_D to D's weights, twice: x and G(z)      2·(2·F(D) - f(D))
///           J_G through D to the image                 F(D)
///           … and on to G's weights                    2·F(G) - f(G)
/// ```
///
/// With `model.batch_norm = "together"` D looks at x beside G(z) each time, and J_G's gradient passes
/// through both, for the batch's statistics hang on both.
///
/// The gradient of a convolution costs as much as its forward pass, once for its weight and once
/// for its input. Nobody asks for a first layer's input, nor for D's weights where J_G passes.
///
/// That is one update of each player. What is done for D's counts for each of its updates in a step,
/// and what is done for G's likewise; with packing, D has one input for m images.
pub fn step(model: &Model, train: &Train) -> Flops {
    let (g, d) = (Architecture::generator(model), discriminator(model, train));
    let passes = Passes::of(model, train);
    let an_image = |flops: u64| flops / u64::from(train.packing);
    Flops {
        forward: passes.generated * g.forward_flops() + passes.judged * an_image(d.forward_flops()),
        backward: passes.of_discriminator * 2 * an_image(backward_to_parameters(&d))
            + passes.through * an_image(d.forward_flops())
            + passes.of_generator * backward_to_parameters(&g),
    }
}

/// How often a minibatch's worth of images passes through the networks in a step.
struct Passes {
    /// D's updates.
    of_discriminator: u64,
    /// G's updates.
    of_generator: u64,
    /// Forward through G.
    generated: u64,
    /// Forward through D.
    judged: u64,
    /// J_G's gradient through D.
    through: u64,
}

impl Passes {
    fn of(model: &Model, train: &Train) -> Self {
        let of_discriminator = u64::from(train.discriminator_steps);
        let of_generator = u64::from(train.generator_steps);
        let through = match model.batch_norm {
            BatchNorm::Separate => of_generator,
            BatchNorm::Together => 2 * of_generator,
        };
        let again = match train.update {
            Update::Alternating => through,
            Update::Simultaneous => 0,
        };
        Self {
            of_discriminator,
            of_generator,
            generated: of_discriminator + of_generator - 1,
            judged: 2 * of_discriminator + again,
            through,
        }
    }
}

/// [`step`]'s total.
pub fn step_flops(model: &Model, train: &Train) -> u64 {
    step(model, train).total()
}

fn discriminator(model: &Model, train: &Train) -> Architecture {
    Architecture::discriminator(model, train.packing)
}

fn backward_to_parameters(network: &Architecture) -> u64 {
    2 * network.forward_flops() - first(network, Layer::flops)
}

fn first(network: &Architecture, of: impl Fn(&Layer) -> u64) -> u64 {
    let stage = network.stages.first();
    stage.map_or(0, |stage| of(&stage.layer))
}

/// Bytes that a step can't but move between memory and processor. An implementation moves more: it
/// writes and reads what it does not fuse, and batch norm looks at its input more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Weights and their gradients: each pass of a replica reads the weights that it needs, and
    /// writes the gradients that it is for.
    pub weights: u64,
    /// Adam in single precision: it reads the parameters, the gradient and both moments, and writes
    /// all but the gradient, 28 bytes a parameter.
    pub optimizer: u64,
    /// Images and what layers hand to each other, and their gradients: a pass reads what it needs
    /// once, and writes what it makes once. Norms and activations are taken to be free.
    pub activations: u64,
}

impl Traffic {
    /// All together.
    pub fn total(self) -> u64 {
        self.weights + self.optimizer + self.activations
    }
}

/// What a worker moves in a step that hosts so many replicas.
pub fn traffic(model: &Model, train: &Train, hosted: u32) -> Traffic {
    let (g, d) = (Architecture::generator(model), discriminator(model, train));
    let passes = Passes::of(model, train);
    let element = match train.precision {
        Precision::F32 | Precision::Tf32 => 4,
        Precision::Bf16 => 2,
    };
    let (of_g, of_d) = (g.len() as u64, d.len() as u64);
    // Read by each forward pass; read by each backward pass, and written by those to the weights.
    let weights = of_g * (passes.generated + 2 * passes.of_generator)
        + of_d * (passes.judged + 2 * 2 * passes.of_discriminator + passes.through);
    // A forward pass reads its inputs and writes its outputs. Backward, a layer reads its output's
    // gradient, writes its input's (but for a first layer whose input nobody asks for), and reads
    // its input for its weight's.
    let forward = |network: &Architecture| sum(network, |layer| input(layer) + output(layer));
    let through = |network: &Architecture| sum(network, |layer| output(layer) + input(layer));
    let to_weights = |network: &Architecture| {
        sum(network, |layer| output(layer) + 2 * input(layer)) - first(network, input)
    };
    let packed = passes.judged * forward(&d)
        + passes.of_discriminator * 2 * to_weights(&d)
        + passes.through * through(&d);
    let image = passes.generated * forward(&g)
        + packed / u64::from(train.packing)
        + passes.of_generator * to_weights(&g);
    Traffic {
        weights: element * u64::from(hosted) * weights,
        optimizer: 28 * (passes.of_generator * of_g + passes.of_discriminator * of_d),
        activations: element * u64::from(hosted) * u64::from(train.batch) * image,
    }
}

fn sum(network: &Architecture, of: impl Fn(&Layer) -> u64) -> u64 {
    let stages = network.stages.iter();
    stages.map(|stage| of(&stage.layer)).sum()
}

fn input(layer: &Layer) -> u64 {
    (layer.inputs() * layer.side_in() * layer.side_in()) as u64
}

fn output(layer: &Layer) -> u64 {
    (layer.outputs() * layer.side_out() * layer.side_out()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Job, parse};
    use std::path::Path;

    fn tiny() -> Job {
        let text = "
            job = { name = 'tiny' }
            data = { uri = 'nowhere' }
            train = { replicas = 2, batch = 3, steps = 1 }
            model = { image_size = 32, channels = 1, latent = 5, generator_width = 2, discriminator_width = 3 }
        ";
        parse(text, "tiny", Path::new("."), &[]).unwrap()
    }

    /// Layer by layer, by hand: 2 · inputs · outputs · 16 · positions.
    #[test]
    fn the_operations_are_those_counted_by_hand() {
        let g: [u64; 4] = [
            2 * 5 * 8 * 16, // 1×1 to 4×4
            2 * 8 * 4 * 16 * 16,
            2 * 4 * 2 * 16 * 64,
            2 * 2 * 16 * 256,
        ];
        let d: [u64; 4] = [
            2 * 3 * 16 * 256, // 32×32 to 16×16
            2 * 3 * 6 * 16 * 64,
            2 * 6 * 12 * 16 * 16,
            2 * 12 * 16,
        ];
        let (of_g, of_d): (u64, u64) = (g.iter().sum(), d.iter().sum());
        assert_eq!((of_g, of_d), (50_432, 98_688));
        let backward = 2 * (2 * of_d - d[0]) + of_d + (2 * of_g - g[0]);
        assert_eq!(backward, 543_872);
        let Job {
            model, mut train, ..
        } = tiny();
        let alternating = step(&model, &train);
        assert_eq!(alternating.forward, of_g + 3 * of_d);
        assert_eq!(alternating.backward, backward);
        assert_eq!(step_flops(&model, &train), 346_496 + 543_872);
        train.update = Update::Simultaneous;
        let simultaneous = step(&model, &train);
        assert_eq!(simultaneous.forward, of_g + 2 * of_d);
        assert_eq!(simultaneous.backward, backward);
        train.update = Update::Alternating;
        (train.discriminator_steps, train.generator_steps) = (2, 3);
        let more = step(&model, &train);
        assert_eq!(more.forward, 4 * of_g + 7 * of_d);
        let backward = 4 * (2 * of_d - d[0]) + 3 * (of_d + (2 * of_g - g[0]));
        assert_eq!(more.backward, backward);
    }

    /// What `torch.utils.flop_counter.FlopCounterMode` counts in PyTorch's example for one image of
    /// 64×64, width 64, when D's weights don't ask for their gradients in G's step.
    #[test]
    fn the_operations_are_those_that_pytorch_counts() {
        let (model, mut train) = (Model::default(), tiny().train);
        assert_eq!(step_flops(&model, &train), 2_274_623_488);
        train.update = Update::Simultaneous;
        assert_eq!(step_flops(&model, &train), 2_066_989_056);
    }

    #[test]
    fn the_bytes_are_those_counted_by_hand() {
        let Job {
            model, mut train, ..
        } = tiny();
        // Numbers that the layers of one image take and give.
        let (g_in, g_out): (u64, u64) = (
            5 + 8 * 16 + 4 * 64 + 2 * 256,
            8 * 16 + 4 * 64 + 2 * 256 + 1024,
        );
        let (d_in, d_out): (u64, u64) = (
            1024 + 3 * 256 + 6 * 64 + 12 * 16,
            3 * 256 + 6 * 64 + 12 * 16 + 1,
        );
        let forward = g_in + g_out + 3 * (d_in + d_out);
        let backward = 2 * (d_out + 2 * d_in - 1024) + (d_out + d_in) + (g_out + 2 * g_in - 5);
        let of_g: u64 = 5 * 8 * 16 + 8 * 4 * 16 + 4 * 2 * 16 + 2 * 16 + 2 * (8 + 4 + 2);
        let of_d: u64 = 3 * 16 + 3 * 6 * 16 + 6 * 12 * 16 + 12 * 16 + 2 * (6 + 12);
        let expected = |element: u64| Traffic {
            weights: element * 2 * (of_g * 3 + of_d * 8),
            optimizer: 28 * (of_g + of_d),
            activations: element * 2 * 3 * (forward + backward),
        };
        assert_eq!(traffic(&model, &train, 2), expected(4));
        train.precision = Precision::Bf16;
        assert_eq!(traffic(&model, &train, 2), expected(2));
        train.update = Update::Simultaneous;
        let saved = expected(2).total() - traffic(&model, &train, 2).total();
        assert_eq!(saved, 2 * 2 * (of_d + 3 * (d_in + d_out)));
    }
}
