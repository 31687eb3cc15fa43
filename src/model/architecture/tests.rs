//! Names, shapes and counts.

use super::*;

fn model(image_size: u32) -> Model {
    Model {
        image_size,
        ..Model::default()
    }
}

fn names(architecture: &Architecture) -> Vec<String> {
    architecture
        .entries()
        .into_iter()
        .map(|entry| format!("{} {:?}", entry.name, entry.shape))
        .collect()
}

#[test]
fn the_counts_are_those_of_pytorchs_example() {
    // sum(p.numel() for p in net.parameters()), nz = 100, ngf = ndf = 64, nc = 3.
    assert_eq!(Architecture::generator(&model(64)).len(), 3_576_704);
    assert_eq!(Architecture::discriminator(&model(64), 1).len(), 2_765_568);
    assert_eq!(parameters(&model(64), 1), 3_576_704 + 2_765_568);
}

#[test]
fn the_names_are_those_of_pytorchs_example() {
    let small = Model {
        image_size: 32,
        channels: 1,
        latent: 5,
        generator_width: 2,
        discriminator_width: 3,
        ..Model::default()
    };
    assert_eq!(
        names(&Architecture::generator(&small)),
        [
            "main.0.weight [5, 8, 4, 4]",
            "main.1.weight [8]",
            "main.1.bias [8]",
            "main.1.running_mean [8]",
            "main.1.running_var [8]",
            "main.1.num_batches_tracked []",
            "main.3.weight [8, 4, 4, 4]",
            "main.4.weight [4]",
            "main.4.bias [4]",
            "main.4.running_mean [4]",
            "main.4.running_var [4]",
            "main.4.num_batches_tracked []",
            "main.6.weight [4, 2, 4, 4]",
            "main.7.weight [2]",
            "main.7.bias [2]",
            "main.7.running_mean [2]",
            "main.7.running_var [2]",
            "main.7.num_batches_tracked []",
            "main.9.weight [2, 1, 4, 4]",
        ]
    );
    assert_eq!(
        names(&Architecture::discriminator(&small, 1)),
        [
            "main.0.weight [3, 1, 4, 4]",
            "main.2.weight [6, 3, 4, 4]",
            "main.3.weight [6]",
            "main.3.bias [6]",
            "main.3.running_mean [6]",
            "main.3.running_var [6]",
            "main.3.num_batches_tracked []",
            "main.5.weight [12, 6, 4, 4]",
            "main.6.weight [12]",
            "main.6.bias [12]",
            "main.6.running_mean [12]",
            "main.6.running_var [12]",
            "main.6.num_batches_tracked []",
            "main.8.weight [1, 12, 4, 4]",
        ]
    );
    let layers = |size| {
        let last = |a: Architecture| a.parameters.last().map(|p| p.layer);
        (
            last(Architecture::generator(&model(size))),
            last(Architecture::discriminator(&model(size), 1)),
        )
    };
    assert_eq!(layers(64), (Some(12), Some(11)));
    assert_eq!(layers(128), (Some(15), Some(14)));
    assert_eq!(layers(256), (Some(18), Some(17)));
}

#[test]
fn stages_fit_each_other_and_the_image() {
    for size in [32, 64, 128, 256] {
        let g = Architecture::generator(&model(size));
        let d = Architecture::discriminator(&model(size), 1);
        for architecture in [&g, &d] {
            for pair in architecture.stages.windows(2) {
                assert_eq!(pair[0].layer.outputs(), pair[1].layer.inputs());
                assert_eq!(pair[0].layer.side_out(), pair[1].layer.side_in());
            }
            let mut end = 0;
            for parameter in &architecture.parameters {
                assert_eq!(parameter.offset, end);
                end = parameter.range().end;
            }
            assert_eq!(architecture.len(), end);
        }
        let side = size as usize;
        assert_eq!(g.stages.last().unwrap().layer.side_out(), side);
        assert_eq!(d.stages[0].layer.side_in(), side);
        assert_eq!(d.stages.last().unwrap().layer.side_out(), 1);
    }
}
