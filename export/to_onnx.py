"""One arrow of the chain: a torch module -> an ONNX file, in FP32 or FP16.

    FrameEmbedder   ->  fan_embedder.onnx    frames (N, 224, 224, 3) uint8 -> features (N, 512)
    FrameAttention  ->  fan_attention.onnx   features (N, 512) -> logits, probabilities, ...
    Dan             ->  dan_frames.onnx      frames -> frame_logits (N, C)
    ...

Comes after `networks.checkpoint`, before `export.to_int8` and `export.repository`. FP16 is the
module traced in half, for TensorRT 11 has no flag for it; what goes in and out keeps its dtype.
Every file stands alone (no external data) and takes any number of frames.
tests/export/test_parity.py holds it to the module.
"""

import copy
import itertools
import logging
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import nn
from torch.export import Dim
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from networks.entries import Part
from networks.preprocessing import Normaliser
from networks.resnet import ResNet18

Precision = Literal["fp32", "fp16"]

OPSET = 20  # the newest that TensorRT 10.14, 11 and ONNX Runtime 1.20 all read
EXAMPLE_LENGTH = 7  # of an axis that can have any length, while it is traced


def to_onnx(part: Part, path: Path, precision: Precision = "fp32") -> None:
    """Trace a model, what can be computed beforehand folded into its weights, into one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    module = narrow(fold_batch_norms(part.module))
    trace(part, to_precision(module, precision), path)
    model = onnx.load(path)
    strip(model)
    for output in part.counted:
        open_axis(model, output)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def to_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """Give a module's weights a precision."""
    return module.half() if precision == "fp16" else module.float()


def trace(part: Part, module: nn.Module, path: Path) -> None:
    """Trace `module`, the part's in some precision; its open axes become dynamic."""
    kind = torch.uint8 if part.tensor == "frames" else torch.float32
    example = torch.zeros(2, *(length or EXAMPLE_LENGTH for length in part.dims), dtype=kind)
    axes = {0: Dim("num_frames", min=1)}
    axes |= {i: Dim(f"length_{i}", min=2) for i, d in enumerate(part.dims, 1) if d is None}
    # The exporter tells its own developers about itself, at length.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=[part.tensor],
            output_names=list(part.outputs),
            dynamic_shapes=(axes,),
        )


def strip(model: ModelProto) -> None:
    """Drop what tells of the machine that traced: the same weights make the same file anywhere."""
    for item in [model.graph, *model.graph.node, *model.graph.value_info]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def open_axis(model: ModelProto, output: str) -> None:
    """Leave the last axis of an output open, though its length C is known.

    Triton's C++ backends want a config's dims to say -1 just where the graph's do, and a static
    config cannot say 7 for some weights and 8 for others. So the output becomes its own first
    min(C, N * C) columns: all of them, for N >= 1 frames, but no optimiser proves that.
    """
    graph = model.graph
    (value,) = [v for v in graph.output if v.name == output]
    dims = value.type.tensor_type.shape.dim
    closed, rows, most, end = (f"{output}_{name}" for name in ("closed", "rows", "most", "end"))
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [closed if name == output else name for name in names]
    constants = {"length": dims[-1].dim_value, "start": 0, "axis": len(dims) - 1}
    for name, number in constants.items():
        array = np.array([number], np.int64)
        graph.initializer.append(numpy_helper.from_array(array, f"{output}_{name}"))
    length, start, axis = (f"{output}_{name}" for name in constants)
    graph.node.extend(
        [
            helper.make_node("Shape", [closed], [rows], start=0, end=1),
            helper.make_node("Mul", [rows, length], [most]),
            helper.make_node("Min", [most, length], [end]),
            helper.make_node("Slice", [closed, start, end, axis], [output]),
        ]
    )
    dims[-1].dim_param = f"num_{output}"


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Copy a module with every BatchNorm folded into the layer it stands beside, and follows.

    Done here, not left to the exporter, so that the graph is plain Conv and Relu on every
    version of torch; the INT8 graph puts its quantisers by that shape.
    """
    folded = copy.deepcopy(module).eval()
    for room in list(folded.modules()):
        names = [name for name, _ in room.named_children()]
        for before, norm in itertools.pairwise(names):
            layer, batch_norm = getattr(room, before), getattr(room, norm)
            if isinstance(batch_norm, nn.BatchNorm2d):
                setattr(room, before, fuse_conv_bn_eval(layer, batch_norm))
            elif isinstance(batch_norm, nn.BatchNorm1d):
                setattr(room, before, fuse_linear_bn_eval(layer, batch_norm))
            else:
                continue
            setattr(room, norm, nn.Identity())
    return folded


def narrow(module: nn.Module) -> nn.Module:
    """Let a ResNet-18 behind a Normaliser that gives one channel have one.

    The sum over its first weight's channels would stay a node of the graph, and that weight no
    constant, which is what `export.to_int8` quantises.
    """
    normaliser = getattr(module, "normaliser", None)
    backbone = getattr(module, "backbone", None)
    if (
        isinstance(normaliser, Normaliser)
        and isinstance(backbone, ResNet18)
        and normaliser.channels < backbone.conv1.in_channels
    ):
        weight = nn.Parameter(backbone.narrow_weight())
        backbone.conv1.in_channels, backbone.conv1.weight = 1, weight
    return module
