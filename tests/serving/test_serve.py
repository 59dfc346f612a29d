"""`videofer serve` starts what was asked for, or says in one sentence why it cannot."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, copy_repository, offer

import serving.container
from serving import ServingError
from serving.choose import choose_platform
from serving.command import main
from serving.container import docker_command, run_container
from serving.embedded import EmbeddedServer
from serving.launch import Ports, free_ports, triton_flags
from serving.platforms import read_platform

REPOSITORY = ROOT / "model_repository"


def fails(capsys, *arguments):
    """Run the command, expect it to fail, return its one line."""
    assert main(list(arguments)) == 1
    error = capsys.readouterr().err
    assert error.startswith("serve: ")
    assert error.count("\n") == 1
    return error


def test_serve_lists_the_platforms(capsys):
    platforms = "trt_fp16, openvino_int8, ort_fp32, ort_int8, trt_int8"
    assert f"it has {platforms}" in fails(capsys, "--platform", "nonsense")


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    """A machine with neither docker nor nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_a_platform_the_best_is_served_that_is_whole(tmp_path, repository, no_gpu):
    platform, reason = choose_platform(repository, "26.11")
    assert platform.name == "openvino_int8"
    assert reason == "the fastest without TensorRT (trt_fp16 lacks docker)"
    partly = copy_repository(tmp_path / "model_repository")
    offer(partly, "fan")
    for model in ("fan_embedder", "fan_attention"):
        (partly / model / "1").mkdir(exist_ok=True)
        (partly / model / "1" / "model.onnx").write_text("a graph")
    platform, reason = choose_platform(partly, "26.11")
    assert platform.name == "ort_fp32"
    assert reason == (
        "trt_fp16 lacks docker; openvino_int8 lacks model_repository/fan_embedder/1/model_int8.onnx"
    )


def test_plans_that_fit_are_served_before_all_else(repository, monkeypatch):
    monkeypatch.setattr("serving.choose.missing_parts", lambda platform: [])
    monkeypatch.setattr("serving.choose.check_plans", lambda platform, release: None)
    platform, reason = choose_platform(repository, "26.11")
    assert (platform.name, reason) == ("trt_fp16", "its plans fit this GPU")


def test_plans_that_do_not_fit_are_told_and_passed_over(repository, monkeypatch):
    def refuse(platform, release):
        raise ServingError("model.plan was built for another GPU")

    monkeypatch.setattr("serving.choose.missing_parts", lambda platform: [])
    monkeypatch.setattr("serving.choose.check_plans", refuse)
    platform, reason = choose_platform(repository, "26.11")
    assert platform.name == "openvino_int8"
    assert "model.plan was built for another GPU" in reason


def test_tensorrt_platform_names_all_that_is_missing(tmp_path, no_gpu, capsys):
    repository = copy_repository(tmp_path / "model_repository")
    error = fails(capsys, "--platform", "trt_fp16", "--repository", str(repository))
    assert "lacks docker; an NVIDIA GPU" in error
    assert "model_repository/fan_embedder/1/model.plan" in error
    assert "`--platform openvino_int8` serves without them" in error


def test_platform_without_its_artefacts_says_which(tmp_path, capsys):
    repository = copy_repository(tmp_path / "model_repository")
    error = fails(capsys, "--platform", "ort_fp32", "--repository", str(repository))
    assert "model_repository/fan_attention/1/model.onnx" in error
    assert "videofer export" in error


def test_int8_without_ranges_says_what_to_do(tmp_path, capsys):
    repository = copy_repository(tmp_path / "model_repository")
    error = fails(capsys, "--platform", "ort_int8", "--repository", str(repository))
    assert "model_int8.onnx" in error
    assert "videofer calibrate <faces>" in error
    assert "`--platform ort_fp32`" in error
    assert "`videofer export --model <network>` brings back shipped ones" in error


def test_port_in_use_is_refused_before_the_start(repository, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ["--platform", "ort_fp32", "--repository", str(repository)]
        error = fails(capsys, *arguments, "--grpc-port", port)
    assert f"port {port}" in error
    assert "--grpc-port" in error


def test_ports_that_are_not_three_are_refused(repository, capsys):
    arguments = ["--platform", "ort_fp32", "--repository", str(repository)]
    error = fails(capsys, *arguments, "--http-port", "18010", "--grpc-port", "18010")
    assert "ports 18010, 18010 and 8002 are not three; --http-port, --grpc-port" in error


def test_model_that_does_not_load_ends_the_start_with_tritons_words(tmp_path, repository):
    broken = copy_repository(tmp_path / "model_repository")
    for model in ("fan_embedder", "fan_attention"):
        (broken / model / "1").mkdir(exist_ok=True)
        (broken / model / "1" / "model.onnx").write_text("not a graph")
    for model in ("fan", "fan_attention"):
        labels = (repository / model / "labels.txt").read_text()
        (broken / model / "labels.txt").write_text(labels)
    with (
        pytest.raises(ServingError, match=r"ended while starting: .*log: .*triton.log"),
        EmbeddedServer(read_platform(broken, "ort_fp32")),
    ):
        pass


def test_command_finds_the_server_and_its_exit_code_is_kept(repository):
    program = "import os, socket; socket.create_connection(os.environ['TRITON_URL'].split(':')); "
    launcher = [sys.executable, "-m", "videofer", "serve", "--platform", "ort_fp32", "--free-ports"]
    command = [*launcher, "--repository", repository, "--", sys.executable, "-c"]
    done = subprocess.run([*command, program + "raise SystemExit(7)"], cwd=ROOT)
    assert done.returncode == 7


def test_every_address_is_loopback():
    flags = triton_flags(read_platform(REPOSITORY, "ort_fp32"), "/models", Ports())
    addresses = [flag for flag in flags if "-address=" in flag]
    assert addresses == [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]


def test_default_platform_gets_no_config_name():
    # An empty --model-config-name stops Triton.
    assert not [
        flag
        for flag in triton_flags(read_platform(REPOSITORY, "trt_fp16"), "/models", Ports())
        if "config-name" in flag
    ]


def test_container_is_locked_down():
    platform = read_platform(REPOSITORY, "trt_int8")
    command = docker_command(platform, Ports(1, 2, 3), "26.11", "SECRET")
    assert command[:2] == ["docker", "run"]
    assert "nvcr.io/nvidia/tritonserver:26.11-py3" in command
    assert f"{REPOSITORY}:/models:ro" in command
    restricted = "model-repository,shared-memory,trace,logging:admin=SECRET"
    expected = {
        "--model-config-name=trt_int8",
        "--model-control-mode=explicit",
        "--load-model=fan",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--allow-client-shm=false",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--http-max-input-size=67108864",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        "--exit-timeout-secs=30",
        "--grpc-port=2",
    }
    assert {*expected, "--read-only", "--cap-drop=ALL"} <= set(command)


@pytest.mark.parametrize("release", ["24.10", "26.06", "26.10", "latest", ""])
def test_release_with_known_vulnerabilities_is_refused(release):
    with pytest.raises(ServingError, match="or newer"):
        docker_command(read_platform(REPOSITORY, "trt_fp16"), Ports(), release, "SECRET")


def test_container_is_run_where_nothing_is_missing(tmp_path, monkeypatch):
    without_gpu(monkeypatch)
    stub_docker(tmp_path, monkeypatch, 'echo "$@" > ran; exit 5')
    monkeypatch.setenv("TRITON_ADMIN_SECRET", "told")
    assert run_container(read_platform(REPOSITORY, "trt_fp16"), free_ports(), "26.11") == 5
    assert ":admin=told" in (tmp_path / "ran").read_text()


def test_container_is_stopped_in_good_order_on_ctrl_c(tmp_path, monkeypatch):
    without_gpu(monkeypatch)
    stub_docker(
        tmp_path,
        monkeypatch,
        # A moment first: Ctrl-C is meant for a container that runs, not one that is being started.
        "trap 'sleep 1; touch stopped; exit 0' TERM; sleep 2; kill -INT $PPID; sleep 60 & wait",
    )
    with pytest.raises(KeyboardInterrupt):
        run_container(read_platform(REPOSITORY, "trt_fp16"), free_ports(), "26.11")
    assert (tmp_path / "stopped").exists()


def without_gpu(monkeypatch):
    """Say that nothing is missing and every plan fits."""
    monkeypatch.setattr(serving.container, "missing_parts", lambda platform: [])
    monkeypatch.setattr(serving.container, "find_host", lambda image: None)
    monkeypatch.setattr(serving.container, "check_plan", lambda *plan_and_host: None)


def stub_docker(folder, monkeypatch, script):
    """Put a command `docker` of our own first on the PATH, and go to its folder."""
    docker = folder / "docker"
    docker.write_text(f"#!/bin/bash\n{script}\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(folder)
