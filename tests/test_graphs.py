"""What TensorRT and Triton ask of the ONNX files, read off the graphs themselves."""

import onnx
import pytest
from tritonclient.grpc import model_config_pb2

from serving.platforms import read_config

MODELS = ["fan_embedder", "fan_attention"]


@pytest.fixture(params=MODELS)
def model(request, repository):
    return request.param, onnx.load(repository / request.param / "1" / "model.onnx")


def dims(value):
    """A tensor's dims as Triton writes them: -1 where dynamic."""
    shape = value.type.tensor_type.shape.dim
    return [-1 if dim.dim_param else dim.dim_value for dim in shape]


def test_graph_is_one_file(model):
    _, graph = model
    assert not any(onnx.external_data_helper.uses_external_data(t) for t in graph.graph.initializer)


def test_first_consumer_of_the_frames_is_a_cast(repository):
    # TensorRT refuses a UINT8 tensor that meets anything else ("must have type Float, Half, ...").
    graph = onnx.load(repository / "fan_embedder" / "1" / "model.onnx").graph
    assert [node.op_type for node in graph.node if "frames" in node.input] == ["Cast"]


def test_embedder_is_convolutions_without_batch_norms(repository):
    graph = onnx.load(repository / "fan_embedder" / "1" / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 20
    assert "BatchNormalization" not in kinds


@pytest.mark.parametrize("platform", ["default", "int8", "cpu", "cpu_fp32"])
def test_graph_has_the_tensors_that_the_config_names(model, repository, platform):
    name, graph = model
    config = read_config(repository / name, platform)
    batch = [-1] if config.max_batch_size else []
    for declared, tensors in (
        (config.input, graph.graph.input),
        (config.output, graph.graph.output),
    ):
        expected = {t.name: batch + list(t.dims) for t in declared}
        assert {tensor.name: dims(tensor) for tensor in tensors} == expected


def test_frames_travel_as_bytes(repository):
    graph = onnx.load(repository / "fan_embedder" / "1" / "model.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    (frames,) = read_config(repository / "fan", "default").input
    assert frames.data_type == model_config_pb2.TYPE_UINT8
