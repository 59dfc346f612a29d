"""An arrow of the chain: a float32 ONNX file + activation ranges -> INT8 for engines on a CPU.

    fp32 graph  ->  unsigned activations, signed weights       build/int8_cpu/<model>.onnx

It gives the same integers on every x86 CPU. Without VNNI, ONNX Runtime multiplies unsigned by
signed bytes in pairs, and a pair's sum is cut off at 16 bits (the instruction vpmaddubsw). So one
of the two has 7 bits, and no pair gets there:

    weights that lie on 64 steps either way   64 * 255 * 2 < 2^15    codes of 8 bits
    any others                               127 * 127 * 2 < 2^15    codes cut off at 127

`videofer train` leaves FAN's weights on 64 steps: docs/measured/quantisation.md.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from export.to_int8 import (
    BODY_OPERATORS,
    FEW_STEPS,
    INT8_MAX,
    Ranges,
    add_initializer,
    check_ranges,
    convolutional_body,
    has_few_steps,
    save,
)

UINT8_MAX = 255
CODE_MAX = 127  # of what a convolution reads whose weights take all of int8
LEAST_CODE, GREATEST_CODE = "least_code", "greatest_code"  # constants of the graph

Spans = dict[str, tuple[float, float]]  # tensor -> the values that its codes reach from and to


def to_int8_cpu(source: Path, ranges: Ranges, target: Path, spared: Collection[str] = ()) -> None:
    """Quantise a float32 graph as ONNX Runtime's CPU kernels want it.

    ONNX Runtime's own quantiser: Q/DQ around every operator, unsigned activations, signed weights
    with a scale per output channel, int32 biases. Before and after it, codes are kept small where
    weights multiply them, and what a graph's shape allows is done for the roundings.

    Args:
        source: a float32 graph.
        ranges: of the tensors that are quantised.
        target: the file to write.
        spared: names of convolutions left in floating point.
    """
    model = onnx.load(source)
    body = convolutional_body(model, spared)
    check_ranges(dict.fromkeys(quantised_tensors(body)), ranges, source)
    spans = {name: (min(0.0, low), max(0.0, high)) for name, (low, high) in ranges.items()}
    trim_branches(model, body, spans)
    body = without_last_sums(body)
    coarse = coarse_tensors(model, body)
    coarse = read_twice(model, body, spans, coarse)
    spread_codes(body, spans, coarse)
    model = quantise(model, body, {name: spans[name] for name in quantised_tensors(body)})
    give_back_floats(model, body)
    bound_products(model, coarse)
    save(model, target)


def quantised_tensors(body: Sequence[NodeProto]) -> list[str]:
    """Name what the body reads and gives, in order."""
    return list(dict.fromkeys(name for node in body for name in (node.input[0], *node.output)))


def convolutions(body: Sequence[NodeProto]) -> list[NodeProto]:
    """Choose the convolutions."""
    return [node for node in body if node.op_type == "Conv"]


def makers_of(nodes: Sequence[NodeProto]) -> dict[str, NodeProto]:
    """Say which node makes each tensor."""
    return {name: node for node in nodes for name in node.output}


def readers_of(model: ModelProto, name: str) -> list[NodeProto]:
    """List the nodes that read a tensor."""
    return [node for node in model.graph.node if name in node.input]


def trim_branches(model: ModelProto, body: Sequence[NodeProto], spans: Spans) -> None:
    """Spend no codes on what cannot pass the Relu behind an Add.

    A convolution's value below minus the greatest one that is added to it gives 0, as that bound
    itself does. Behind the last Add of FAN's, 47 is reached where 10 at most is added: codes for
    -47 to -10 would be lost.
    """
    for add in body:
        if add.op_type != "Add":
            continue
        if {node.op_type for node in readers_of(model, add.output[0])} != {"Relu"}:
            continue
        highs = [spans[name][1] for name in add.input if name in spans]
        if len(highs) != 2:
            continue
        for name, high in zip(add.input, reversed(highs), strict=True):
            if len(readers_of(model, name)) == 1:
                spans[name] = (max(spans[name][0], -high), spans[name][1])


def without_last_sums(body: Sequence[NodeProto]) -> list[NodeProto]:
    """Leave out the Adds, and the Relus behind them, that nothing in the body reads.

    They make the features, are small, and would be rounded once more for nobody.
    """
    makers = makers_of(body)
    kept = list(body)
    for node in reversed(body):
        first = makers.get(node.input[0])
        behind_add = node.op_type == "Relu" and first is not None and first.op_type == "Add"
        read = {name for other in kept for name in other.input}
        if (node.op_type == "Add" or behind_add) and not read & set(node.output):
            kept.remove(node)
    return kept


def coarse_tensors(model: ModelProto, body: Sequence[NodeProto]) -> set[str]:
    """Name what convolutions read whose weights need more than 64 steps: it gets 7 bits."""
    return {c.input[0] for c in convolutions(body) if not has_few_steps(weights_of(model, c))}


def read_twice(
    model: ModelProto, body: Sequence[NodeProto], spans: Spans, coarse: Collection[str]
) -> set[str]:
    """Have convolutions read what enters the body as two copies, where each has but 7 bits.

    One is read a quarter of a step lower, one a quarter higher, by the same weights halved: their
    mean has steps half as wide, 8 bits again. What enters is pixels, or few channels.

    Returns:
        coarse, with the new names.
    """
    made = makers_of(body)
    for name in sorted(set(coarse) - made.keys()):
        readers = [node for node in convolutions(body) if node.input[0] == name]
        if not all(map(is_plain, readers)):
            continue
        quarter = (spans[name][1] - spans[name][0]) / CODE_MAX / 4
        channels = weights_of(model, readers[0]).shape[1]
        offsets = np.repeat(np.array([-quarter, quarter], np.float32), channels)[:, None, None]
        twice, both = f"{name}_twice", f"{name}_both"
        add_initializer(model, f"{name}_offsets", offsets)
        nodes = [
            helper.make_node("Concat", [name, name], [both], name=f"{name}_Concat", axis=1),
            helper.make_node("Add", [both, f"{name}_offsets"], [twice], name=f"{name}_Offset"),
        ]
        place = list(model.graph.node).index(readers[0])
        for node in reversed(nodes):
            model.graph.node.insert(place, node)
        spans[twice] = spans[name]
        for conv in readers:
            halve_weights(model, conv)
            conv.input[0] = twice
        coarse = {twice if tensor == name else tensor for tensor in coarse}
    return set(coarse)


def is_plain(conv: NodeProto) -> bool:
    """Whether a convolution's groups are one."""
    return all(a.i == 1 for a in conv.attribute if a.name == "group")


def weights_of(model: ModelProto, conv: NodeProto) -> np.ndarray:
    """A convolution's weights, (outputs, inputs, height, width)."""
    (tensor,) = [t for t in model.graph.initializer if t.name == conv.input[1]]
    return numpy_helper.to_array(tensor)


def halve_weights(model: ModelProto, conv: NodeProto) -> None:
    """Give a convolution its weights for two copies of its input; their mean, not their sum."""
    half = weights_of(model, conv) / 2  # exact, and so are their int8 steps
    conv.input[1] += "_twice"
    add_initializer(model, conv.input[1], np.concatenate([half, half], axis=1))


def spread_codes(body: Sequence[NodeProto], spans: Spans, coarse: Collection[str]) -> None:
    """Let 127 codes do for the range of coarse tensors.

    The codes above, up to 255, are for those who add such a tensor and do not multiply it.
    """
    makers = makers_of(body)
    for name in coarse:
        while name in makers and makers[name].op_type == "MaxPool":
            name = makers[name].input[0]  # ONNX Runtime gives both of them one scale
        low, high = spans[name]
        spans[name] = (low, low + (high - low) * UINT8_MAX / CODE_MAX)


def quantise(model: ModelProto, body: Sequence[NodeProto], spans: Spans) -> ModelProto:
    """Run ONNX Runtime's quantiser: Q/DQ around every node of the body."""
    ranges = {name: tuple(np.float32(value) for value in span) for name, span in spans.items()}
    quantiser = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[node.name for node in body],
        nodes_to_exclude=[],
        op_types_to_quantize=BODY_OPERATORS,
        extra_options={},
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    return quantiser.model.model


def give_back_floats(model: ModelProto, body: Sequence[NodeProto]) -> None:
    """Give what is not of the body, and reads what the body reads, the float tensor again.

    ONNX Runtime's quantiser hands everyone who reads a tensor its quantised twin. Deep-Emotion's
    window would look at a picture in 8 bits because a convolution looks at it too.
    """
    suffix = "_DequantizeLinear_Output"
    inside = {node.name for node in body}
    made = {name for node in body for name in node.output}
    for node in model.graph.node:
        if node.name in inside or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for place, name in enumerate(node.input):
            twin = name.removesuffix(suffix)
            if twin != name and twin not in made:
                node.input[place] = twin


def bound_products(model: ModelProto, coarse: Collection[str]) -> None:
    """See that no pair of products leaves 16 bits, whatever the picture: by the graph alone."""
    makers = makers_of(model.graph.node)
    readers: dict[str, list[NodeProto]] = {}
    for conv in convolutions(model.graph.node):
        if conv.input[0] in makers and makers[conv.input[0]].op_type == "DequantizeLinear":
            readers.setdefault(conv.input[0], []).append(conv)
    if coarse:
        add_initializer(model, LEAST_CODE, np.array(0, np.uint8))
        add_initializer(model, GREATEST_CODE, np.array(CODE_MAX, np.uint8))
    for name, convs in readers.items():
        dequantiser = makers[name]
        if makers[dequantiser.input[0]].input[0] in coarse:
            cut_codes(model, dequantiser, convs)
            continue
        for conv in convs:
            lessen_steps(model, makers[conv.input[1]], makers[conv.input[2]])


def cut_codes(model: ModelProto, dequantiser: NodeProto, convs: Sequence[NodeProto]) -> None:
    """Cut the codes that convolutions read off at 127.

    Between Q and DQ, on integers: Q alone would cut at 255. Others who read the tensor, the Adds,
    read it as it was.
    """
    codes, *quantiser = dequantiser.input
    name, cut = dequantiser.output[0], f"{codes}_cut"
    inputs = [codes, LEAST_CODE, GREATEST_CODE]
    nodes = [
        helper.make_node("Clip", inputs, [cut], name=f"{codes}_Clip"),
        helper.make_node("DequantizeLinear", [cut, *quantiser], [f"{name}_cut"], name=cut),
    ]
    place = list(model.graph.node).index(dequantiser)
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    for conv in convs:
        conv.input[0] = f"{name}_cut"
    if not readers_of(model, name):
        model.graph.node.remove(dequantiser)


def lessen_steps(model: ModelProto, weights: NodeProto, bias: NodeProto) -> None:
    """Write weights of 64 steps as those, where the quantiser stretched them to 127.

    Args:
        weights: their DequantizeLinear.
        bias: its DequantizeLinear, whose scale is the product of the other two.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (weights, bias):
        for name, factor in ((node.input[0], FEW_STEPS / INT8_MAX), (node.input[1], 1)):
            old = numpy_helper.to_array(tensors[name])
            new = np.rint(old * factor) if factor != 1 else old * (INT8_MAX / FEW_STEPS)
            tensors[name].CopyFrom(numpy_helper.from_array(new.astype(old.dtype), name))
