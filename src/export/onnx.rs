//! ONNX: a generator for onnxruntime and its like.
//!
//! The messages are those of `onnx.proto` (github.com/onnx/onnx, IR version 8), as far as a
//! generator needs them, with the numbers that it gives their fields.

use super::{ExportError, Operation, Program};
use crate::checkpoint::TensorData;
use crate::model::architecture::{BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM};
use prost::Message;

/// The version of the file's own form.
const IR_VERSION: i64 = 8;
/// The version of the operators: the oldest in which batch norm has one output at inference is 14.
const OPSET: i64 = 17;
/// Protocol buffers end at 2 GiB.
const MOST_BYTES: usize = (1 << 31) - (1 << 16);

/// A file of ONNX: input `latents` `[n, latent, 1, 1]`, output `images` `[n, c, s, s]` in -1 … 1, for
/// any n. `doc` tells people where it comes from.
///
/// # Errors
/// [`ExportError::TooLarge`].
pub fn to_onnx(program: &Program<'_>, doc: &str) -> Result<Vec<u8>, ExportError> {
    let bytes = program.weights().map(|tensor| tensor.bytes.len()).sum();
    if bytes > MOST_BYTES {
        return Err(ExportError::TooLarge { bytes });
    }
    let [channels, high, wide] = program.shape;
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
            node: nodes(program),
            name: Some("generator".to_owned()),
            initializer: program.weights().map(initializer).collect(),
            input: vec![value("latents", &[program.latent, 1, 1])],
            output: vec![value("images", &[channels, high, wide])],
        }),
    };
    Ok(model.encode_to_vec())
}

/// The operations as nodes; each takes what the one before gives.
fn nodes(program: &Program<'_>) -> Vec<Node> {
    let last = program.operations.len().saturating_sub(1);
    let mut before = "latents".to_owned();
    let operations = program.operations.iter().enumerate();
    let nodes = operations.map(|(place, operation)| {
        let after = match place == last {
            true => "images".to_owned(),
            false => format!("x{place}"),
        };
        let mut input = vec![std::mem::replace(&mut before, after.clone())];
        let (kind, attribute) = match operation {
            Operation::ConvTranspose {
                weight,
                kernel,
                stride,
                padding,
            } => {
                input.push(weight.clone());
                let attributes = vec![
                    integers("kernel_shape", &[*kernel; 2]),
                    integers("pads", &[*padding; 4]),
                    integers("strides", &[*stride; 2]),
                ];
                ("ConvTranspose", attributes)
            }
            Operation::BatchNorm { layer } => {
                let parts = ["weight", "bias", "running_mean", "running_var"];
                input.extend(parts.map(|part| format!("{layer}.{part}")));
                let attributes = vec![
                    float("epsilon", BATCH_NORM_EPSILON as f32),
                    // The share that the old statistics keep, not the new ones.
                    float("momentum", (1.0 - BATCH_NORM_MOMENTUM) as f32),
                ];
                ("BatchNormalization", attributes)
            }
            Operation::Relu => ("Relu", Vec::new()),
            Operation::Tanh => ("Tanh", Vec::new()),
        };
        Node {
            input,
            output: vec![after],
            name: Some(format!("{kind}_{place}")),
            op_type: Some(kind.to_owned()),
            attribute,
        }
    });
    nodes.collect()
}

fn initializer(tensor: &TensorData) -> Tensor {
    Tensor {
        dims: tensor.shape.iter().map(|&side| side as i64).collect(),
        data_type: Some(FLOAT),
        name: Some(tensor.name.clone()),
        raw_data: Some(tensor.bytes.clone()),
    }
}

/// An input or output `[n, …]` of floats.
fn value(name: &str, shape: &[usize]) -> ValueInfo {
    let fixed = |&side: &usize| Dimension {
        value: Some(dimension::Value::Number(side as i64)),
    };
    let any = Dimension {
        value: Some(dimension::Value::Name("n".to_owned())),
    };
    ValueInfo {
        name: Some(name.to_owned()),
        of: Some(Type {
            tensor: Some(TensorType {
                element: Some(FLOAT),
                shape: Some(Shape {
                    dim: std::iter::once(any)
                        .chain(shape.iter().map(fixed))
                        .collect(),
                }),
            }),
        }),
    }
}

fn float(name: &str, value: f32) -> Attribute {
    Attribute {
        name: Some(name.to_owned()),
        f: Some(value),
        ints: Vec::new(),
        kind: Some(ATTRIBUTE_FLOAT),
    }
}

fn integers(name: &str, values: &[usize]) -> Attribute {
    Attribute {
        name: Some(name.to_owned()),
        f: None,
        ints: values.iter().map(|&value| value as i64).collect(),
        kind: Some(ATTRIBUTE_INTS),
    }
}

/// `TensorProto.DataType.FLOAT`.
const FLOAT: i32 = 1;
/// `AttributeProto.AttributeType`.
const ATTRIBUTE_FLOAT: i32 = 1;
const ATTRIBUTE_INTS: i32 = 7;

/// `ModelProto`.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, optional, tag = "1")]
    ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    producer_version: Option<String>,
    #[prost(string, optional, tag = "6")]
    doc_string: Option<String>,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSet>,
}

/// `OperatorSetIdProto`.
#[derive(Clone, PartialEq, Message)]
struct OperatorSet {
    #[prost(string, optional, tag = "1")]
    domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    version: Option<i64>,
}

/// `GraphProto`.
#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

/// `NodeProto`.
#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    name: Option<String>,
    #[prost(string, optional, tag = "4")]
    op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

/// `AttributeProto`.
#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(float, optional, tag = "2")]
    f: Option<f32>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, optional, tag = "20")]
    kind: Option<i32>,
}

/// `TensorProto`.
#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    data_type: Option<i32>,
    #[prost(string, optional, tag = "8")]
    name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "9")]
    raw_data: Option<Vec<u8>>,
}

/// `ValueInfoProto`.
#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(message, optional, tag = "2")]
    of: Option<Type>,
}

/// `TypeProto`.
#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, optional, tag = "1")]
    element: Option<i32>,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

/// `TensorShapeProto`.
#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

/// `TensorShapeProto.Dimension`.
#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(oneof = "dimension::Value", tags = "1, 2")]
    value: Option<dimension::Value>,
}

mod dimension {
    /// A number, or a name for any.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Value {
        #[prost(int64, tag = "1")]
        Number(i64),
        #[prost(string, tag = "2")]
        Name(String),
    }
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use super::super::tests::{Example, near};
    use super::*;
    use std::collections::HashMap;
    use tch::Tensor as Array;

    /// Runs the nodes by ONNX's definitions of them, reading nothing but the file.
    fn run(file: &[u8], latents: &Array) -> Array {
        let graph = Model::decode(file).unwrap().graph.unwrap();
        let mut values = HashMap::from([(graph.input[0].name.clone().unwrap(), latents.copy())]);
        for tensor in graph.initializer {
            assert_eq!(tensor.data_type, Some(FLOAT));
            let raw = tensor.raw_data.unwrap();
            let numbers: Vec<f32> = raw
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let array = Array::from_slice(&numbers).view(&tensor.dims[..]);
            values.insert(tensor.name.unwrap(), array);
        }
        for node in graph.node {
            let [x, rest @ ..] = &node.input[..] else {
                panic!("{node:?} has no input")
            };
            let x = &values[x];
            let rest: Vec<&Array> = rest.iter().map(|name| &values[name]).collect();
            let attribute = |name: &str| {
                let mut all = node.attribute.iter();
                all.find(|a| a.name.as_deref() == Some(name)).unwrap()
            };
            let y = match node.op_type.as_deref().unwrap() {
                "ConvTranspose" => {
                    let [pads, strides] = ["pads", "strides"].map(|name| &attribute(name).ints);
                    assert_eq!(attribute("kernel_shape").ints, rest[0].size()[2..]);
                    assert_eq!(pads[..2], pads[2..]);
                    let none = None::<&Array>;
                    x.conv_transpose2d(rest[0], none, &strides[..], &pads[..2], [0, 0], 1, [1, 1])
                }
                "BatchNormalization" => {
                    let [scale, shift, mean, variance] = rest[..] else {
                        panic!("{node:?}")
                    };
                    let channels = |t: &Array| t.view([1, -1, 1, 1]);
                    let epsilon = f64::from(attribute("epsilon").f.unwrap());
                    (x - channels(mean)) / (channels(variance) + epsilon).sqrt() * channels(scale)
                        + channels(shift)
                }
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
        let example = Example::new();
        let program = example.program();
        let file = to_onnx(&program, "a test").unwrap();
        assert_eq!(file, to_onnx(&program, "a test").unwrap());
        near(&run(&file, &example.latents), &example.images());
    }

    #[test]
    fn the_batch_may_be_of_any_size() {
        let example = Example::new();
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
