"""What TensorRT and Triton ask of the ONNX files, read off the graphs themselves."""

import onnx
import pytest
from onnx_graph import Graph
from tritonclient.grpc import model_config_pb2

from export.profiles import PLANS
from serving.platforms import read_config

MODELS = sorted({plan.model for plan in PLANS})
OF_FRAMES = sorted({plan.model for plan in PLANS if plan.profile.tensor == "frames"})


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


@pytest.mark.parametrize("name", OF_FRAMES)
def test_first_consumer_of_the_frames_is_a_cast(repository, name):
    # TensorRT refuses a UINT8 tensor that meets anything else ("must have type Float, Half, ...").
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    readers = [node.op_type for node in graph.node if "frames" in node.input]
    assert [kind for kind in readers if kind != "Shape"] == ["Cast"]  # Shape reads no pixel


CONVOLUTIONS = {"fan_embedder": 20, "dan_frames": 20 + 4 * 4, "ran_frames": 20}


@pytest.mark.parametrize("name", OF_FRAMES)
def test_graph_is_convolutions_without_batch_norms(repository, name):
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == CONVOLUTIONS.get(name, 6)
    assert "BatchNormalization" not in kinds


def test_gray_pictures_cost_one_channel_and_no_pooling_on_their_way(repository):
    graph = Graph(repository / "fan_embedder" / "1" / "model.onnx")
    first = graph.of("Conv")[0]
    # A constant, not the sum over channels that the module takes: INT8 quantises constants.
    assert graph.constants[first.input[1]].shape == (64, 1, 7, 7)
    assert not graph.of("AveragePool")


# Triton's C++ backends refuse a config whose dims say -1 where the graph's do not.
@pytest.mark.parametrize(
    "platform", ["trt_fp16", "trt_int8", "ort_int8", "ort_fp32", "openvino_int8"]
)
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
    (frames,) = read_config(repository / "fan", "trt_fp16").input
    assert frames.data_type == model_config_pb2.TYPE_UINT8
