"""One arrow of the chain: a torch module -> an ONNX file, in FP32 or FP16.

    FrameEmbedder   ->  fan_embedder.onnx    frames (N, 224, 224, 3) uint8 -> features (N, 512)
    FrameAttention  ->  fan_attention.onnx   features (N, 512) -> logits, probabilities, ...

Comes after `export.checkpoint`, before `export.to_int8` and `export.repository`. FP16 is the
module traced in half, for TensorRT 11 has no flag for it; what goes in and out keeps its dtype.
Every file stands alone (no external data) and takes any number of frames. tests/test_parity.py
holds it to the module.
"""

import copy
import itertools
import logging
import warnings
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.fan import FRAME_SIZE, NUM_FEATURES, ClipAnswer, FrameAttention, FrameEmbedder

Precision = Literal["fp32", "fp16"]

OPSET = 20  # the newest that TensorRT 10.14, 11 and ONNX Runtime 1.20 all read


def embedder_to_onnx(embedder: FrameEmbedder, path: Path, precision: Precision = "fp32") -> None:
    """Trace the embedder, its BatchNorms folded into the convolutions before them."""
    frames = torch.zeros(2, FRAME_SIZE, FRAME_SIZE, 3, dtype=torch.uint8)
    folded = to_precision(fold_batch_norms(embedder), precision)
    trace(folded, frames, "frames", ["features"], path)


def attention_to_onnx(attention: FrameAttention, path: Path, precision: Precision = "fp32") -> None:
    """Trace the attention model for clips of any length; its sums over frames stay FP32."""
    module = to_precision(copy.deepcopy(attention), precision)
    trace(module, torch.zeros(2, NUM_FEATURES), "features", list(ClipAnswer._fields), path)


def to_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """Give a module's weights a precision."""
    return module.half() if precision == "fp16" else module.float()


def trace(module: nn.Module, example: Tensor, name: str, outputs: list[str], path: Path) -> None:
    """Trace `module` on `example`, whose first axis becomes dynamic, into one ONNX file."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
            input_names=[name],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("num_frames", min=1)},),
        )
    strip(path)


def strip(path: Path) -> None:
    """Drop what tells of the machine that traced: the same weights make the same file anywhere."""
    model = onnx.load(path)
    for item in [model.graph, *model.graph.node, *model.graph.value_info]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def fold_batch_norms(embedder: FrameEmbedder) -> FrameEmbedder:
    """Copy the embedder with every BatchNorm folded into the convolution it follows.

    Done here, not left to the exporter, so that the graph is plain Conv and Relu on every
    version of torch; the INT8 graph puts its quantisers by that shape.
    """
    folded = copy.deepcopy(embedder).eval()
    for module in list(folded.modules()):
        names = [name for name, _ in module.named_children()]
        for conv, norm in itertools.pairwise(names):
            if isinstance(getattr(module, norm), nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, fused)
                setattr(module, norm, nn.Identity())
    return folded
