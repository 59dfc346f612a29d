"""A real Triton serves FAN by its contract, alone and under concurrent clips, good ones and bad."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpcclient
from conftest import ROOT, copy_repository, faces
from tritonclient.utils import InferenceServerException

from clients.stream import FeatureStream
from clients.triton import TritonClient
from export.command import export
from export.faces import small_faces
from networks.checkpoint import LABELS, read_checkpoint
from networks.fan import ClipAnswer
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

OUTPUTS = list(ClipAnswer._fields)
ORACLE = {"rtol": 1e-4, "atol": 1e-3}  # as in test_parity.py


def infer(client, model, name, array, datatype=None):
    """Send one tensor as it is, without our client's checks; return the outputs by name."""
    datatype = datatype or {"uint8": "UINT8", "float32": "FP32"}[str(array.dtype)]
    tensor = grpcclient.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    result = client.client.infer(model, [tensor])
    return {out.name: result.as_numpy(out.name) for out in result.get_response().outputs}


def embedder_counts(client):
    """Frames and batches that the embedder has run so far."""
    (stats,) = client.client.get_inference_statistics("fan_embedder").model_stats
    return stats.inference_count, stats.execution_count


def is_alive(pid):
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid):
    """The process ids below a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [d for c in children for d in descendants(int(c))]


def wait_until(condition, seconds=60):
    """Poll; whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def test_ensemble_answers_as_its_graphs_do(client, repository):
    frames = faces(5)
    embedder, attention = (
        onnxruntime.InferenceSession(repository / model / "1" / "model.onnx")
        for model in ("fan_embedder", "fan_attention")
    )
    (features,) = embedder.run(["features"], {"frames": frames})
    expected = dict(zip(OUTPUTS, attention.run(OUTPUTS, {"features": features}), strict=True))
    answer = infer(client, "fan", "frames", frames)
    assert answer.keys() == expected.keys()
    for name in OUTPUTS:
        # The same runtime on the same numbers; its threads may share the sums differently.
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["relation", "self"])
def test_ensemble_agrees_with_the_authors_code(oracles, oracle_checkpoint, tmp_path, variant):
    oracle = np.load(oracles / "fan.npz")
    repository = copy_repository(tmp_path / "model_repository")
    checkpoint = read_checkpoint(oracle_checkpoint, labels=LABELS["afew"], variant=variant)
    export(checkpoint, None, repository, tmp_path)
    platform = read_platform(repository, "ort_fp32")
    with EmbeddedServer(platform) as server, TritonClient(server.grpc_url) as client:
        assert client.contract.labels == LABELS["afew"]
        for video, expected in enumerate(oracle[f"{variant}_attention_logits"]):
            mine = oracle["video_index"] == video
            answer = infer(client, "fan", "frames", oracle["frames"][mine])
            np.testing.assert_allclose(answer["logits"], expected, **ORACLE)
            np.testing.assert_allclose(answer["self_weights"], oracle["alpha"][mine], **ORACLE)
            if variant == "relation":
                np.testing.assert_allclose(answer["weights"], oracle["weights"][mine], **ORACLE)
            features = infer(client, "fan_embedder", "frames", oracle["frames"][mine])["features"]
            np.testing.assert_allclose(features, oracle["embedding"][mine], **ORACLE)


def test_int8_on_the_cpu_is_served_and_calls_the_sample_happy(repository, build, sample, predict):
    graph = build / "int8_cpu" / "fan_embedder.onnx"
    frames = faces(20)
    (expected,) = onnxruntime.InferenceSession(graph).run(["features"], {"frames": frames})
    platform = read_platform(repository, "ort_int8")
    with EmbeddedServer(platform) as server, TritonClient(server.grpc_url) as client:
        features = client.embed(frames)["features"]
        done = predict(sample, url=server.grpc_url)
    # The same integers; only the first and last layers are float.
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    assert done.stdout.startswith("happy  ")


def test_int8_of_either_engine_answers_nearly_as_fp32_for_every_network(
    server, repository, sample, predict
):
    frames, logits = small_faces(16), {}
    for name in ("ort_int8", "openvino_int8"):
        platform = read_platform(repository, name)
        with EmbeddedServer(platform) as running:
            for network in platform.networks:
                with TritonClient(running.grpc_url, network) as client:
                    logits[name, network] = client.ask(frames).frame_logits
            if name == "openvino_int8":
                with TritonClient(running.grpc_url) as client:
                    features = client.embed(frames)["features"]
                    alone = client.embed(frames[:1])["features"]
                done = predict(sample, url=running.grpc_url)
    for (_, network), found in logits.items():
        with TritonClient(server.grpc_url, network) as client:
            expected = client.ask(frames).frame_logits
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        # They round in other places, so each is held against FP32, and not one against the other.
        assert ((found * expected).sum(1) / lengths).min() > 0.99, network
    # A frame's features are its own, whatever it was batched with.
    np.testing.assert_allclose(alone, features[:1], atol=1e-5)
    assert done.stdout.startswith("happy  ")


def test_concurrent_clips_share_batches_and_each_gets_its_own_answer(client):
    clips = [faces(n, seed=n) for n in (3, 5, 7, 9, 11, 2, 4, 6)]
    alone = [infer(client, "fan", "frames", clip) for clip in clips]
    time.sleep(0.5)  # Triton answers first and counts a moment later
    frames_before, batches_before = embedder_counts(client)
    with ThreadPoolExecutor(len(clips)) as pool:
        together = list(pool.map(lambda clip: infer(client, "fan", "frames", clip), clips))
    num_frames = sum(map(len, clips))
    assert wait_until(lambda: embedder_counts(client)[0] - frames_before == num_frames)
    assert embedder_counts(client)[1] - batches_before < len(clips)
    for one, other in zip(alone, together, strict=True):
        for name in OUTPUTS:
            np.testing.assert_array_equal(one[name], other[name])


def test_answer_adds_up(client):
    answer = infer(client, "fan", "frames", faces(16))
    assert answer["weights"].sum() == pytest.approx(1, abs=1e-5)
    assert answer["probabilities"].sum() == pytest.approx(1, abs=1e-5)
    weighted = answer["weights"] @ answer["frame_logits"]
    np.testing.assert_allclose(answer["logits"], weighted, atol=1e-5)


def test_order_of_frames_does_not_matter(client):
    clip = faces(10)
    order = np.random.default_rng(4).permutation(10)
    answer = infer(client, "fan", "frames", clip)
    permuted = infer(client, "fan", "frames", np.ascontiguousarray(clip[order]))
    np.testing.assert_allclose(permuted["logits"], answer["logits"], atol=1e-5)
    np.testing.assert_allclose(permuted["weights"], answer["weights"][order], atol=1e-6)


@pytest.mark.parametrize("num_frames", [1, 40, 41, 97])
def test_clip_in_chunks_gets_the_answer_of_the_clip_in_one_piece(client, num_frames):
    clip = faces(num_frames)
    whole = client.ask(clip)
    with FeatureStream(client) as stream:
        for crop in clip:
            stream.add(7, crop)
        stream.flush()
        chunked = stream.pool(7)
    for name in ("logits", "probabilities", "shares", "frame_logits"):
        np.testing.assert_allclose(getattr(chunked, name), getattr(whole, name), atol=1e-5)


def test_clip_longer_than_a_request_is_answered(client):
    clip = faces(300)
    answer = client.pool(client.embed(clip))
    assert answer.shares.shape == (300,)
    assert answer.shares.sum() == pytest.approx(1, abs=1e-5)


BAD_FRAMES = {
    "no frames": (np.zeros((0, 224, 224, 3), np.uint8), None, "byte size mismatch"),
    "129 frames": (np.zeros((129, 224, 224, 3), np.uint8), None, "batch-size must be <= 128"),
    "wrong dtype": (np.zeros((2, 224, 224, 3), np.float32), "FP32", "expects 'UINT8'"),
    "wrong size": (np.zeros((2, 224, 192, 3), np.uint8), None, "unexpected shape"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_are_refused_and_the_server_stays_ready(client, case):
    array, datatype, words = BAD_FRAMES[case]
    with pytest.raises(InferenceServerException, match=words) as refusal:
        infer(client, "fan", "frames", array, datatype)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert client.client.is_server_ready()
    assert infer(client, "fan", "frames", faces(1))["logits"].shape == (7,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_numbers_are_refused(client, value):
    features = np.zeros((3, 512), np.float32)
    features[1, 2] = value
    with pytest.raises(InferenceServerException, match="NaN or infinite") as refusal:
        infer(client, "fan_attention", "features", features)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_features_of_no_frame_are_refused(client):
    with pytest.raises(InferenceServerException, match="expected at least 1"):
        infer(client, "fan_attention", "features", np.zeros((0, 512), np.float32))


def test_bad_requests_leave_concurrent_good_ones_unharmed(client):
    good = np.random.default_rng(0).random((4, 512), dtype=np.float32)
    bad = np.full((4, 512), np.nan, np.float32)
    expected = infer(client, "fan_attention", "features", good)["logits"]

    def send(array):
        try:
            return infer(client, "fan_attention", "features", array)["logits"]
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, [good, bad] * 8))
    assert all(isinstance(answer, InferenceServerException) for answer in answers[1::2])
    for answer in answers[::2]:
        np.testing.assert_array_equal(answer, expected)


def test_refusals_do_not_tell_of_the_servers_files(client):
    with pytest.raises(InferenceServerException) as refusal:
        infer(client, "fan_attention", "features", np.full((1, 512), np.nan, np.float32))
    assert "/" not in refusal.value.message()


def test_labels_come_from_the_server_in_the_order_of_the_logits(client, shipped):
    assert client.contract.labels == shipped.labels


def test_embedded_server_listens_on_loopback_alone(server):
    ports = {f"{port:04X}" for port in vars(server.ports).values()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]
    addresses = {address for address, port in listening if port in ports}
    # 127.0.0.1, as IPv4 and as IPv6 writes it.
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert len([port for _, port in listening if port in ports]) == 3


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_every_process_ends_with_the_launcher(repository, ending):
    command = [sys.executable, "-m", "videofer", "serve", "--platform", "ort_fp32", "--free-ports"]
    launcher = subprocess.Popen(
        [*command, "--repository", str(repository)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    assert "Ctrl-C stops it" in launcher.stdout.readline()
    started = descendants(launcher.pid)
    assert len(started) >= 4  # Triton and the stubs of its models
    os.kill(launcher.pid, ending)
    assert wait_until(lambda: not any(map(is_alive, started)))
    assert launcher.wait(10) == (-signal.SIGKILL if ending == signal.SIGKILL else 0)


def test_stopped_server_leaves_no_shared_memory(repository):
    with EmbeddedServer(read_platform(repository, "ort_fp32")) as server:
        assert list(Path("/dev/shm").glob(f"{server.shm_prefix}*"))
    assert not list(Path("/dev/shm").glob(f"{server.shm_prefix}*"))
