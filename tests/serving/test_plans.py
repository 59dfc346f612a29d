"""A plan that does not fit the server is refused before the server starts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tensorrt_rtx
import tensorrt_rtx_libs
from conftest import ROOT, copy_repository

from export.profiles import PLANS
from export.to_plan import Gpu, find_gpu, make_plan, manifest_path
from serving import ServingError
from serving.command import main
from serving.plans import ASK_TENSORRT, Host, check_plan, find_host

VERSION = ".".join(tensorrt_rtx.__version__.split(".")[:4])
HERE = Host(VERSION, "NVIDIA H200", "9.0")
LIBRARY = Path(tensorrt_rtx_libs.__file__).parent / "libtensorrt_rtx.so.1"


@pytest.fixture
def plan(tmp_path, repository, build):
    """A small plan and its manifest, as `videofer engines` writes them."""
    made = PLANS[2]
    copy_repository(tmp_path / "model_repository")
    graph = tmp_path / made.graph
    graph.parent.mkdir(parents=True)
    graph.write_bytes((build / made.precision / graph.name).read_bytes())
    make_plan(tensorrt_rtx, Gpu("NVIDIA H200", "9.0"), made, tmp_path)
    return tmp_path / made.path


def test_plan_that_fits_is_let_through(plan, tmp_path):
    assert check_plan(plan, HERE, tmp_path, "26.11") is None  # and raised nothing


def test_plan_without_its_graph_is_let_through(plan, tmp_path):
    # A machine that only serves has model_repository/ and no build/.
    (tmp_path / PLANS[2].graph).unlink()
    assert check_plan(plan, HERE, tmp_path, "26.11") is None


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (
            replace(HERE, tensorrt="11.4.0.106"),
            r"built with TensorRT 1\.7\.1\.\d+, and the server has 11.4.0.106",
        ),
        # The very build: TensorRT refuses a plan of another one of the same version.
        (replace(HERE, tensorrt=f"{VERSION}0"), rf"built with TensorRT {VERSION}, .* {VERSION}0;"),
        (replace(HERE, gpu="NVIDIA L4"), r"built for NVIDIA H200 .*9\.0.* this is NVIDIA L4"),
        (replace(HERE, compute_capability="8.9"), r"built for NVIDIA H200 .*8\.9"),
    ],
)
def test_plan_for_another_host_is_refused(plan, tmp_path, host, words):
    with pytest.raises(ServingError, match=words + r".*videofer engines"):
        check_plan(plan, host, tmp_path, "26.11")


def test_plan_of_a_changed_graph_is_refused(plan, tmp_path):
    with (tmp_path / PLANS[2].graph).open("ab") as graph:
        graph.write(b" ")
    with pytest.raises(
        ServingError, match=r"fan_attention.onnx has changed since .*videofer engines"
    ):
        check_plan(plan, HERE, tmp_path, "26.11")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no manifest that can be read"),
        ("{", "no manifest that can be read"),
        ("[]", "not a manifest"),
        ('{"tensorrt": "1.7.1"}', "lacks a part of it"),
    ],
)
def test_plan_without_a_manifest_is_refused(plan, tmp_path, content, words):
    if content is None:
        manifest_path(plan).unlink()
    else:
        manifest_path(plan).write_text(content)
    with pytest.raises(ServingError, match=words):
        check_plan(plan, HERE, tmp_path, "26.11")


def test_cut_plan_is_refused(plan, tmp_path):
    plan.write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(ServingError, match="is not what its manifest describes"):
        check_plan(plan, HERE, tmp_path, "26.11")


def test_edited_manifest_is_refused(plan, tmp_path):
    content = json.loads(manifest_path(plan).read_text())
    manifest_path(plan).write_text(json.dumps({**content, "tensorrt": "12.0.0"}))
    with pytest.raises(ServingError, match=r"built with TensorRT 12\.0\.0"):
        check_plan(plan, HERE, tmp_path, "26.11")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("precision", "int8", "is int8 by its manifest, and fp16 by its name"),
        ("profile", {"features": [[1], [8], [64]]}, "for up to 64 frames, .* max_batch_size 128"),
        ("profile", {"features": "8"}, "profile cannot be read"),
    ],
)
def test_plan_that_does_not_fit_its_config_is_refused(plan, tmp_path, key, value, words):
    config = plan.parents[1] / "config.pbtxt"  # as if attention were batched by 128 frames
    config.write_text(config.read_text().replace("max_batch_size: 0", "max_batch_size: 128"))
    content = json.loads(manifest_path(plan).read_text())
    manifest_path(plan).write_text(json.dumps({**content, key: value}))
    with pytest.raises(ServingError, match=words + ".*videofer engines"):
        check_plan(plan, HERE, tmp_path, "26.11")


def put_on_path(folder, monkeypatch, **scripts):
    """Put commands of our own on an otherwise empty PATH."""
    for name, script in scripts.items():
        command = folder / name.replace("_", "-")
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_host_is_what_the_container_and_the_gpu_say(tmp_path, monkeypatch):
    docker = "echo '== greetings =='; echo 11.4.0.106"
    put_on_path(tmp_path, monkeypatch, docker=docker, nvidia_smi="echo 'NVIDIA H200, 9.0'")
    assert find_host("image") == Host("11.4.0.106", "NVIDIA H200", "9.0")


def test_container_is_asked_for_all_four_numbers_of_its_tensorrt(tmp_path):
    # TensorRT-RTX's library answers the same functions, and stands in for the container's.
    (tmp_path / "libnvinfer.so.11").symlink_to(LIBRARY)
    told = subprocess.run(
        [sys.executable, "-c", ASK_TENSORRT],
        env={"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{VERSION}\n"


@pytest.mark.parametrize("docker", ["exit 125", "true"])
def test_container_that_cannot_be_asked_is_told_so(tmp_path, monkeypatch, docker):
    put_on_path(tmp_path, monkeypatch, docker=docker, nvidia_smi="echo 'NVIDIA H200, 9.0'")
    with pytest.raises(ServingError, match="docker run --rm image true"):
        find_host("image")


def test_builder_and_launcher_mean_the_same_gpu(tmp_path, monkeypatch):
    two = "echo 'NVIDIA A, 9.0'; echo 'NVIDIA B, 8.9'"
    put_on_path(tmp_path, monkeypatch, docker="echo 11.4.0", nvidia_smi=two)
    host = find_host("image")
    assert Gpu(host.gpu, host.compute_capability) == find_gpu() == Gpu("NVIDIA A", "9.0")


def test_rebuild_for_a_container_is_told_as_a_command(plan, tmp_path):
    host = replace(HERE, tensorrt="11.4.0")
    words = "videofer engines --image nvcr.io/nvidia/tensorrt --release 26.12"
    with pytest.raises(ServingError, match=words):
        check_plan(plan, host, tmp_path, "26.12")


def test_serving_refuses_a_plan_that_does_not_fit_before_it_starts(
    plan, tmp_path, monkeypatch, capsys
):
    repository = tmp_path / "model_repository"
    embedder = repository / "fan_embedder" / "1" / "model.plan"
    embedder.parent.mkdir(exist_ok=True)
    embedder.write_bytes(plan.read_bytes())
    manifest_path(embedder).write_text(manifest_path(plan).read_text())
    commands = tmp_path / "commands"
    commands.mkdir()
    docker = f'echo "$@" >> {tmp_path}/asked; echo 12.3.4'
    put_on_path(commands, monkeypatch, docker=docker, nvidia_smi="echo 'NVIDIA H200, 9.0'")
    assert main(["--platform", "trt_fp16", "--repository", str(repository)]) == 1
    assert "and the server has 12.3.4; rebuild it" in capsys.readouterr().err
    assert "tritonserver --model-repository" not in (tmp_path / "asked").read_text()


def test_manifest_speaks_of_the_project_alone(plan):
    assert str(ROOT) not in manifest_path(plan).read_text()
