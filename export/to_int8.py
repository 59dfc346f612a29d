"""An arrow of the chain: a float ONNX file + activation ranges -> an INT8 ONNX file.

    fp16 graph  ->  for TensorRT: signed, symmetric       build/int8/<model>.onnx

Its twin for engines on a CPU is `export.to_int8_cpu`. One set of ranges (`export.calibrate`) feeds
both. TensorRT takes symmetric int8 and nothing else; ONNX Runtime's CPU kernels are fast with
unsigned activations and nothing else: hence two graphs. Only models that look at frames are
quantised; what pools them is too small to gain.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from base.errors import ExportError

Ranges = Mapping[str, tuple[float, float]]  # tensor -> least and greatest value

INT8_MAX = 127
FEW_STEPS = 64  # of weights, either way: `training.attention` says why
DEAD = 1e-12  # a channel whose step is below has no weights to speak of
BIASED = ("Conv", "ConvTranspose", "Gemm")  # take a bias as their third input
# What is quantised: the convolutional body. What comes before is per pixel.
BODY_OPERATORS = ["Conv", "Relu", "MaxPool", "Add"]


def to_int8(source: Path, ranges: Ranges, target: Path, spared: Collection[str] = ()) -> None:
    """Quantise a graph of Conv, Relu, MaxPool and Add as TensorRT wants it.

    Args:
        source: a float graph.
        ranges: of the tensors that are quantised.
        target: the file to write.
        spared: names of convolutions left in floating point, with the Relus, MaxPools and Adds
            behind them alone.

    Explicit Q/DQ with an int8 zero-point of 0 on every one of them, for TensorRT reads a missing
    or a uint8 zero-point as int8 without a word. On the input of every Conv and MaxPool of the
    body, and on the skip branch into every Add (its scale shared with the Conv that reads the same
    tensor); never between a Conv and the Relu or the Add that fuses with it, never on a bias.
    Weights are int8 with a scale per output channel.

    Source: the placement of NVIDIA's ModelOpt for residual networks.
    """
    model = onnx.load(source)
    graph = model.graph
    body = convolutional_body(model, spared)
    names = {node.name for node in body}
    readers = quantised_readers(model, body)
    check_ranges(readers, ranges, source)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Conv" and node.name in names:
            nodes.append(quantise_weights(model, node))
        nodes.append(node)
        for tensor in node.output:
            if tensor in readers:
                nodes += quantise_tensor(model, tensor, ranges[tensor])
    for tensor, uses in readers.items():
        for node, place in uses:
            node.input[place] = f"{tensor}_dq"
    rewritten = [copy_node(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(rewritten)
    del graph.value_info[:]
    check_quantisers(model)
    save(model, target)


def copy_node(node: NodeProto) -> NodeProto:
    """Copy a node out of its graph, so that the graph's list can be cleared."""
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def quantised_readers(
    model: ModelProto, body: Sequence[NodeProto]
) -> dict[str, list[tuple[NodeProto, int]]]:
    """Say which tensors are quantised, and which inputs of the body read them so."""
    readers: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in body:
        if node.op_type in ("Conv", "MaxPool"):
            readers.setdefault(node.input[0], []).append((node, 0))
        elif node.op_type == "Add":
            place = skip_branch(model, node)
            if place is not None:
                readers.setdefault(node.input[place], []).append((node, place))
    return readers


def skip_branch(model: ModelProto, add: NodeProto) -> int | None:
    """Find which input of an Add is the skip branch beside a convolution's.

    It is not a convolution's output, or that of a 1x1 convolution beside a 3x3 one.

    Returns:
        None where there is no such pair: for a sum of two like convolutions, or of none.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    kernels = {tensor.name: list(tensor.dims)[2:] for tensor in model.graph.initializer}
    skips = []
    for place, name in enumerate(add.input):
        node = producers.get(name)
        if node is None or node.op_type != "Conv" or kernels[node.input[1]] == [1, 1]:
            skips.append(place)
    return skips[0] if len(skips) == 1 else None


def quantise_tensor(model: ModelProto, name: str, span: tuple[float, float]) -> list[NodeProto]:
    """Put Q and DQ behind a tensor, symmetric about 0."""
    scale = np.array(max(abs(span[0]), abs(span[1])) / INT8_MAX, float_type(model))
    scale = np.maximum(scale, np.finfo(scale.dtype).smallest_subnormal)  # TensorRT refuses 0
    quantiser = [f"{name}_scale", f"{name}_zero_point"]
    add_initializer(model, quantiser[0], np.asarray(scale))
    add_initializer(model, quantiser[1], np.array(0, np.int8))
    return [
        helper.make_node("QuantizeLinear", [name, *quantiser], [f"{name}_q"], name=f"{name}_Q"),
        helper.make_node(
            "DequantizeLinear", [f"{name}_q", *quantiser], [f"{name}_dq"], name=f"{name}_DQ"
        ),
    ]


def quantise_weights(model: ModelProto, conv: NodeProto) -> NodeProto:
    """Replace a convolution's weights with int8 ones, a scale for each output channel."""
    name = conv.input[1]
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    weights = numpy_helper.to_array(tensor).astype(np.float32)
    model.graph.initializer.remove(tensor)
    greatest = FEW_STEPS if has_few_steps(weights) else INT8_MAX  # on the steps they have
    scales = np.abs(weights).max(axis=(1, 2, 3)) / greatest
    scales = scales.astype(float_type(model))
    # A scale of 0 is refused by TensorRT; a channel of zeros has it, or a small one in FP16.
    scales = np.maximum(scales, np.finfo(scales.dtype).smallest_subnormal)
    steps = np.rint(weights / scales.astype(np.float32)[:, None, None, None])
    add_initializer(model, f"{name}_q", steps.clip(-INT8_MAX, INT8_MAX).astype(np.int8))
    add_initializer(model, f"{name}_scale", scales)
    add_initializer(model, f"{name}_zero_point", np.zeros(len(scales), np.int8))
    conv.input[1] = f"{name}_dq"
    inputs = [f"{name}_q", f"{name}_scale", f"{name}_zero_point"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_DQ", axis=0)


def has_few_steps(weights: np.ndarray) -> bool:
    """Whether every output channel's weights (O, I, H, W) lie on 64 steps either way."""
    weights = weights.astype(np.float64)
    scales = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / FEW_STEPS
    steps = weights / np.maximum(scales, DEAD)
    # A quarter of a step is more than FP16's rounding of a weights file; dead channels are dust.
    return bool(np.abs(steps - np.rint(steps)).max(where=scales > DEAD, initial=0) <= 0.25)


def add_initializer(model: ModelProto, name: str, value: np.ndarray) -> None:
    """Add a constant to the graph."""
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def float_type(model: ModelProto) -> np.dtype:
    """The type that the graph's convolutions compute in: float32 or float16."""
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Conv"}
    (kind,) = {t.data_type for t in model.graph.initializer if t.name in biases}
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))


def check_ranges(tensors: Mapping[str, object], ranges: Ranges, source: Path) -> None:
    """Refuse ranges that do not cover a graph."""
    missing = [name for name in tensors if name not in ranges]
    if missing:
        raise ExportError(
            f"no range for {len(missing)} tensors of {source} ({', '.join(missing[:5])}); "
            "measure them anew: `videofer calibrate <faces>`"
        )


def convolutional_body(model: ModelProto, spared: Collection[str] = ()) -> list[NodeProto]:
    """List the convolutions, and the Relus, MaxPools and Adds that follow them.

    The same operators behind a fully connected layer are not of the body: they cost nothing.

    Args:
        spared: names of convolutions left in floating point, with the Relus, MaxPools and Adds
            behind them alone.
    """
    body = []
    made: set[str] = set()  # what the body gives
    for node in model.graph.node:
        if node.op_type == "Conv":
            taken = node.input[1].removesuffix(".weight") not in spared
        else:
            taken = node.op_type in BODY_OPERATORS and bool(made & set(node.input))
        if taken:
            body.append(node)
            made |= set(node.output)
    return body


def quantisable_tensors(path: Path) -> list[str]:
    """Name the tensors of a float32 graph whose ranges the two arrows need, in their order."""
    body = convolutional_body(onnx.load(path))
    return list(dict.fromkeys(name for node in body for name in (node.input[0], *node.output)))


def check_quantisers(model: ModelProto) -> None:
    """Refuse quantisers that TensorRT refuses, or takes to mean something else.

    It reads a missing zero-point, and one of uint8, as int8: half the range would be cut off, and
    it builds such a graph with a warning or none. A bias it wants in floating point.

    Raises:
        ExportError: naming the first such node.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        takes_bias = node.op_type in BIASED and len(node.input) > 2
        if takes_bias and makers.get(node.input[2]) == "DequantizeLinear":
            name = node.name or node.output[0]
            raise ExportError(f"{name}: its bias is quantised; expected floating point")
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if len(node.input) < 3 or node.input[2] not in constants:
            raise ExportError(f"{node.name}: no constant zero-point; expected int8 zeros")
        zero_point = numpy_helper.to_array(constants[node.input[2]])
        if zero_point.dtype != np.int8 or zero_point.any():
            raise ExportError(
                f"{node.name}: zero-point is {zero_point.dtype} {np.unique(zero_point)[:3]}; "
                "expected int8 zeros"
            )


def save(model: ModelProto, path: Path) -> None:
    """Check a graph and write it."""
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
