"""The model repository is the contract between export/ and clients/.

These tests read it as Triton does, but need neither Triton nor a GPU.
"""

import ast
import sys

import pytest
from conftest import ROOT, copy_repository, offer
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from networks.entries import NETWORKS
from serving import ServingError
from serving.platforms import platform_names, read_config, read_platform

REPOSITORY = ROOT / "model_repository"
MODELS = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
PLATFORM_CONFIGS = sorted(REPOSITORY.glob("*/configs/*.pbtxt"))
PLATFORMS = platform_names(REPOSITORY)
NUM_CLASSES = NETWORKS["fan"].num_classes
ENSEMBLES = [
    name for name in MODELS if read_config(REPOSITORY / name, "trt_fp16").platform == "ensemble"
]
OF_FRAMES = ["fan_embedder", "dan_frames", "ran_frames", "deep_emotion_frames"]


def contract(config):
    """What a client can see of a model: its tensors' names, dtypes, shapes and labels."""
    return {
        t.name: (t.data_type, list(t.dims), getattr(t, "label_filename", ""))
        for t in [*config.input, *config.output]
    }


def test_platforms_are_the_documented_ones():
    assert PLATFORMS == ["trt_fp16", "openvino_int8", "ort_fp32", "ort_int8", "trt_int8"]


@pytest.mark.parametrize("model", MODELS)
def test_model_is_named_after_its_folder(model):
    assert read_config(REPOSITORY / model, "trt_fp16").name == model


@pytest.mark.parametrize("path", PLATFORM_CONFIGS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_platform_config_keeps_the_contract(path):
    default = read_config(path.parents[1], "trt_fp16")
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    assert contract(config) == contract(default)
    assert config.max_batch_size == default.max_batch_size


@pytest.mark.parametrize("platform", ["ort_int8", "ort_fp32", "openvino_int8"])
def test_cpu_platform_never_falls_back_to_tensorrt(platform, repository):
    assert "tensorrt" not in read_platform(repository, platform).backends


def test_openvino_runs_what_is_int8_and_nothing_else(repository):
    for model in read_platform(repository, "openvino_int8").models:
        on_openvino, on_onnxruntime = (
            read_config(repository / model, name) for name in ("openvino_int8", "ort_int8")
        )
        assert on_openvino.default_model_filename == on_onnxruntime.default_model_filename
        is_int8 = on_openvino.default_model_filename == "model_int8.onnx"
        assert (on_openvino.backend == "openvino") == is_int8


@pytest.mark.parametrize("platform", ["trt_fp16", "trt_int8"])
def test_tensorrt_platform_is_tensorrt_throughout(platform, repository):
    assert read_platform(repository, platform).backends == {"tensorrt"}


def test_all_that_was_exported_is_served_and_nothing_else(repository, tmp_path):
    assert read_platform(repository, "ort_int8").models == tuple(MODELS)
    none = copy_repository(tmp_path / "model_repository")
    assert read_platform(none, "ort_int8").models == ("fan", "fan_attention", "fan_embedder")
    offer(none, "dan")
    assert read_platform(none, "ort_int8").models == ("dan", "dan_frames", "score_fusion")


def test_unknown_platform_is_refused_with_the_known_ones():
    with pytest.raises(
        ServingError, match=r"'nonsense' .* trt_fp16, openvino_int8, ort_fp32, ort_int8, trt_int8"
    ):
        read_platform(REPOSITORY, "nonsense")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_ensemble_names_only_tensors_its_models_have(ensemble, platform):
    for step in read_config(REPOSITORY / ensemble, platform).ensemble_scheduling.step:
        has = set(contract(read_config(REPOSITORY / step.model_name, platform)))
        assert {*step.input_map, *step.output_map} <= has


@pytest.mark.parametrize("ensemble", [name for name in ENSEMBLES if name != "fan_frames"])
def test_every_network_keeps_the_contract(ensemble):
    fan, other = (
        contract(read_config(REPOSITORY / name, "trt_fp16")) for name in ("fan", ensemble)
    )
    extras = {"self_weights", "region_weights", "theta"}
    assert other.keys() - extras == fan.keys() - extras
    for name in other.keys() - extras:
        kind, dims, labels = fan[name]
        allowed = [dims, [-1 if dim == NUM_CLASSES else dim for dim in dims]]
        assert other[name] in [(kind, dims, labels) for dims in allowed]


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_no_model_of_an_ensemble_takes_what_the_ensemble_gives_out(ensemble):
    # Triton 2.51 ends in "unexpected deadlock" where only another of its outputs is asked for.
    config = read_config(REPOSITORY / ensemble, "trt_fp16")
    taken = {name for step in config.ensemble_scheduling.step for name in step.input_map.values()}
    assert not taken & {output.name for output in config.output}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_export_knows_how_many_classes_are_served(platform):
    config = read_config(REPOSITORY / "fan_attention", platform)
    (logits,) = [tensor for tensor in config.output if tensor.name == "logits"]
    assert list(logits.dims) == [NUM_CLASSES]


def test_ensemble_gives_what_its_last_model_gives():
    fan, attention = (read_config(REPOSITORY / m, "trt_fp16") for m in ("fan", "fan_attention"))
    assert list(fan.output) == list(attention.output)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("model", OF_FRAMES)
def test_queue_of_frames_is_bounded(model, platform):
    policy = read_config(REPOSITORY / model, platform).dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    # Triton lets a request shorten a timeout only where there is one.
    assert policy.default_timeout_microseconds > 0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_model_of_a_platform_is_warm_before_it_is_ready(platform):
    for model in set(MODELS) - set(ENSEMBLES):
        samples = read_config(REPOSITORY / model, platform).model_warmup
        assert samples
        assert all(sample.batch_size > 0 for sample in samples)  # 0 is skipped without a word


def test_every_logit_has_a_label(repository):
    for model in ("fan", "fan_attention"):
        config = read_config(repository / model, "trt_fp16")
        (probabilities,) = [t for t in config.output if t.name == "probabilities"]
        labels = (repository / model / probabilities.label_filename).read_text().splitlines()
        assert len(labels) == probabilities.dims[0]


def imported(path):
    """Name the top-level packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    ("room", "foreign"),
    [
        (
            "clients",
            {"torch", "tensorrt", "networks", "export", "serving", "training", "benchmarks"},
        ),
        (
            "serving",
            {"torch", "onnx", "cv2", "networks", "export", "clients", "training", "benchmarks"},
        ),
        (
            "networks",
            {"tritonclient", "cv2", "onnx", "onnxruntime", "tensorrt", "export", "clients"}
            | {"serving", "training", "benchmarks"},
        ),
        ("export", {"tritonclient", "cv2", "clients", "serving", "training", "benchmarks"}),
        ("training", {"tritonclient", "cv2", "serving", "onnx", "onnxruntime", "tensorrt"}),
    ],
)
def test_rooms_do_not_know_each_other(room, foreign):
    for path in (ROOT / room).rglob("*.py"):
        # The front door stands before every room, and no room goes through it.
        assert not set(imported(path)) & (foreign | {"videofer"}), path


def test_what_every_room_builds_on_needs_the_standard_library_alone():
    for path in (ROOT / "base").rglob("*.py"):
        assert set(imported(path)) <= {*sys.stdlib_module_names, "base"}, path
