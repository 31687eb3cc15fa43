//! All figures, from runs of a few updates.

use super::*;
use crate::config::Model;
use crate::model::{Architecture, initial_parameters};
use crate::torch;
use crate::train::Sampler;

#[test]
fn the_same_seed_gives_the_same_bytes() {
    torch::set_threads(1);
    for figure in Figure::ALL {
        let draw = |seed| {
            let study = Study {
                seed,
                brief: true,
                trained: Some(trained()),
                say: |_| {},
            };
            figure.draw(&study).unwrap()
        };
        let first = draw(0);
        assert_eq!(first, draw(0), "{figure}");
        assert!(!first.findings.is_empty(), "{figure}");
        match &first.picture {
            Picture::Svg(svg) => {
                assert!(svg.trim_end().ends_with("</svg>"), "{figure}");
                assert!(!svg.contains("NaN"), "{figure}");
            }
            Picture::Png(picture) => assert!(picture.width() > 256, "{figure}"),
        }
        assert_eq!(
            figure.shows_a_generator(),
            matches!(first.picture, Picture::Png(_))
        );
        // Figure 14 draws nothing by chance.
        if figure != Figure::Divergences {
            assert_ne!(first.picture, draw(1).picture, "{figure}");
        }
    }
}

/// A generator as it is before training.
fn trained() -> Trained {
    let model = Model {
        image_size: 32,
        channels: 1,
        latent: 6,
        generator_width: 4,
        discriminator_width: 4,
        ..Model::default()
    };
    let architecture = Architecture::generator(&model);
    let parameters = initial_parameters(&architecture, 3).unwrap();
    let len = architecture.running as i64;
    // Small variances enlarge what weights that were never trained make: images that differ.
    let running = tch::Tensor::full([len], 1e-3, (tch::Kind::Float, tch::Device::Cpu));
    let sampler = Sampler::over(
        architecture,
        &model,
        &parameters,
        &running,
        tch::Device::Cpu,
    )
    .unwrap();
    Trained::new(sampler, "step 0".to_owned()).unwrap()
}

#[test]
fn a_figure_of_a_generator_asks_for_one() {
    let study = Study {
        seed: 0,
        brief: true,
        trained: None,
        say: |_| {},
    };
    let message = Figure::Samples.draw(&study).unwrap_err().to_string();
    assert!(message.contains("checkpoint"), "{message}");
}
