"""TensorRT takes our graphs: TensorRT-RTX, which has its parser and builder, compiles them here.

It needs no GPU to build. That a graph builds says nothing about speed, nor about TensorRT's own
version of a kernel; it says that the graph breaks none of the rules they share.
"""

import onnx
import pytest
import tensorrt_rtx as trt
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2  # noqa: F401  its protobufs load before TensorRT's

from serving.platforms import read_config

MAX_CLIP_FRAMES = 65_536  # what fan_attention/config.pbtxt promises of its plan


class Errors(trt.ILogger):
    """Keeps TensorRT's errors; the first one is the cause, the rest is noise of a missing GPU."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.lines.append(message)


def compile_graph(path, shapes):
    """Build an engine from an ONNX file; return it, or raise with TensorRT's first error."""
    log = Errors()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise ValueError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, (low, common, high) in shapes.items():
        profile.set_shape(name, low, common, high)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(log.lines[0] if log.lines else "no engine, and no word of why")
    return bytes(engine)


def test_embedder_compiles_for_every_batch_that_its_config_allows(repository):
    largest = read_config(repository / "fan_embedder", "default").max_batch_size
    shapes = {"frames": [(n, 224, 224, 3) for n in (1, 32, largest)]}
    assert compile_graph(repository / "fan_embedder" / "1" / "model.onnx", shapes)


def test_attention_compiles_for_clips_of_any_length(repository):
    shapes = {"features": [(n, 512) for n in (1, 64, MAX_CLIP_FRAMES)]}
    assert compile_graph(repository / "fan_attention" / "1" / "model.onnx", shapes)


def test_graph_that_moves_bytes_before_the_cast_does_not_compile(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["frames"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["turned"], ["pixels"], to=TensorProto.FLOAT),
    ]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", 8, 8, 3])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph(nodes, "bytes", [frames], [pixels])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "bytes.onnx")
    with pytest.raises(ValueError, match="must have type Float"):
        compile_graph(tmp_path / "bytes.onnx", {"frames": [(n, 8, 8, 3) for n in (1, 2, 4)]})
