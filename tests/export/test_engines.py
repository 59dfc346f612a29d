"""Plans are built from graphs that compile, kept while they fit, and never left half-written.

TensorRT-RTX stands for TensorRT: the same parser, builder and API, on a machine without a GPU.
"""

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from conftest import ROOT
from onnx import TensorProto, helper, numpy_helper

from base.errors import ExportError, FerError
from export import to_plan
from export.check_engines import check_graph
from export.profiles import FEATURES, FRAMES, PLANS, Profile, Span
from export.to_plan import Gpu, make_plans, manifest_path, only_builder
from serving.platforms import read_config

GPU = Gpu("NVIDIA H200", "9.0")
FAN = PLANS[:3]  # the embedder in FP16 and INT8, the attention
SMALL = Profile(tensor="x", frame=(4, 8, 8), low=1, common=2, high=4)


@pytest.fixture
def project(tmp_path, repository, build):
    """A project folder with the graphs of the shipped weights, and no plans."""
    for plan in FAN:
        graph = tmp_path / plan.graph
        graph.parent.mkdir(parents=True, exist_ok=True)
        graph.write_bytes((build / plan.precision / graph.name).read_bytes())
    return tmp_path


def stamps(project):
    """When each plan was written."""
    return [(project / plan.path).stat().st_mtime_ns for plan in FAN]


def rebuilt(project, trt=tensorrt_rtx, gpu=GPU):
    """Build again; return which plans were written anew."""
    before = stamps(project)
    make_plans(trt, gpu, project)
    return [old != new for old, new in zip(before, stamps(project), strict=True)]


def save_graph(path, nodes, initializers=(), dtype=TensorProto.FLOAT):
    """Write a small graph from x (n, 4, 8, 8) to y."""
    x = helper.make_tensor_value_info("x", dtype, ["n", 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(value, name) for name, value in initializers]
    graph = helper.make_graph(nodes, "small", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.model}-{plan.precision}")
def test_every_graph_of_a_plan_compiles_for_its_profile(plan, repository, build):
    graph = build / plan.precision / f"{plan.model}.onnx"
    assert check_graph(graph.read_bytes(), plan.profile)


@pytest.mark.parametrize("model", ["fan_embedder", "fan_attention"])
def test_fp32_graphs_compile_too(model, repository):
    profile = {"fan_embedder": FRAMES, "fan_attention": FEATURES}[model]
    assert check_graph((repository / model / "1" / "model.onnx").read_bytes(), profile)


def test_check_fails_on_bytes_that_move_before_the_cast(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["turned"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = save_graph(tmp_path / "bytes.onnx", nodes, dtype=TensorProto.UINT8)
    with pytest.raises(ExportError, match="must have type Float"):
        check_graph(graph.read_bytes(), SMALL)


def quantised(tmp_path, zero_point):
    """A graph of one Q and one DQ, with the zero-point given, or none."""
    constants = [("scale", np.array(0.1, np.float32))]
    names = ["scale"]
    if zero_point is not None:
        constants.append(("zero", zero_point))
        names.append("zero")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *names], ["q"], name="Q"),
        helper.make_node("DequantizeLinear", ["q", *names], ["y"], name="DQ"),
    ]
    return save_graph(tmp_path / "q.onnx", nodes, constants)


@pytest.mark.parametrize(
    "zero_point",
    [np.array(0, np.uint8), np.array(128, np.uint8), np.array(5, np.int8), None],
    ids=["uint8 0", "uint8 128", "int8 5", "none"],
)
def test_check_fails_on_a_zero_point_that_is_not_int8_zero(tmp_path, zero_point):
    with pytest.raises(ExportError, match="expected int8 zeros"):
        check_graph(quantised(tmp_path, zero_point).read_bytes(), SMALL)


def test_check_passes_an_int8_zero_point_of_zero(tmp_path):
    assert check_graph(quantised(tmp_path, np.array(0, np.int8)).read_bytes(), SMALL)


@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_check_fails_on_a_bias_behind_a_dequantiser(tmp_path, dtype):
    constants = [
        ("weights", np.ones((2, 4, 1, 1), np.float32)),
        ("bias", np.ones(2, dtype)),
        ("scale", np.array(0.1, np.float32)),
        ("zero", np.array(0, np.int8)),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["bias", "scale", "zero"], ["b"], name="DQ"),
        helper.make_node("Conv", ["x", "weights", "b"], ["y"], name="C"),
    ]
    with pytest.raises(ExportError, match="C: its bias is quantised"):
        check_graph(save_graph(tmp_path / "bias.onnx", nodes, constants).read_bytes(), SMALL)


def test_check_fails_on_what_is_no_graph():
    with pytest.raises(ExportError, match="not an ONNX file"):
        check_graph(b"no graph", SMALL)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.model}-{plan.precision}")
def test_tensorrt_leaves_open_what_the_config_leaves_open(plan, repository, build):
    # Triton's backend refuses a plan whose dims are fixed where the config's say -1.
    graph = build / plan.precision / f"{plan.model}.onnx"
    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    network = builder.create_network(0)
    assert tensorrt_rtx.OnnxParser(network, tensorrt_rtx.Logger()).parse(graph.read_bytes())
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    config = read_config(ROOT / "model_repository" / plan.model, "trt_fp16")
    batch = [-1] if config.max_batch_size else []
    assert {output.name: list(output.shape) for output in outputs} == {
        output.name: batch + list(output.dims) for output in config.output
    }


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.model}-{plan.precision}")
def test_plan_is_the_one_that_a_config_loads(plan):
    model = ROOT / "model_repository" / plan.model
    platforms = {"fp16": ["trt_fp16"], "int8": ["trt_int8"]}[plan.precision]
    for platform in platforms:
        config = read_config(model, platform)
        assert config.default_model_filename == plan.filename
        (declared,) = config.input
        assert declared.name == plan.profile.tensor
        assert plan.profile.low == 1  # a clip may be a single frame, and a batch
        if config.max_batch_size:  # frames are the batch
            assert config.max_batch_size == plan.profile.high
            assert tuple(declared.dims) == plan.profile.frame
        else:
            frame = (-1 if isinstance(dim, Span) else dim for dim in plan.profile.frame)
            assert tuple(declared.dims) == (-1, *frame)


def test_warm_up_stays_within_the_profiles():
    for plan in PLANS:
        platform = {"fp16": "trt_fp16", "int8": "trt_int8"}[plan.precision]
        for sample in read_config(ROOT / "model_repository" / plan.model, platform).model_warmup:
            (tensor,) = sample.inputs.values()
            batched = read_config(ROOT / "model_repository" / plan.model, platform).max_batch_size
            frames = sample.batch_size if batched else tensor.dims[0]
            assert plan.profile.low <= frames <= plan.profile.high


def test_every_plan_gets_a_manifest_that_says_what_it_is(project, capsys):
    make_plans(tensorrt_rtx, GPU, project)
    for plan in FAN:
        content = (project / plan.path).read_bytes()
        manifest = json.loads(manifest_path(project / plan.path).read_text())
        assert len(content) > 100_000
        assert manifest["tensorrt"] == tensorrt_rtx.__version__
        assert (manifest["gpu"], manifest["compute_capability"]) == ("NVIDIA H200", "9.0")
        assert (manifest["precision"], manifest["onnx"]) == (plan.precision, str(plan.graph))
        assert manifest["onnx_sha256"] == to_plan.sha256(project / plan.graph)
        assert manifest["plan_sha256"] == to_plan.sha256(project / plan.path)
        assert manifest["profile"] == {
            plan.profile.tensor: [list(shape) for shape in plan.profile.shapes]
        }
        assert manifest["build_seconds"] >= 0
    printed = capsys.readouterr().out
    assert f"[3/3] {PLANS[2].path} (fp16)" in printed
    timings = list((project / "build" / "timing").iterdir())
    assert [path.name for path in timings] == [f"{tensorrt_rtx.__version__}-NVIDIA-H200.cache"]


def test_unchanged_inputs_rebuild_nothing(project):
    make_plans(tensorrt_rtx, GPU, project)
    assert rebuilt(project) == [False, False, False]


def test_changed_graph_rebuilds_its_plan_alone(project):
    make_plans(tensorrt_rtx, GPU, project)
    graph = project / PLANS[1].graph
    model = onnx.load(graph)
    model.doc_string = "another"
    onnx.save(model, graph)
    assert rebuilt(project) == [False, True, False]


def test_another_gpu_or_tensorrt_rebuilds_all(project):
    make_plans(tensorrt_rtx, GPU, project)
    assert rebuilt(project, gpu=Gpu("NVIDIA L4", "8.9")) == [True] * 3
    newer = SimpleNamespace(**{**vars(tensorrt_rtx), "__version__": "99.0.0"})
    assert rebuilt(project, trt=newer, gpu=Gpu("NVIDIA L4", "8.9")) == [True] * 3


@pytest.mark.parametrize("fault", ["cut plan", "no manifest", "edited manifest", "no JSON"])
def test_damaged_plan_is_built_again(project, fault):
    make_plans(tensorrt_rtx, GPU, project)
    plan = project / PLANS[0].path
    manifest = manifest_path(plan)
    if fault == "cut plan":
        plan.write_bytes(plan.read_bytes()[:1000])
    elif fault == "no manifest":
        manifest.unlink()
    elif fault == "edited manifest":
        manifest.write_text(manifest.read_text().replace("fp16", "int8"))
    else:
        manifest.write_text("{")
    assert rebuilt(project) == [True, False, False]


def test_full_disk_leaves_no_half_plan(project, monkeypatch):
    def fill(path, content):
        with path.open("wb") as file:
            file.write(content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(FerError, match=r"model.plan cannot be written \(No space left"):
        make_plans(tensorrt_rtx, GPU, project)
    assert not list((project / "model_repository").rglob("*.*"))


def test_failed_rebuild_leaves_the_old_plan_with_the_manifest_that_tells_its_age(project):
    make_plans(tensorrt_rtx, GPU, project)
    before = to_plan.sha256(project / PLANS[0].graph)
    (project / PLANS[0].graph).write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"build/fp16/fan_embedder.onnx: .* does not take"):
        make_plans(tensorrt_rtx, GPU, project)
    manifest = json.loads(manifest_path(project / PLANS[0].path).read_text())
    assert manifest["onnx_sha256"] == before


def test_weights_without_ranges_get_their_fp16_plans(project, capsys):
    (project / PLANS[1].graph).unlink()
    make_plans(tensorrt_rtx, GPU, project)
    there = [(project / plan.path).is_file() for plan in FAN]
    assert there == [True, False, True]
    assert "left out: build/int8/fan_embedder.onnx is not there" in capsys.readouterr().out


def test_cuda_that_does_not_start_is_told_in_words(project):
    class Builder:
        def __init__(self, log):
            log.log(tensorrt_rtx.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    broken = SimpleNamespace(**{**vars(tensorrt_rtx), "Builder": Builder})
    with pytest.raises(ExportError, match="does not start: CUDA initialization failure"):
        make_plans(broken, GPU, project)


def test_timings_that_tensorrt_refuses_are_begun_anew(project, monkeypatch):
    refused = []

    class Config:
        """A builder's configuration that takes no timings but new ones."""

        def __init__(self, config):
            object.__setattr__(self, "real", config)

        def __getattr__(self, name):
            return getattr(self.real, name)

        def __setattr__(self, name, value):
            setattr(self.real, name, value)

        def create_timing_cache(self, content):
            object.__setattr__(self, "content", content)
            return self.real.create_timing_cache(b"")

        def set_timing_cache(self, timings, ignore_mismatch):
            refused.append(bool(self.content))
            return not self.content

    class Builder(tensorrt_rtx.Builder):
        def create_builder_config(self):
            return Config(super().create_builder_config())

        def build_serialized_network(self, network, config):
            return super().build_serialized_network(network, config.real)

    picky = SimpleNamespace(**{**vars(tensorrt_rtx), "Builder": Builder})
    cache = to_plan.timing_cache(picky, GPU, project)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"of another driver")
    make_plans(picky, GPU, project)
    assert refused[:2] == [True, False]
    assert all((project / plan.path).is_file() for plan in FAN)


def test_second_build_waits_for_the_first_and_says_so(project, capfd):
    done = []

    def second():
        make_plans(tensorrt_rtx, GPU, project)
        done.append(True)

    with only_builder(project / "build"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(1)
        assert not done
    thread.join(60)
    assert done
    assert "another `videofer engines` is at work here; waiting" in capfd.readouterr().err


def run_engines(*arguments, **environment):
    """Run `videofer engines` with a PATH of the test's."""
    command = [sys.executable, "-m", "videofer", "engines", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_machine_without_a_gpu_is_told_so_in_one_sentence(tmp_path):
    done = run_engines(PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "no NVIDIA GPU answers `nvidia-smi` here" in done.stderr
    assert "videofer check-engines" in done.stderr


def test_machine_without_tensorrt_is_told_so_in_one_sentence(tmp_path):
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0'\n")
    nvidia_smi.chmod(0o755)
    # Where TensorRT is installed, it must not be found: this would build real plans.
    (tmp_path / "tensorrt.py").write_text("raise ImportError('hidden')")
    done = run_engines(PATH=f"{tmp_path}:/bin:/usr/bin", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "TensorRT is not installed" in done.stderr
    assert "videofer engines --image nvcr.io/nvidia/tensorrt" in done.stderr


def test_machine_without_docker_is_told_so_in_one_sentence(tmp_path):
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    done = run_engines("--image", "nvcr.io/nvidia/tensorrt", PATH=f"{tmp_path}:/bin:/usr/bin")
    words = "engines: --image builds in a container: no docker engine answers `docker info` here\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", words)


def test_container_is_that_of_the_servers_release():
    built_by = ["python3", "-m", "export.to_plan"]
    for image, expected in (
        ("nvcr.io/nvidia/tensorrt", "nvcr.io/nvidia/tensorrt:26.09-py3"),
        ("host:5000/tensorrt", "host:5000/tensorrt:26.09-py3"),
        ("mine:latest", "mine:latest"),
    ):
        assert to_plan.docker_command(image, "26.09")[-4:] == [expected, *built_by]


def test_old_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13.3.9"))
    with pytest.raises(ExportError, match=r"TensorRT is 10.13.3.9; expected 10.14 or newer"):
        to_plan.find_tensorrt()


def test_builder_needs_nothing_but_tensorrt():
    # NVIDIA's container has no torch, no onnx, and need not have numpy.
    program = (
        "import sys; import export.to_plan; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'onnx', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"
