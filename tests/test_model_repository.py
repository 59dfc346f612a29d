"""The model repository is the contract between export/ and clients/.

These tests read it as Triton does, but need neither Triton nor a GPU.
"""

import ast

import pytest
from conftest import ROOT
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.__main__ import NUM_CLASSES
from serving import ServingError
from serving.platforms import platform_names, read_config, read_platform

REPOSITORY = ROOT / "model_repository"
MODELS = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
PLATFORM_CONFIGS = sorted(REPOSITORY.glob("*/configs/*.pbtxt"))
PLATFORMS = platform_names(REPOSITORY)


def contract(config):
    """What a client can see of a model: its tensors' names, dtypes, shapes and labels."""
    return {
        t.name: (t.data_type, list(t.dims), getattr(t, "label_filename", ""))
        for t in [*config.input, *config.output]
    }


def test_platforms_are_the_documented_ones():
    assert PLATFORMS == ["default", "cpu", "cpu_fp32", "int8"]


@pytest.mark.parametrize("model", MODELS)
def test_model_is_named_after_its_folder(model):
    assert read_config(REPOSITORY / model, "default").name == model


@pytest.mark.parametrize("path", PLATFORM_CONFIGS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_platform_config_keeps_the_contract(path):
    default = read_config(path.parents[1], "default")
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    assert contract(config) == contract(default)
    assert config.max_batch_size == default.max_batch_size


@pytest.mark.parametrize("platform", ["cpu", "cpu_fp32"])
def test_cpu_platform_never_falls_back_to_tensorrt(platform):
    assert read_platform(REPOSITORY, platform).backends == {"onnxruntime"}


@pytest.mark.parametrize("platform", ["default", "int8"])
def test_tensorrt_platform_is_tensorrt_throughout(platform):
    assert read_platform(REPOSITORY, platform).backends == {"tensorrt"}


def test_unknown_platform_is_refused_with_the_known_ones():
    with pytest.raises(ServingError, match=r"'nonsense' .* default, cpu, cpu_fp32, int8"):
        read_platform(REPOSITORY, "nonsense")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_ensemble_names_only_tensors_its_models_have(platform):
    for step in read_config(REPOSITORY / "fan", platform).ensemble_scheduling.step:
        has = set(contract(read_config(REPOSITORY / step.model_name, platform)))
        assert {*step.input_map, *step.output_map} <= has


@pytest.mark.parametrize("platform", PLATFORMS)
def test_export_knows_how_many_classes_are_served(platform):
    config = read_config(REPOSITORY / "fan_attention", platform)
    (logits,) = [tensor for tensor in config.output if tensor.name == "logits"]
    assert list(logits.dims) == [NUM_CLASSES]


def test_ensemble_gives_what_its_last_model_gives():
    fan, attention = (read_config(REPOSITORY / m, "default") for m in ("fan", "fan_attention"))
    assert list(fan.output) == list(attention.output)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_embedder_queue_is_bounded(platform):
    policy = read_config(
        REPOSITORY / "fan_embedder", platform
    ).dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    # Triton lets a request shorten a timeout only where there is one.
    assert policy.default_timeout_microseconds > 0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_model_of_a_platform_is_warm_before_it_is_ready(platform):
    for model in ("fan_embedder", "fan_attention"):
        samples = read_config(REPOSITORY / model, platform).model_warmup
        assert samples
        assert all(sample.batch_size > 0 for sample in samples)  # 0 is skipped without a word


def test_every_logit_has_a_label(repository):
    for model in ("fan", "fan_attention"):
        config = read_config(repository / model, "default")
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
        ("clients", {"torch", "onnx", "onnxruntime", "tensorrt", "export", "serving", "training"}),
        ("serving", {"torch", "onnx", "cv2", "export", "clients", "training"}),
        ("export", {"tritonclient", "cv2", "clients", "serving", "training"}),
        ("training", {"tritonclient", "cv2", "serving", "onnx", "onnxruntime", "tensorrt"}),
    ],
)
def test_rooms_do_not_know_each_other(room, foreign):
    for path in (ROOT / room).rglob("*.py"):
        assert not set(imported(path)) & foreign, path
