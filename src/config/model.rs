//! `[model]`: the two networks.

use super::Job;
use super::validate::{Fault, require};
use serde::{Deserialize, Serialize};

/// `[model]`
///
/// Keys that say what DCGAN does anyway are not written out: a checkpoint that was made before they
/// existed is the same job's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// What the networks are made of. Default `dcgan`.
    #[serde(skip_serializing_if = "is_default")]
    pub architecture: Family,
    /// Side of the square images, pixels: 8, 16, 28, 32, 64, 128 or 256. Default 64, as in the DCGAN paper.
    /// An `mlp` makes points, and doesn't look at it.
    pub image_size: u32,
    /// Colour channels: 1 (grey) or 3 (RGB). Default 3. An `mlp` doesn't look at it.
    pub channels: u32,
    /// Side of every strided kernel, pixels: 4, as in PyTorch's example, or 5, as in the DCGAN paper.
    /// Default 4.
    #[serde(skip_serializing_if = "is_example_kernel")]
    pub kernel: u32,
    /// Size of the latent z, 1 to 4096. Default 100.
    pub latent: u32,
    /// What z is drawn from. Default `normal`.
    #[serde(skip_serializing_if = "is_default")]
    pub latent_distribution: Distribution,
    /// How many of z's numbers, its first, are -1 or 1 by the toss of a coin; the others are drawn from
    /// `latent_distribution`. 0 to `latent`. Default 0. Without them z lies in one piece, and so do
    /// the samples: a G that is continuous passes through what is between the clusters of its data
    /// (Khayatkhoei et al. 2018), unless its codes are discrete, like some of InfoGAN's (Chen et al.
    /// 2016).
    #[serde(skip_serializing_if = "is_default")]
    pub binary_latents: u32,
    /// Where z enters the generator. Default `first`.
    #[serde(skip_serializing_if = "is_default")]
    pub latent_input: LatentInput,
    /// Noise in the generator's hidden layers, a part of what it draws like z. Default `none`.
    #[serde(skip_serializing_if = "is_default")]
    pub hidden_noise: HiddenNoise,
    /// Standard deviation of that noise, above 0 up to 10. Default 0.1.
    #[serde(skip_serializing_if = "is_default_strength")]
    pub hidden_noise_strength: f64,
    /// Feature maps of the generator's last hidden layer (`ngf`), 1 to 1024; of an `mlp`, units of
    /// each hidden layer. Default 64.
    pub generator_width: u32,
    /// Feature maps of the discriminator's first layer (`ndf`), 1 to 1024; of an `mlp`, maxout units
    /// of each hidden layer. Default 64.
    pub discriminator_width: u32,
    /// Hidden layers of an `mlp` generator, 1 to 16. Default 4, as in PacGAN's experiments.
    #[serde(skip_serializing_if = "is_four")]
    pub generator_layers: u32,
    /// Hidden layers of an `mlp` discriminator, 1 to 16. Default 3, likewise.
    #[serde(skip_serializing_if = "is_three")]
    pub discriminator_layers: u32,
    /// Linear pieces of a maxout unit, 1 to 16. Default 5, likewise.
    #[serde(skip_serializing_if = "is_five")]
    pub maxout_pieces: u32,
    /// Whether each of D's weights is divided by its largest singular value (Miyato et al. 2018), so
    /// that D is Lipschitz. Default `false`.
    #[serde(skip_serializing_if = "is_default")]
    pub spectral_norm: bool,
    /// What D normalises its hidden layers by. An `mlp`'s D has nothing of the kind. Default
    /// `batch`; a penalty on each sample's gradient needs another, for batch norm makes a sample's
    /// logit depend on its neighbours.
    #[serde(skip_serializing_if = "is_default")]
    pub discriminator_norm: Normalisation,
    /// Whether D's batch norm looks at real images and at fakes as two batches or as one. Default
    /// `separate`.
    #[serde(skip_serializing_if = "is_default")]
    pub batch_norm: BatchNorm,
    /// Whether these are the networks of a level of a Laplacian pyramid (Denton et al. 2015): G adds a
    /// band to an image of half the side that was made larger, and D looks at an image beside that
    /// one. The images of half the side are, while it learns, those of the data; when it draws, those
    /// of the next coarser level. Default `false`.
    #[serde(skip_serializing_if = "is_default")]
    pub pyramid: bool,
    /// How the networks are told of labels. Default `none`. The data must have labels then; a fake
    /// is made for the label of the real sample in its place of the batch.
    #[serde(skip_serializing_if = "is_default")]
    pub conditional: Conditional,
    /// How many labels there are, 0 to `classes` - 1; 2 to 10000. Needed with `conditional`, and
    /// otherwise 0, the default.
    #[serde(skip_serializing_if = "is_default")]
    pub classes: u32,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            architecture: Family::default(),
            image_size: 64,
            channels: 3,
            kernel: 4,
            latent: 100,
            latent_distribution: Distribution::default(),
            binary_latents: 0,
            latent_input: LatentInput::default(),
            hidden_noise: HiddenNoise::default(),
            hidden_noise_strength: 0.1,
            generator_width: 64,
            discriminator_width: 64,
            generator_layers: 4,
            discriminator_layers: 3,
            maxout_pieces: 5,
            spectral_norm: false,
            discriminator_norm: Normalisation::default(),
            batch_norm: BatchNorm::default(),
            pyramid: false,
            conditional: Conditional::default(),
            classes: 0,
        }
    }
}

/// What the networks are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Strided convolutions, for images.
    #[default]
    Dcgan,
    /// Fully connected layers, for points of a plane: ReLUs with batch norm in G, maxout in D.
    Mlp,
}

/// What z is drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// N(0, 1).
    #[default]
    Normal,
    /// U(-1, 1).
    Uniform,
}

/// Where z enters the generator (Goodfellow's tutorial, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LatentInput {
    /// All of it in the first layer.
    #[default]
    First,
    /// In parts as equal as can be, one for each layer but the last: there it is appended to the
    /// layer's input, the same everywhere.
    Split,
}

/// Noise in the generator's hidden layers (Goodfellow's tutorial, section 3.1): a number of its own
/// from N(0, 1), ε, for each unit of each hidden layer, after its activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HiddenNoise {
    /// None.
    #[default]
    None,
    /// h + strength·ε.
    Additive,
    /// h·(1 + strength·ε).
    Multiplicative,
}

/// What D normalises its hidden layers by, but for its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalisation {
    /// Mean and variance of each channel over a batch.
    #[default]
    Batch,
    /// Mean and variance of all of a sample's channels (Ba et al. 2016), with a scale and a shift a
    /// channel.
    Layer,
    /// Nothing: the convolutions get biases instead.
    None,
}

/// What D's batch norm takes for a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNorm {
    /// Real images, and fakes: the DCGAN paper's.
    #[default]
    Separate,
    /// Both in one batch.
    Together,
}

/// How the networks are told of labels. G gets them with z either way, as one-hot vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conditional {
    /// They aren't.
    #[default]
    None,
    /// D's input is extended by the label (Mirza and Osindero 2014): a learned plane a label for
    /// images, a one-hot vector for points.
    Concatenation,
    /// D's logit gets the inner product of its last features and a learned vector a label (Miyato
    /// and Koyama 2018).
    Projection,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_example_kernel(kernel: &u32) -> bool {
    *kernel == 4
}

fn is_default_strength(strength: &f64) -> bool {
    *strength == Model::default().hidden_noise_strength
}

fn is_three(number: &u32) -> bool {
    *number == 3
}

fn is_four(number: &u32) -> bool {
    *number == 4
}

fn is_five(number: &u32) -> bool {
    *number == 5
}

/// Dimensions of an `mlp`'s points.
const DIMENSIONS: u32 = 2;

impl Model {
    /// Shape of a sample: channels, rows, columns. A point's coordinates are channels of one pixel.
    pub fn sample_shape(&self) -> [u32; 3] {
        match self.architecture {
            Family::Dcgan => [self.channels, self.image_size, self.image_size],
            Family::Mlp => [DIMENSIONS, 1, 1],
        }
    }

    /// Whether samples are points, numbers as they are, rather than images, bytes that stand for
    /// -1 … 1.
    pub fn has_points(&self) -> bool {
        self.architecture == Family::Mlp
    }

    /// Sides of the feature maps, pixels, from the image's down to the smallest, which is 4; or 2 or
    /// 3 for images of 28 pixels, whose sides don't halve so often. With 5×5 kernels these are the
    /// sides of the DCGAN for stacked MNIST (Srivastava et al. 2017): 28, 14, 7, 4, 2.
    pub fn sides(&self) -> Vec<usize> {
        let smallest = if self.image_size == 28 { 3 } else { 4 };
        let mut sides = vec![self.image_size as usize];
        while let Some(&side) = sides.last().filter(|&&side| side > smallest) {
            // Down by a stride of 2: with 5×5 kernels an odd side is rounded up, with 4×4 down.
            sides.push((side + self.kernel as usize % 2) / 2);
        }
        sides
    }

    /// Into how many parts z is split for the generator's layers.
    pub fn latent_parts(&self) -> u32 {
        match (self.latent_input, self.architecture) {
            (LatentInput::First, _) => 1,
            (LatentInput::Split, Family::Dcgan) => self.sides().len() as u32 - 1,
            (LatentInput::Split, Family::Mlp) => self.generator_layers,
        }
    }

    /// Whether the networks are told of labels.
    pub fn is_conditional(&self) -> bool {
        self.conditional != Conditional::None
    }

    /// Whether D's logit of a sample depends on the rest of its batch.
    pub fn discriminator_has_batch_norm(&self) -> bool {
        self.architecture == Family::Dcgan && self.discriminator_norm == Normalisation::Batch
    }
}

/// Refuses the first impossible value.
pub(super) fn check(job: &Job) -> Result<(), Fault> {
    let model = &job.model;
    require(
        [8, 16, 28, 32, 64, 128, 256].contains(&model.image_size),
        "model.image_size",
        model.image_size,
        "8, 16, 28, 32, 64, 128 or 256",
    )?;
    require(
        [1, 3].contains(&model.channels),
        "model.channels",
        model.channels,
        "1 (grey) or 3 (RGB)",
    )?;
    require(
        [4, 5].contains(&model.kernel),
        "model.kernel",
        model.kernel,
        "4 or 5 pixels",
    )?;
    require(
        (1..=4096).contains(&model.latent),
        "model.latent",
        model.latent,
        "1 to 4096",
    )?;
    require(
        model.binary_latents <= model.latent,
        "model.binary_latents",
        model.binary_latents,
        format!("0 to {}, the size of model.latent", model.latent),
    )?;
    // The deepest layers of 256×256 pixels are 32 times as wide.
    for (key, value) in [
        ("model.generator_width", model.generator_width),
        ("model.discriminator_width", model.discriminator_width),
    ] {
        require((1..=1024).contains(&value), key, value, "1 to 1024")?;
    }
    for (key, value) in [
        ("model.generator_layers", model.generator_layers),
        ("model.discriminator_layers", model.discriminator_layers),
        ("model.maxout_pieces", model.maxout_pieces),
    ] {
        require((1..=16).contains(&value), key, value, "1 to 16")?;
    }
    let strength = model.hidden_noise_strength;
    require(
        strength > 0.0 && strength <= 10.0,
        "model.hidden_noise_strength",
        strength,
        "above 0 up to 10; model.hidden_noise = \"none\" turns it off",
    )?;
    let parts = model.latent_parts();
    require(
        model.latent >= parts,
        "model.latent",
        model.latent,
        format!("at least {parts}, one for each layer of model.latent_input = \"split\""),
    )?;
    require(
        model.architecture == Family::Dcgan || model.discriminator_norm != Normalisation::Layer,
        "model.discriminator_norm",
        "layer",
        "nothing, with model.architecture = \"mlp\": its discriminator has no normalisation",
    )?;
    require(
        model.batch_norm == BatchNorm::Separate || model.discriminator_has_batch_norm(),
        "model.batch_norm",
        "together",
        "model.discriminator_norm = \"batch\" and model.architecture = \"dcgan\" with it: this \
         discriminator has no batch norm",
    )?;
    require(
        !model.pyramid || model.architecture == Family::Dcgan,
        "model.pyramid",
        model.pyramid,
        "model.architecture = \"dcgan\" with it: a pyramid is of images",
    )?;
    require(
        !model.pyramid || (model.image_size >= 16 && model.image_size != 28),
        "model.image_size",
        model.image_size,
        "16, 32, 64, 128 or 256 with model.pyramid: half of it is halved again down to 4",
    )?;
    let classes = model.classes;
    match model.conditional {
        Conditional::None => require(
            classes == 0,
            "model.classes",
            classes,
            "0, or model.conditional = \"concatenation\" or \"projection\"",
        ),
        _ => require(
            (2..=10_000).contains(&classes),
            "model.classes",
            classes,
            "the number of labels in the data, 2 to 10000, with model.conditional",
        ),
    }
}
