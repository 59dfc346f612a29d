"""`videofer saliency` finds what a network looks at, and takes bad input with one plain line."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from skimage.data import astronaut
from toy_networks import LABELS, SPOT, write_repository

from clients.occlusion import Patch, find_saliency
from clients.triton import TritonClient
from clients.verbs.saliency import build_parser
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    repository = write_repository(tmp_path_factory.mktemp("toys") / "model_repository")
    with EmbeddedServer(read_platform(repository, "trt_fp16")) as running:
        yield running


@pytest.fixture
def saliency(toys, tmp_path):
    """Run `videofer saliency` against the toys, in a folder of its own."""

    def run(*arguments):
        command = [sys.executable, "-P", "-m", "videofer", "saliency", *map(str, arguments)]
        own = {"TRITON_URL": toys.grpc_url, "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, **own}
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    return run


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A photograph of one face."""
    path = tmp_path_factory.mktemp("pictures") / "face.png"
    cv2.imwrite(str(path), astronaut()[:256, 96:352, ::-1])
    return path


def planted():
    """A dark face that is bright in the toys' spot."""
    face = np.zeros((224, 224, 3), np.uint8)
    left, top, right, bottom = SPOT
    face[top:bottom, left:right] = 255
    return face


@pytest.mark.parametrize("model", sorted(LABELS))
def test_planted_spot_is_found_whatever_the_network(toys, model):
    with TritonClient(toys.grpc_url, model) as client:
        found = find_saliency(client, planted(), Patch(size=48, stride=16))
    assert found.emotion == LABELS[model].split()[3]
    assert found.box == SPOT
    assert found.landmark == "left mouth corner"
    assert found.falls.shape == (12, 12)
    heat = found.heat()
    left, top, right, bottom = SPOT
    middle = heat[top + 16 : bottom - 16, left + 16 : right - 16]
    assert middle.min() == pytest.approx(heat.max())
    assert heat[:60].max() == pytest.approx(0, abs=0.02)  # far above the spot nothing changes


def test_face_goes_in_no_more_requests_than_it_must(toys, monkeypatch):
    sizes = []
    with TritonClient(toys.grpc_url, "ran") as client:  # takes 16 at once
        embed = client.embed
        monkeypatch.setattr(client, "embed", lambda faces: sizes.append(len(faces)) or embed(faces))
        find_saliency(client, planted(), Patch(size=64, stride=40))
    assert sizes == [16, 10]  # 5 x 5 places, and the face as it is


def test_every_pixel_is_covered_whatever_size_and_stride():
    for size, stride in ((48, 16), (50, 30), (224, 224), (8, 4), (99, 99)):
        patch = Patch(size, stride)
        covered = {pixel for start in patch.starts for pixel in range(start, start + size)}
        assert covered == set(range(224))


@pytest.mark.parametrize(("size", "stride"), [(16, 17), (225, 16), (48, 0)])
def test_patch_that_makes_no_sense_is_refused(size, stride):
    with pytest.raises(ValueError, match="expected 1 <= stride <= size <= 224"):
        Patch(size, stride)


@pytest.mark.parametrize("model", ["fan", "deep_emotion"])
def test_picture_is_mapped_and_drawn(saliency, picture, tmp_path, model):
    done = saliency(picture, "--model", model, "--patch", 64, "--stride", 32)
    assert (done.returncode, done.stderr) == (0, "map: saliency.png\n")
    first, second = done.stdout.splitlines()
    assert first.startswith(("happy  ", "fear  "))
    assert second.startswith("falls most, to ")
    height, width = cv2.imread(str(tmp_path / "saliency.png")).shape[:2]
    assert width > 1.5 * height  # the face and the map beside each other
    assert [path.name for path in tmp_path.iterdir()] == ["saliency.png"]


def test_video_is_mapped_at_the_frame_that_counts_most(saliency, sample, toys):
    options = ["--model", "fan", "--max-frames", 8, "--patch", 112, "--stride", 112, "--json"]
    found = json.loads(saliency(sample, *options).stdout)
    predict = [ROOT / "clients" / "predict.py", sample, "--url", toys.grpc_url]
    done = subprocess.run([*predict, "--max-frames", "8", "--json"], capture_output=True, text=True)
    faces = json.loads(done.stdout)["tracks"][0]["faces"]
    assert found["timestamp_s"] == faces["time_s"][int(np.argmax(faces["share"]))]
    assert np.shape(found["falls"]) == (2, 2)
    assert found["greatest_fall"] == np.max(found["falls"])


def test_photograph_is_turned_upright_first(saliency, picture, tmp_path):
    upright, turned = tmp_path / "upright.jpg", tmp_path / "turned.jpg"
    image = cv2.imread(str(picture))
    cv2.imwrite(str(upright), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    cv2.imwrite(str(turned), np.rot90(image), [cv2.IMWRITE_JPEG_QUALITY, 100])
    # An EXIF block that says no more than: turn by 90 degrees (TIFF 6.0, tag Orientation).
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    jpeg = turned.read_bytes()
    marker = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    turned.write_bytes(jpeg[:2] + marker + jpeg[2:])
    options = ["--patch", 112, "--stride", 112, "--json"]
    first, second = (
        json.loads(saliency(path, *options).stdout)["probabilities"] for path in (upright, turned)
    )
    assert first == pytest.approx(second, abs=0.02)


def test_bad_input_is_told_in_one_line(saliency, tmp_path):
    cv2.imwrite(str(tmp_path / "nobody.png"), np.full((200, 200, 3), 90, np.uint8))
    (tmp_path / "text.png").write_text("this is no picture\n")
    (tmp_path / "cut.png").write_bytes((tmp_path / "nobody.png").read_bytes()[:40])
    for name, words in (
        ("nobody.png", "no face in any of the 1 frames looked at"),
        ("text.png", "not one frame could be decoded"),
        ("cut.png", "not one frame could be decoded"),
        ("missing.png", "no such file"),
    ):
        done = saliency(name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("saliency: ")
        assert words in done.stderr
    assert not (tmp_path / "saliency.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["face.png", "--patch", "7"],
        ["face.png", "--patch", "225"],
        ["face.png", "--stride", "3"],
        ["face.png", "--patch", "16", "--stride", "20"],
        ["face.png", "--plot", "face.png"],
        ["face.png", "--plot", "map.jpg"],
    ],
    ids=lambda arguments: " ".join(arguments[1:]) or "no picture",
)
def test_bad_usage_exits_with_2(saliency, arguments):
    done = saliency(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", build_parser()._actions, ids=lambda option: option.dest)
def test_every_option_explains_itself(option):
    assert option.help
