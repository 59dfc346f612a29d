"""The peers are measured on the same job: every way gives the same features, or is not timed."""

import re
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, copy_repository, faces

from benchmarks import peers
from benchmarks.peer_servers import processes
from benchmarks.peer_servers.embedder import Embedder
from benchmarks.peer_servers.processes import PeerError
from benchmarks.peers import Bench, Contender
from networks.checkpoint import Source

COMPILED = "PyTorch compiled, FP32"
PEERS_ARE_SET_UP = (processes.ENVIRONMENT / ".installed").is_file()
IN_THEIR_OWN = [
    *("OpenVINO, FP32", "OpenVINO, INT8, throughput hint"),
    *(peers.FASTAPI, peers.LITSERVE, peers.LITSERVE_BATCHING),
]


@pytest.fixture(scope="module")
def bench(repository, server, tmp_path_factory):
    """The shipped weights, exported for the tests, and their Triton."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("peers")
        patch.setattr(peers, "BUILD", folder)
        patch.setattr(peers, "LOGS", folder)
        patch.setattr(processes, "LOGS", folder)
        with Bench(
            repository, Source(path=ROOT / "weights" / "fan.safetensors", network="fan")
        ) as bench:
            bench.servers["model_repository ort_fp32"] = server
            yield bench


def processes_of(repository):
    """The ids of the peers' processes that run a repository's models."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text()
            if "benchmarks.peer_servers" in command and str(repository) in command:
                found.append(int(path.parent.name))
        except OSError:
            continue  # ended meanwhile
    return found


@pytest.mark.parametrize("name", [peers.EAGER, peers.IN_PROCESS_FP32, *peers.IN_PROCESS_INT8])
def test_ways_in_this_process_give_the_same_features(bench, name):
    contender = peers.WAYS[name](bench)
    peers.check(name, contender, bench)
    batch = re.search(r"batches of (\d+)", name)
    assert contender.job(2) == 2 * int(batch[1] if batch else peers.CLIP_FRAMES)


@pytest.mark.parametrize("name", [peers.NAIVE, *peers.OURS])
def test_tritons_ours_and_the_naive_one_give_the_same_answers(bench, name):
    contender = peers.WAYS[name](bench)
    peers.check(name, contender, bench)
    assert contender.job(1) == peers.NUM_CLIENTS * peers.CLIP_FRAMES


def test_a_client_that_is_free_asks_for_what_is_left():
    asked = Counter()
    rest_is_done = threading.Event()

    def slow(clip):
        asked["slow"] += 1
        if asked["slow"] > 1:  # once it is asked beforehand, for the features to be checked
            assert rest_is_done.wait(5)
        return clip

    def quick(clip):
        asked["quick"] += 1
        if asked["quick"] == 7:
            rest_is_done.set()
        return clip

    contender = peers.served([slow, quick], faces(1), "FP32")
    assert contender.job(4) == 8
    assert asked["quick"] >= 7
    assert asked.total() == 1 + 8


@pytest.mark.skipif(not PEERS_ARE_SET_UP, reason="`make bench-peers` sets up .venv-peers")
@pytest.mark.parametrize("name", IN_THEIR_OWN)
def test_peers_of_another_environment_give_the_same_features_and_leave_nothing(bench, name):
    with Bench(bench.repository, bench.source) as own:
        contender = peers.WAYS[name](own)
        peers.check(name, contender, own)
        assert contender.job(1) in (peers.CLIP_FRAMES, peers.NUM_CLIENTS * peers.CLIP_FRAMES)
        assert processes_of(own.repository)
    assert not processes_of(own.repository)


def test_a_worker_that_never_answers_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".installed").touch()
    monkeypatch.setattr(processes, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(processes, "LOGS", tmp_path)
    monkeypatch.setattr(processes, "WORD_TIMEOUT_S", 0.5)
    worker = processes.PeerWorker("silent", name="silent")
    worker.command = ["-c", "import time; time.sleep(60)"]
    with pytest.raises(PeerError, match=r"did not say 'ready' within 0\.5 s"), worker:
        pass
    assert worker.process.returncode is not None


def test_a_web_server_answers_with_the_features_of_a_clips_bytes(bench):
    embedder = Embedder(bench.graph("FP32"))
    clip = faces(5)
    features = np.frombuffer(embedder.answer(clip.tobytes()), np.float32).reshape(5, 512)
    np.testing.assert_allclose(features, embedder.embed(clip), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", [b"", b"half a frame"])
def test_a_web_server_refuses_what_is_not_whole_frames(bench, body):
    with pytest.raises(ValueError, match="expected frames of 150528"):
        bench.embedder("FP32").answer(body)


def test_a_way_that_gives_something_else_is_not_timed(bench):
    answer = bench.expected("features")[:, ::-1]
    for precision in ("FP32", "INT8"):
        with pytest.raises(PeerError, match="other way: its features are not those"):
            peers.check("other way", Contender(answer, lambda times: times, precision), bench)


def test_ways_in_int8_are_held_against_fp32_and_not_against_each_other(bench):
    expected = bench.expected("features")
    noise = np.random.default_rng(0).standard_normal((2, *expected.shape)).astype(np.float32)
    noise *= 0.15 * np.linalg.norm(expected, axis=1)[:, None] / expected.shape[1] ** 0.5
    one, other = expected + noise[0], expected + noise[1]  # as two engines round
    assert peers.agreement(one, other) < peers.LEAST_AGREEMENT["INT8"]
    for answer in (one, other):
        peers.check("an engine", Contender(answer, lambda times: times, "INT8"), bench)
    with pytest.raises(PeerError, match="an engine: its features are not those"):
        peers.check("an engine", Contender(one, lambda times: times, "FP32"), bench)


def test_without_a_compiler_compiled_pytorch_is_skipped_in_one_line(bench, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(peers, "TURN_S", 0.0)
    ways, skipped = peers.start(bench, [peers.IN_PROCESS_FP32, COMPILED])
    assert list(ways) == [peers.IN_PROCESS_FP32]
    assert capsys.readouterr().err == f"peers: {skipped[0]}\n"
    assert "no-such-compiler" in skipped[0]


def test_the_report_has_every_way_with_its_ratio_to_eager_pytorch_and_names_what_was_skipped():
    ours = "Triton, INT8, `fan`"
    rates = {
        peers.EAGER: [100.0, 110.0, 90.0],
        peers.IN_PROCESS_INT8[0]: [300.0, 330.0, 270.0],
        peers.IN_PROCESS_INT8[3]: [400.0, 440.0, 360.0],
        peers.FASTAPI: [125.0, 137.5, 112.5],
        ours: [250.0, 275.0, 225.0],
    }
    report = "\n\n".join(peers.to_sections(rates, 3, ["Something was skipped: it is not here."]))
    assert f"| {ours} | 250.0 | 237.5 to 262.5 | 2.50 | 2.50 to 2.50 |" in report
    # Served INT8 is held against the fastest batch in process.
    assert f"| {ours} | {peers.IN_PROCESS_INT8[3]} | 0.62 | 0.62 to 0.62 |" in report
    assert f"| {ours} | {peers.FASTAPI} | 2.00 | 2.00 to 2.00 |" in report
    assert "- Something was skipped: it is not here." in report


def test_a_run_prints_its_report_and_keeps_it(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "REPOSITORY", repository)
    monkeypatch.setattr(peers, "TURN_S", 0.0)
    assert peers.main(["--rounds", "2", "--only", "batches of 4", "--out", str(tmp_path)]) == 0
    report = (tmp_path / "peers.md").read_text()
    assert capsys.readouterr().out == report
    assert "| ONNX Runtime, INT8, batches of 4 |" in report


def test_only_some_of_the_ways_can_be_chosen(capsys):
    assert peers.choose([]) == list(peers.WAYS)
    assert peers.choose(["litserve", "naive"]) == [
        peers.LITSERVE,
        peers.LITSERVE_BATCHING,
        peers.NAIVE,
    ]
    with pytest.raises(SystemExit) as ended:
        peers.main(["--only", "tensorflow"])
    assert ended.value.code == 2
    assert "no way is called 'tensorflow'" in capsys.readouterr().err


@pytest.mark.parametrize("only", ["batches of 16", "naive", "Triton, INT8"])
def test_a_missing_export_ends_in_one_line(tmp_path, monkeypatch, capsys, only):
    monkeypatch.setattr(peers, "REPOSITORY", copy_repository(tmp_path / "model_repository"))
    assert peers.main(["--only", only, "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("peers: model_repository/fan")
    assert line.endswith("is not there; `videofer export` writes it")


def test_an_environment_that_is_not_set_up_ends_in_one_line(
    repository, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(peers, "REPOSITORY", repository)
    monkeypatch.setattr(processes, "ENVIRONMENT", tmp_path / ".venv-peers")
    assert peers.main(["--only", "FastAPI", "--out", str(tmp_path)]) == 1
    expected = "peers: .venv-peers is not set up; `make bench-peers` does it\n"
    assert capsys.readouterr().err == expected


def test_the_peers_environment_is_pinned_and_has_no_package_that_sends_events():
    pins = peers.PINS.read_text()
    wanted = (ROOT / "requirements" / "peers.in").read_text()
    for package in re.findall(r"^(\w+)", wanted, re.M):
        assert re.search(rf"^{package}==", pins, re.M), package
    assert "telemetry==" not in pins.replace("opentelemetry", "")
