"""Every network behind the contract is asked, listed and drawn alike; toys stand for the real."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, faces, offer
from toy_networks import EXTRA_DIMS, LABELS, write_repository

from base.exported import record_path
from clients.errors import ModelMissing
from clients.faces import FACE_SIZE, FRAMING, align, unalign
from clients.reports.outlines import REGIONS, outline_regions, outline_window
from clients.stream import FeatureStream
from clients.triton import TritonClient
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

NETWORKS = sorted(LABELS)
EXTRA = {"ran": "region_weights", "deep_emotion": "theta", "fan": "self_weight"}


@pytest.fixture(scope="module")
def toy_repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("toys") / "model_repository")


@pytest.fixture(scope="module")
def toys(toy_repository):
    with EmbeddedServer(read_platform(toy_repository, "trt_fp16")) as running:
        yield running


@pytest.fixture
def ask(toys):
    """Run `videofer predict`, or another verb, against the toys."""

    def run(*arguments, verb="predict", url=toys.grpc_url):
        command = [sys.executable, "-P", "-m", "videofer", verb, *map(str, arguments)]
        environment = {**os.environ, "TRITON_URL": url, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")

    return run


@pytest.mark.parametrize("model", NETWORKS)
def test_labels_come_from_the_server_whether_or_not_dims_say_how_many(toys, model):
    with TritonClient(toys.grpc_url, model) as client:
        assert client.contract.labels == tuple(LABELS[model].split())


@pytest.mark.parametrize("model", NETWORKS)
def test_clip_in_chunks_gets_the_answer_of_the_clip_in_one_piece(toys, model):
    clip = faces(14)
    with TritonClient(toys.grpc_url, model) as client:
        whole = client.ask(clip)
        object.__setattr__(client.contract, "max_frames", 5)  # as if the server took no more
        with FeatureStream(client) as stream:
            for crop in clip:
                stream.add(1, crop)
            stream.flush()
            chunked = stream.pool(1)
    for name in ("logits", "probabilities", "shares", "frame_logits", *EXTRA_DIMS, "self_weights"):
        if getattr(whole, name) is None:
            assert getattr(chunked, name) is None
        else:
            np.testing.assert_allclose(getattr(chunked, name), getattr(whole, name), atol=1e-5)
    assert chunked.model_version == whole.model_version == "1"


def test_chunks_are_as_large_as_the_network_takes(toys):
    with TritonClient(toys.grpc_url, "ran") as client, FeatureStream(client) as stream:
        assert client.contract.max_frames == stream.limit == 16
        for crop in faces(40):
            stream.add(1, crop)
        stream.flush()
        answer = stream.pool(1)
    assert answer.region_weights.shape == (40, 6)
    np.testing.assert_allclose(answer.region_weights.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("model", NETWORKS)
def test_json_has_the_same_keys_for_every_network(ask, sample, model):
    result = json.loads(ask(sample, "--json", "--model", model, "--max-frames", 5).stdout)
    (track,) = result["tracks"]
    shapes = {"self_weight": (5,), "region_weights": (5, 6), "theta": (5, 2, 3)}
    given = {name for name in shapes if track["faces"][name] is not None}
    assert given == ({EXTRA.get(model)} - {None})
    for name in given:
        assert np.shape(track["faces"][name]) == shapes[name]
    assert list(track["probabilities"]) == LABELS[model].split()
    assert result["network"]["model"] == model


def test_list_names_each_network_on_one_line_and_no_part_of_one(ask):
    lines = ask(verb="networks").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == NETWORKS
    assert lines[0] == f"dan: version 1; 8 classes: {', '.join(LABELS['dan'].split())}"
    assert lines[-1].endswith("; also gives region_weights")


def test_list_as_json_says_the_same(ask):
    listed = json.loads(ask("--json", verb="networks").stdout)
    assert [network["model"] for network in listed] == NETWORKS
    assert listed[0] == {
        "model": "dan",
        "versions": ["1"],
        "num_classes": 8,
        "labels": LABELS["dan"].split(),
        "extra_outputs": [],
    }


def test_networks_that_were_not_exported_are_not_offered(tmp_path, ask):
    repository = write_repository(tmp_path / "model_repository")
    for model in ("deep_emotion", "ran"):
        record_path(model, repository).unlink()
    offer(repository, "fan")  # without fan_fusion
    (repository / "ran_frames" / "1" / "model.onnx").unlink()
    with EmbeddedServer(read_platform(repository, "trt_fp16")) as server:
        listed = ask(verb="networks", url=server.grpc_url).stdout
        with pytest.raises(ModelMissing, match="does not offer 'ran'; it offers dan, fan ") as e:
            TritonClient(server.grpc_url, "ran").__enter__()
    assert "(`videofer export`, where it is served, adds others)" in str(e.value)
    assert [line.split(":")[0] for line in listed.splitlines()] == ["dan", "fan"]


def test_missing_network_is_told_in_one_line_with_what_there_is_and_what_to_do(ask, sample):
    done = ask(sample, "--model", "poster")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"does not offer 'poster'; it offers {', '.join(NETWORKS)} (" in done.stderr


def test_frames_of_equal_weight_are_named_for_what_they_show(ask, sample):
    for model, words in (("fan", "that counted most"), ("fan_fusion", "most happy")):
        assert f"frames {words}: " in ask(sample, "--model", model, "--max-frames", 5).stdout


@pytest.mark.parametrize("model", NETWORKS)
def test_pictures_show_where_the_network_looked(ask, sample, tmp_path, model):
    targets = ["--plot", tmp_path / "p.png", "--annotate", tmp_path / "a.mp4"]
    assert ask(sample, "--model", model, "--max-frames", 5, *targets).returncode == 0
    cyan = np.array((207, 190, 23))  # BGR of matplotlib's tab:cyan
    picture = cv2.imread(str(tmp_path / "p.png")).astype(int)
    looked = (np.abs(picture - cyan).max(axis=2) < 3).sum() > 100
    assert looked == (model in ("ran", "deep_emotion"))
    orange = (np.abs(picture - (14, 127, 255)).max(axis=2) < 3).sum()
    assert orange > 500  # bars of shares or, where all are alike, of probability
    _, frame = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()
    near = np.abs(frame.astype(int) - cyan).max(axis=2) < 60  # 4:2:0 blurs colours
    assert (near.sum() > 100) == looked


def test_points_of_a_crop_go_back_to_where_they_were_in_the_frame():
    landmarks = FRAMING * 90 @ np.array([[0.9, 0.3], [-0.3, 0.9]]) + (130, 70)
    frame = np.zeros((240, 320, 3), np.uint8)
    (point,) = unalign(np.array([[150.0, 90.0]]), landmarks)
    cv2.circle(frame, np.round(point).astype(int).tolist(), 4, (255, 255, 255), -1)
    rows, columns = np.nonzero(align(frame, landmarks)[..., 0] > 128)
    np.testing.assert_allclose((columns.mean(), rows.mean()), (150, 90), atol=2)


def test_window_of_a_transformer_is_where_it_samples():
    theta = np.array([[0.5, 0.0, 0.25], [0.0, 1.0, 0.0]])  # half as wide, to the right
    corners = outline_window(theta).corners + 0.5
    expected = np.array([(0.375, 0), (0.875, 0), (0.875, 1), (0.375, 1)]) * FACE_SIZE
    np.testing.assert_allclose(corners, expected)


def test_regions_of_more_than_an_even_share_are_outlined_the_strongest_last():
    weak, strong = outline_regions(np.array([0.1, 0.1, 0.1, 0.25, 0.1, 0.35]))
    assert (weak.strength, strong.strength) == (pytest.approx(0.25 / 0.35), 1)
    np.testing.assert_allclose(strong.corners[[0, 2]] + 0.5, [(0, 0), (FACE_SIZE, FACE_SIZE)])
    np.testing.assert_allclose(weak.corners[0] + 0.5, REGIONS[3, :2] * FACE_SIZE)
    assert len(outline_regions(np.full(8, 1 / 8))) == 8
    assert outline_regions(np.full(5, 1 / 5)) == []  # nobody said which five
