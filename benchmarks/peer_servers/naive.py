"""A Triton repository as one is first written: FP32 on the wire, one frame a request, no batching.

    fan_embedder/1/model.onnx  ->  <repository>/naive_embedder/   float32 [224, 224, 3], 0..255

The network and its weights are the same. Only its first step, from bytes to float32, is left to the
client, whose frames are therefore four times as large.
"""

from pathlib import Path

import onnx

from base.errors import ExportError
from base.files import write_whole
from serving.platforms import DEFAULT, Platform

MODEL = "naive_embedder"
CONFIG = f"""\
name: "{MODEL}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 1

input [ {{ name: "frames" data_type: TYPE_FP32 dims: [ 224, 224, 3 ] }} ]
output [ {{ name: "features" data_type: TYPE_FP32 dims: [ 512 ] }} ]

instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def write_repository(embedder: Path, repository: Path) -> Platform:
    """Write the repository, from the embedder's FP32 ONNX file; give what there is to serve."""
    folder = repository / MODEL
    graph = take_floats(onnx.load(embedder))
    write_whole(folder / "1" / "model.onnx", graph.SerializeToString())
    write_whole(folder / "config.pbtxt", CONFIG.encode())
    return Platform(
        name=DEFAULT,
        repository=repository,
        networks=(MODEL,),
        left_out={},
        models=(MODEL,),
        backends=frozenset({"onnxruntime"}),
        artefacts=(folder / "1" / "model.onnx",),
    )


def take_floats(model: onnx.ModelProto) -> onnx.ModelProto:
    """Have a graph that begins by casting its frames to float32 take float32 frames."""
    (frames,) = model.graph.input
    if any(node.op_type != "Cast" for node in model.graph.node if frames.name in node.input):
        raise ExportError(
            f"{frames.name!r} is not cast at once; expected a graph of `videofer export`"
        )
    frames.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model
