//! ONNX: a generator for onnxruntime and its like.

mod messages;

use super::{ExportError, Given, Operation, Part, Program};
use crate::model::architecture::{BATCH_NORM_MOMENTUM, NORM_EPSILON};
use messages::{
    Attribute, FLOAT, Graph, INT64, Model, Node, OperatorSet, Tensor, ValueInfo, constant, float,
    initializer, integer, integers, text, value,
};
use prost::Message;

/// The version of the file's own form.
const IR_VERSION: i64 = 8;
/// The version of the operators: the oldest in which batch norm has one output at inference is 14.
const OPSET: i64 = 17;
/// Protocol buffers end at 2 GiB.
const MOST_BYTES: usize = (1 << 31) - (1 << 16);

/// A file of ONNX: its inputs are what the program is given, by those names, and its output is `images`,
/// `[n, c, s, s]` in -1 … 1, for any n. `doc` tells people where it comes from.
///
/// # Errors
/// [`ExportError::TooLarge`].
pub fn to_onnx(program: &Program<'_>, doc: &str) -> Result<Vec<u8>, ExportError> {
    let bytes = program.weights().map(|tensor| tensor.bytes.len()).sum();
    if bytes > MOST_BYTES {
        return Err(ExportError::TooLarge { bytes });
    }
    let mut writer = Writer::default();
    for (place, operation) in program.operations.iter().enumerate() {
        writer.write(operation, place);
    }
    let Writer {
        mut nodes,
        constants,
        now,
    } = writer;
    // What the last one makes is the output.
    if let Some(output) = nodes.last_mut().and_then(|node| node.output.first_mut()) {
        debug_assert_eq!(*output, now);
        *output = "images".to_owned();
    }
    let constants = constants.into_iter().chain(one_hot(program));
    let model = Model {
        ir_version: Some(IR_VERSION),
        opset_import: vec![OperatorSet {
            domain: Some(String::new()),
            version: Some(OPSET),
        }],
        producer_name: Some("ganglion".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        doc_string: Some(doc.to_owned()),
        graph: Some(Graph {
            node: nodes,
            name: Some("generator".to_owned()),
            initializer: program
                .weights()
                .map(initializer)
                .chain(constants)
                .collect(),
            input: program.given.iter().copied().map(input).collect(),
            output: vec![value("images", FLOAT, &program.shape)],
        }),
    };
    Ok(model.encode_to_vec())
}

/// The table whose rows are the labels' one-hot vectors.
const ONE_HOT: &str = "labels.one_hot";

fn one_hot(program: &Program<'_>) -> Option<Tensor> {
    let classes = program.given.iter().find_map(|given| match given {
        Given::Labels(classes) => Some(*classes),
        _ => None,
    })?;
    let numbers = (0..classes * classes).map(|place| match place % (classes + 1) {
        0 => 1.0,
        _ => 0.0,
    });
    Some(constant(ONE_HOT, &[classes; 2], numbers))
}

fn input(given: Given) -> ValueInfo {
    match given {
        Given::Latents(len) => value(given.name(), FLOAT, &[len, 1, 1]),
        Given::Labels(_) => value(given.name(), INT64, &[]),
        Given::Noise(len) => value(given.name(), FLOAT, &[len]),
        Given::Coarse(shape) => value(given.name(), FLOAT, &shape),
    }
}

/// Nodes, one after the other.
#[derive(Default)]
struct Writer {
    nodes: Vec<Node>,
    constants: Vec<Tensor>,
    /// What the last one has made; nothing yet, if it is empty.
    now: String,
}

impl Writer {
    /// A node that makes one value, whose name is returned.
    fn node(&mut self, kind: &str, input: Vec<String>, attribute: Vec<Attribute>) -> String {
        let place = self.nodes.len();
        let output = format!("x{place}");
        self.nodes.push(Node {
            input,
            output: vec![output.clone()],
            name: Some(format!("{kind}_{place}")),
            op_type: Some(kind.to_owned()),
            attribute,
        });
        output
    }

    /// A list of integers as a value.
    fn integers(&mut self, values: &[i64]) -> String {
        let name = format!("c{}", self.constants.len());
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.constants.push(Tensor {
            dims: vec![values.len() as i64],
            data_type: Some(INT64),
            name: Some(name.clone()),
            raw_data: Some(bytes.collect()),
        });
        name
    }

    /// Floats as a value; without sides, one number.
    fn floats(&mut self, shape: &[usize], values: impl IntoIterator<Item = f32>) -> String {
        let name = format!("c{}", self.constants.len());
        self.constants.push(constant(&name, shape, values));
        name
    }

    /// Some of a value's numbers, along its second axis.
    fn slice(&mut self, of: &str, range: &std::ops::Range<usize>) -> String {
        let [from, to, axis] =
            [range.start, range.end, 1].map(|value| self.integers(&[value as i64]));
        self.node("Slice", vec![of.to_owned(), from, to, axis], Vec::new())
    }

    /// `[n, c]` as `[n, c, 1, 1]`.
    fn pixel(&mut self, of: String) -> String {
        let axes = self.integers(&[2, 3]);
        self.node("Unsqueeze", vec![of, axes], Vec::new())
    }

    fn flat(&mut self, of: String) -> String {
        self.node("Flatten", vec![of], vec![integer("axis", 1)])
    }

    /// A part of a layer's input.
    fn part(&mut self, part: &Part, side: Option<usize>) -> String {
        let value = match part {
            Part::Latents(range) => self.slice(Given::Latents(0).name(), range),
            Part::OneHot => {
                let input = [ONE_HOT, Given::Labels(0).name()].map(str::to_owned);
                let rows = self.node("Gather", input.to_vec(), vec![integer("axis", 0)]);
                self.pixel(rows)
            }
            Part::Coarse(by) => {
                let coarse = "coarse".to_owned();
                return match by {
                    1 => coarse,
                    _ => {
                        let attributes = vec![
                            integers("kernel_shape", &[*by; 2]),
                            integers("strides", &[*by; 2]),
                        ];
                        self.node("AveragePool", vec![coarse], attributes)
                    }
                };
            }
        };
        match side {
            None => self.flat(value),
            Some(1) => value,
            Some(side) => {
                let shape = self.integers(&[1, 1, side as i64, side as i64]);
                self.node("Expand", vec![value, shape], Vec::new())
            }
        }
    }

    /// The operation with this place, on what the one before has made.
    fn write(&mut self, operation: &Operation, place: usize) {
        let x = match place {
            0 => Given::Latents(0).name().to_owned(),
            _ => std::mem::take(&mut self.now),
        };
        self.now = match operation {
            Operation::Append { parts, side } => {
                let parts: Vec<String> = parts.iter().map(|part| self.part(part, *side)).collect();
                let before = (place > 0).then_some(x);
                let all = before.into_iter().chain(parts).collect();
                self.node("Concat", all, vec![integer("axis", 1)])
            }
            Operation::ConvTranspose {
                weight,
                kernel,
                stride,
                padding,
                output_padding,
            } => {
                let attributes = vec![
                    integers("kernel_shape", &[*kernel; 2]),
                    integers("output_padding", &[*output_padding; 2]),
                    integers("pads", &[*padding; 4]),
                    integers("strides", &[*stride; 2]),
                ];
                self.node("ConvTranspose", vec![x, weight.clone()], attributes)
            }
            Operation::Linear { weight, bias } => {
                let input = [Some(x), Some(weight.clone()), bias.clone()];
                let input = input.into_iter().flatten().collect();
                self.node("Gemm", input, vec![integer("transB", 1)])
            }
            Operation::BatchNorm { layer } => {
                let parts = ["weight", "bias", "running_mean", "running_var"];
                let parts = parts.map(|part| format!("{layer}.{part}"));
                let attributes = vec![
                    float("epsilon", NORM_EPSILON as f32),
                    // The share that the old statistics keep, not the new ones.
                    float("momentum", (1.0 - BATCH_NORM_MOMENTUM) as f32),
                ];
                let input = std::iter::once(x).chain(parts).collect();
                self.node("BatchNormalization", input, attributes)
            }
            Operation::Relu => self.node("Relu", vec![x], Vec::new()),
            Operation::Tanh => self.node("Tanh", vec![x], Vec::new()),
            Operation::Noise {
                range,
                shape,
                strength,
                multiplicative,
            } => {
                let noise = self.slice("noise", range);
                let sides = shape.iter().map(|&side| side as i64);
                let shape: Vec<i64> = std::iter::once(-1).chain(sides).collect();
                let shape = self.integers(&shape);
                let noise = self.node("Reshape", vec![noise, shape], Vec::new());
                let strength = self.floats(&[], [*strength as f32]);
                let noise = self.node("Mul", vec![noise, strength], Vec::new());
                match multiplicative {
                    false => self.node("Add", vec![x, noise], Vec::new()),
                    true => {
                        let one = self.floats(&[], [1.0]);
                        let factor = self.node("Add", vec![noise, one], Vec::new());
                        self.node("Mul", vec![x, factor], Vec::new())
                    }
                }
            }
            Operation::AddCoarse(by) => {
                let by = *by as f32;
                let scales = self.floats(&[4], [1.0, 1.0, by, by]);
                // Of its optional inputs the second is left out.
                let input = ["coarse".to_owned(), String::new(), scales];
                let attributes = vec![
                    text("coordinate_transformation_mode", "asymmetric"),
                    text("mode", "nearest"),
                    text("nearest_mode", "floor"),
                ];
                let coarse = self.node("Resize", input.to_vec(), attributes);
                self.node("Add", vec![x, coarse], Vec::new())
            }
            Operation::Pixel => self.pixel(x),
        };
    }
}

#[cfg(test)]
#[cfg(feature = "torch")]
mod tests {
    use super::super::tests::{Example, near};
    use super::messages::dimension;
    use super::*;
    use std::collections::HashMap;
    use tch::Tensor as Array;

    /// A tensor of the file.
    fn array(tensor: Tensor) -> (String, Array) {
        let raw = tensor.raw_data.unwrap();
        let array = match tensor.data_type.unwrap() {
            FLOAT => {
                let numbers = raw.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
                Array::from_slice(&numbers.collect::<Vec<_>>())
            }
            INT64 => {
                let numbers = raw.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b));
                Array::from_slice(&numbers.collect::<Vec<_>>())
            }
            other => panic!("type {other}"),
        };
        (tensor.name.unwrap(), array.view(&tensor.dims[..]))
    }

    /// Runs the nodes by ONNX's definitions of them, reading nothing but the file.
    fn run(file: &[u8], given: Vec<(&str, Array)>) -> Array {
        let graph = Model::decode(file).unwrap().graph.unwrap();
        let inputs = graph
            .input
            .iter()
            .map(|input| input.name.as_deref().unwrap());
        assert!(inputs.eq(given.iter().map(|(name, _)| *name)));
        let given = given
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        let constants = graph.initializer.into_iter().map(array);
        let mut values: HashMap<String, Array> = given.chain(constants).collect();
        for node in graph.node {
            let inputs: Vec<Option<&Array>> = (node.input.iter())
                .map(|name| (!name.is_empty()).then(|| &values[name]))
                .collect();
            let of = |place: usize| inputs[place].unwrap();
            let list = |place: usize| Vec::<i64>::try_from(of(place)).unwrap();
            let x = of(0);
            let attribute = |name: &str| {
                let mut all = node.attribute.iter();
                all.find(|a| a.name.as_deref() == Some(name)).unwrap()
            };
            let word = |name: &str| String::from_utf8(attribute(name).s.clone().unwrap()).unwrap();
            let y = match node.op_type.as_deref().unwrap() {
                "ConvTranspose" => {
                    let [pads, strides, more] =
                        ["pads", "strides", "output_padding"].map(|name| &attribute(name).ints);
                    assert_eq!(attribute("kernel_shape").ints, of(1).size()[2..]);
                    assert_eq!(pads[..2], pads[2..]);
                    let none = None::<&Array>;
                    x.conv_transpose2d(of(1), none, &strides[..], &pads[..2], &more[..], 1, [1, 1])
                }
                "BatchNormalization" => {
                    let channels = |place: usize| match x.dim() {
                        2 => of(place).view([1, -1]),
                        _ => of(place).view([1, -1, 1, 1]),
                    };
                    let epsilon = f64::from(attribute("epsilon").f.unwrap());
                    let [scale, shift, mean, variance] = [1, 2, 3, 4].map(channels);
                    (x - mean) / (variance + epsilon).sqrt() * scale + shift
                }
                "Gemm" => {
                    assert_eq!(attribute("transB").i, Some(1));
                    let product = x.matmul(&of(1).tr());
                    inputs.get(2).map_or(product.copy(), |_| product + of(2))
                }
                "Slice" => {
                    let [from, to, axis] = [1, 2, 3].map(|place| list(place)[0]);
                    x.slice(axis, from, to, 1)
                }
                "Gather" => {
                    assert_eq!(attribute("axis").i, Some(0));
                    x.index_select(0, of(1))
                }
                "Unsqueeze" => {
                    assert_eq!(list(1), [2, 3]);
                    x.unsqueeze(2).unsqueeze(3)
                }
                "Flatten" => x.flatten(attribute("axis").i.unwrap(), -1),
                "Expand" => {
                    let shape = Array::zeros(&list(1)[..], (x.kind(), x.device()));
                    x + shape
                }
                "Concat" => {
                    let all: Vec<&Array> = inputs.iter().copied().flatten().collect();
                    Array::cat(&all, attribute("axis").i.unwrap())
                }
                "AveragePool" => {
                    let [kernel, strides] =
                        ["kernel_shape", "strides"].map(|name| &attribute(name).ints);
                    x.avg_pool2d(&kernel[..], &strides[..], [0, 0], false, true, None::<i64>)
                }
                "Resize" => {
                    assert!(inputs[1].is_none());
                    let words =
                        ["mode", "coordinate_transformation_mode", "nearest_mode"].map(word);
                    assert_eq!(words, ["nearest", "asymmetric", "floor"]);
                    let scales = Vec::<f32>::try_from(of(2)).unwrap();
                    assert_eq!(scales[..2], [1.0, 1.0]);
                    let sides = [2, 3].map(|dim| (x.size()[dim] as f32 * scales[dim]) as i64);
                    x.upsample_nearest2d(sides, None::<f64>, None::<f64>)
                }
                "Reshape" => x.reshape(&list(1)[..]),
                "Add" => x + of(1),
                "Mul" => x * of(1),
                "Relu" => x.relu(),
                "Tanh" => x.tanh(),
                other => panic!("{other}"),
            };
            values.insert(node.output[0].clone(), y);
        }
        values
            .remove(graph.output[0].name.as_deref().unwrap())
            .unwrap()
    }

    #[test]
    fn the_file_computes_what_the_generator_does() {
        for example in Example::all() {
            let program = example.program();
            let file = to_onnx(&program, "a test").unwrap();
            assert_eq!(file, to_onnx(&program, "a test").unwrap());
            near(
                &run(&file, example.given()),
                &example.images(),
                example.name,
            );
        }
    }

    #[test]
    fn the_batch_may_be_of_any_size() {
        let example = Example::plain();
        let file = to_onnx(&example.program(), "").unwrap();
        let graph = Model::decode(&file[..]).unwrap().graph.unwrap();
        for (value, sides) in [(&graph.input[0], 6), (&graph.output[0], 3)] {
            let tensor = value.of.as_ref().unwrap().tensor.as_ref().unwrap();
            let shape = tensor.shape.as_ref().unwrap();
            assert_eq!(shape.dim.len(), 4);
            let [n, channels] = [0, 1].map(|place: usize| shape.dim[place].value.clone().unwrap());
            assert_eq!(n, dimension::Value::Name("n".to_owned()));
            assert_eq!(channels, dimension::Value::Number(sides));
        }
    }
}
