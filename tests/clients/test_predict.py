"""clients/predict.py does what its help says, and takes bad input with one plain line."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from conftest import ROOT, ffmpeg

from clients.errors import ServerUnavailable
from clients.sample import kind_at
from clients.stream import AT_ONCE, FeatureStream
from clients.verbs.predict import build_parser
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

JSON_KEYS = ["schema", "source", "asked", "network", "created", "frames", "tracks"]
TRACK_KEYS = [
    "track",
    "start_s",
    "end_s",
    "coverage",
    "emotion",
    "probabilities",
    "segments",
    "windows",
    "faces",
]


GPU_MONITOR_LOG = Path("/var/log/nv-hostengine.log")


def size_of(path):
    """A file's size, None for none."""
    return path.stat().st_size if path.exists() else None


def answer(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def only_track(done):
    """The one person of an answer."""
    (track,) = answer(done)["tracks"]
    return track


def one_line(done):
    """Expect a failure told in one plain line; return it."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("predict: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_sample_is_called_happy(predict, sample):
    done = predict(sample)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("happy  ")
    assert lines[2].split()[:2] == ["happy", lines[2].split()[1]]
    assert "█" in lines[2]
    assert "seen in 92% of the frames" in lines[0]
    assert lines[-1] == "frames: 50 looked at, 46 with a face, 4 without"
    assert lines[-3].startswith("  frames that counted most: ")
    assert lines[-3].count(" s (") == 3
    assert lines[-4] == "  0.0-4.9 s happy"
    assert done.stderr == ""  # no terminal, no progress bar


def test_spoilt_frames_of_the_sample_weigh_less_than_clear_ones(predict, sample):
    faces = only_track(predict(sample, "--fps", 0, "--json"))["faces"]
    kinds = np.array([kind_at(t) for t in faces["time_s"]])
    weights = np.array(faces["share"])
    clear = weights[kinds == "clear"].mean()
    assert weights[kinds == "blurred"].mean() < 0.2 * clear
    # At an eighth of the light this smile can be read all the same.
    assert weights[kinds == "dark"].mean() < 0.6 * clear
    assert weights[kinds == "occluded"].mean() < 0.6 * clear
    assert "faceless" not in kinds


def test_a_smile_weighs_more_than_the_neutral_frames_around_it(predict, smile):
    track = only_track(predict(smile, "--fps", 0, "--json"))
    weights = np.array(track["faces"]["share"])
    place = list(track["probabilities"]).index("happy")
    happy = np.array(track["faces"]["probabilities"])[:, place]
    assert track["emotion"] == "happy"
    smiling, neutral = weights[happy > 0.5], weights[happy < 0.2]  # between: two half smiles
    assert len(smiling) > 40
    assert len(neutral) > 10
    assert smiling.min() > neutral.max()
    # No more than that is asked: a neutral stretch of a track has its share in the answer.
    assert smiling.mean() > 1.15 * neutral.mean()


def test_json_is_one_complete_object(predict, sample, server, shipped):
    result = answer(predict(sample, "--json", "--max-frames", 13))
    assert list(result) == JSON_KEYS
    assert result["schema"] == 1
    assert result["asked"]["max_frames"] == result["frames"]["looked_at"] == 13
    assert result["network"] == {
        "model": "fan",
        "model_version": "1",
        "url": server.grpc_url,
        "labels": list(shipped.labels),
    }
    (track,) = result["tracks"]
    assert list(track) == TRACK_KEYS
    assert list(track["probabilities"]) == list(shipped.labels)
    assert sum(track["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert track["emotion"] == max(track["probabilities"], key=track["probabilities"].get)
    faces = track["faces"]
    assert {len(faces[name]) for name in ("frame", "time_s", "box", "share", "self_weight")} == {13}
    assert faces["region_weights"] is faces["theta"] is None
    assert sum(faces["share"]) == pytest.approx(1, abs=1e-5)
    assert np.sum(faces["probabilities"], axis=1) == pytest.approx(np.ones(13), abs=1e-5)
    assert np.shape(faces["landmarks"]) == (13, 5, 2)


def test_module_and_path_are_the_same_command(predict, sample, server):
    python = ROOT / ".venv" / "bin" / "python"
    module = [python, "-m", "videofer", "predict", sample, "--url", server.grpc_url, "--json"]
    done = subprocess.run(module, capture_output=True, text=True, cwd="/")
    one, other = answer(done), answer(predict(sample, "--json"))
    del one["created"], other["created"]
    assert one == other


def test_clip_longer_than_a_request_gets_the_answer_of_its_frames(predict, sample, tmp_path):
    long = tmp_path / "long.mp4"
    ffmpeg("-stream_loop", 1, "-i", sample, "-c", "copy", long)
    # One face, whatever is cut between the two.
    once = only_track(predict(sample, "--fps", 0, "--people", 1, "--json"))
    twice = only_track(predict(long, "--fps", 0, "--people", 1, "--json"))
    assert len(twice["faces"]["share"]) == 2 * len(once["faces"]["share"]) > 128
    # Every face twice: the same emotion, and each time half of the share.
    for label, probability in once["probabilities"].items():
        assert twice["probabilities"][label] == pytest.approx(probability, abs=1e-5)
    halves = np.array(once["faces"]["share"] * 2) / 2
    np.testing.assert_allclose(twice["faces"]["share"], halves, atol=1e-6)


def test_rotated_video_gets_the_answer_of_the_upright_one(predict, sample, tmp_path):
    side, rotated = tmp_path / "side.mp4", tmp_path / "rotated.mp4"
    ffmpeg("-i", sample, "-vf", "transpose=1", "-frames:v", 10, "-crf", 5, side)
    ffmpeg("-display_rotation", 90, "-i", side, "-c", "copy", rotated)
    upright = only_track(predict(sample, "--fps", 0, "--max-frames", 10, "--json"))
    turned = only_track(predict(rotated, "--fps", 0, "--json"))
    assert turned["faces"]["frame"] == upright["faces"]["frame"]
    # The pixels went through another encoder.
    assert turned["probabilities"]["happy"] == pytest.approx(
        upright["probabilities"]["happy"], abs=0.05
    )


def test_plot_shows_weights_and_faces(predict, sample, tmp_path):
    assert predict(sample, "--plot", tmp_path / "weights.png").returncode == 0
    picture = cv2.imread(str(tmp_path / "weights.png"))
    assert picture.shape[1] > 1000
    blue, orange = (180, 119, 31), (14, 127, 255)  # BGR of the paper's two colours
    no_face = (237, 237, 237)
    bars = picture[picture.shape[0] // 2 :].astype(int)  # beneath the faces
    for color in (blue, orange, no_face):
        assert (np.abs(bars - color).max(axis=2) < 3).sum() > 500
    assert [path.name for path in tmp_path.iterdir()] == ["weights.png"]


def test_annotated_video_is_what_browsers_play(predict, sample, tmp_path):
    target = tmp_path / "seen.mp4"
    assert predict(sample, "--annotate", target).returncode == 0
    content = target.read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")  # plays while it loads
    assert b"avc1" in content  # H.264
    original, annotated = (cv2.VideoCapture(str(path)) for path in (sample, target))
    assert annotated.get(cv2.CAP_PROP_FRAME_COUNT) == original.get(cv2.CAP_PROP_FRAME_COUNT)
    assert annotated.get(cv2.CAP_PROP_FPS) == original.get(cv2.CAP_PROP_FPS)
    (_, before), (_, after) = original.read(), annotated.read()
    changed = np.abs(after.astype(int) - before).max(axis=2) > 60
    assert 0.005 < changed.mean() < 0.2  # a box, a line of text and a bar, not another picture
    assert [path.name for path in tmp_path.iterdir()] == ["seen.mp4"]


def test_annotated_video_ends_where_looking_ended(predict, sample, tmp_path):
    target = tmp_path / "seen.mp4"
    assert predict(sample, "--annotate", target, "--max-frames", 10).returncode == 0
    # Ten frames at 10 a second: a second of the video, to within a frame or two.
    assert 23 <= cv2.VideoCapture(str(target)).get(cv2.CAP_PROP_FRAME_COUNT) <= 28


def test_annotated_video_is_whole_however_few_frames_were_looked_at(predict, sample, tmp_path):
    target = tmp_path / "seen.mp4"
    assert predict(sample, "--annotate", target, "--fps", 0.1).returncode == 0
    assert cv2.VideoCapture(str(target)).get(cv2.CAP_PROP_FRAME_COUNT) == 125


@pytest.fixture(scope="module")
def bad(tmp_path_factory, sample):
    """A folder of files that are not what their names say."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "folder.mp4").mkdir()
    front = folder / "front.mp4"
    ffmpeg("-i", sample, "-c", "copy", "-movflags", "+faststart", front)
    (folder / "cut_index_last.mp4").write_bytes(sample.read_bytes()[:50_000])
    (folder / "cut_index_first.mp4").write_bytes(front.read_bytes()[:50_000])
    (folder / "cut_at_once.mp4").write_bytes(sample.read_bytes()[:20])
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", folder / "audio.mp4")
    ffmpeg("-i", sample, "-frames:v", 0, "-c", "copy", folder / "no_frames.mp4")
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=320x240:duration=2", folder / "nobody.mp4")
    ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:size=16x16:duration=0.2", "-vf", "crop=1:1:exact=1"),
        *("-pix_fmt", "gray", "-c:v", "ffv1", folder / "pixel.mkv"),
    )
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.mp4", "no such file"),
        ("text.mp4", "no video that FFmpeg can decode"),
        ("empty.mp4", "no video that FFmpeg can decode"),
        ("audio.mp4", "no video that FFmpeg can decode"),
        ("cut_index_last.mp4", "is cut off: it holds 50000 bytes of at least"),
        ("cut_index_first.mp4", "is cut off: it holds 50000 bytes of at least"),
        ("cut_at_once.mp4", "is cut off: it holds 20 bytes of at least"),
        ("no_frames.mp4", "no video that FFmpeg can decode"),
        ("nobody.mp4", "no face in any of the 20 frames looked at"),
        ("pixel.mkv", "no face in any of the 2 frames looked at"),
    ],
)
def test_bad_video_is_told_in_one_line(predict, bad, name, words):
    line = one_line(predict(bad / name))
    assert name in line
    assert words in line


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["video.mp4", "--fps", "-1"],
        ["video.mp4", "--fps", "nan"],
        ["video.mp4", "--max-frames", "0"],
        ["video.mp4", "--timeout", "soon"],
        ["video.mp4", "--url", "http://localhost:8001"],
        ["video.mp4", "--url", "localhost"],
        ["video.mp4", "--url", "localhost:99999"],
        ["video.mp4", "--plot", "weights.jpg"],
        ["video.mp4", "--annotate", "/no/such/folder/seen.mp4"],
        ["video.mp4", "--step", "0"],
        ["video.mp4", "--window", "-1"],
        ["video.mp4", "--people", "0"],
        ["video.mp4", "--min-coverage", "1.1"],
        ["video.mp4", "--report", "page.txt"],
        ["video.mp4", "--shard", "1/2"],
        ["video.mp4", "--out", "x", "--shard", "3"],
        ["video.mp4", "--out", "x", "--shard", "3/2"],
        ["video.mp4", "--duration", "3"],
        ["video.mp4", "other.mp4", "--plot", "p.png"],
        ["video.mp4", "rtsp://nowhere/1"],
        [ROOT],
        ["-", "--plot", "p.png"],
    ],
    ids=lambda arguments: " ".join(arguments[1:]) or "no video",
)
def test_bad_usage_exits_with_2(predict, arguments):
    done = predict(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_output_over_the_video_is_refused_and_the_video_kept(predict, sample, tmp_path):
    mine = tmp_path / "mine.mp4"
    mine.write_bytes(sample.read_bytes())
    link = tmp_path / "link.mp4"
    link.symlink_to(mine)
    for target in (mine, link):
        done = predict(mine, "--annotate", target)
        assert done.returncode == 2
        assert "must be different files" in done.stderr
    assert mine.read_bytes() == sample.read_bytes()


def test_modules_of_the_users_folder_do_not_stand_in_for_ours(tmp_path, sample, server):
    (tmp_path / "numpy.py").write_text("raise SystemExit('not the real numpy')")
    command = [ROOT / "clients" / "predict.py", sample, "--url", server.grpc_url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_verbose_logs_each_step(predict, sample, tmp_path):
    done = predict(sample, "-v", "--plot", tmp_path / "weights.png")
    for step in ("VideoInfo(", "Contract(", "50 frames looked at, 1 people", "chunk of 32 crops"):
        assert step in done.stderr


def test_nothing_is_kept_under_home_or_tmp(repository, sample, tmp_path):
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    own = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    environment = {**os.environ, **own}
    for name in ("ORT_DISABLE_TELEMETRY", "TORCHINDUCTOR_CACHE_DIR"):
        environment.pop(name, None)
    before = size_of(GPU_MONITOR_LOG)
    python = ROOT / ".venv" / "bin" / "python"
    serve = [python, "-m", "videofer", "serve", "--platform", "ort_int8", "--free-ports"]
    command = [*serve, "--repository", repository, "--", ROOT / "clients" / "predict.py", sample]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check = [python, "-m", "videofer", "check-engines"]
    done = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 or "`videofer export` writes it" in done.stderr
    assert [*(tmp_path / "home").rglob("*"), *(tmp_path / "tmp").rglob("*")] == []
    assert size_of(GPU_MONITOR_LOG) == before


def test_terminal_without_unicode_gets_the_numbers(sample, server):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "TRITON_URL": server.grpc_url}
    command = [ROOT / "clients" / "predict.py", sample, "--max-frames", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "happy" in done.stdout


def test_name_that_is_not_utf8_is_told_in_one_line(server, tmp_path, sample):
    odd = os.fsencode(tmp_path) + b"/\xff.mp4"
    Path(os.fsdecode(odd)).write_bytes(sample.read_bytes())
    done = subprocess.run([ROOT / "clients" / "predict.py", odd], capture_output=True, text=True)
    assert "the name is not UTF-8" in one_line(done)


def test_nothing_is_written_for_a_bad_video(predict, bad, tmp_path):
    one_line(predict(bad / "nobody.mp4", "--plot", tmp_path / "p.png"))
    assert list(tmp_path.iterdir()) == []


def test_server_that_is_down_is_told_in_one_line(predict, sample):
    line = one_line(predict(sample, "--url", "localhost:9"))
    assert "no Triton answers at localhost:9 (5 tries" in line
    assert "start one with `videofer serve`" in line


def test_server_that_lacks_the_model_is_told_in_one_line(predict, sample):
    line = one_line(predict(sample, "--model", "poster"))
    assert "does not offer 'poster'; it offers dan, deep_emotion, fan, fan_fusion, ran" in line


def test_model_of_another_contract_is_told_in_one_line(predict, sample):
    line = one_line(predict(sample, "--model", "fan_attention"))
    assert "takes features FP32 [-1, 512] and gives" in line
    assert "takes frames UINT8 [-1, 224, 224, 3] and gives" in line


def test_request_that_takes_too_long_is_told_in_one_line(predict, sample):
    assert "did not answer within 0.001 s" in one_line(predict(sample, "--timeout", 0.001))


def test_server_killed_mid_run_is_told_in_one_line(repository, sample, tmp_path):
    long = tmp_path / "long.mp4"
    ffmpeg("-stream_loop", 9, "-i", sample, "-c", "copy", long)
    with EmbeddedServer(read_platform(repository, "ort_fp32")) as server:
        command = [ROOT / "clients" / "predict.py", long, "--fps", "0", "--url", server.grpc_url]
        running = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        watcher = grpcclient.InferenceServerClient(server.grpc_url)
        while watcher.get_inference_statistics("fan_embedder").model_stats[0].inference_count < 100:
            assert running.poll() is None
            time.sleep(0.05)
        server.process.kill()
        output, error = running.communicate(timeout=120)
    line = one_line(subprocess.CompletedProcess(command, running.returncode, output, error))
    assert "no Triton answers at" in line


class SlowClient:
    """Stands for a client whose server is slower than the video is read."""

    class contract:  # noqa: N801
        max_frames = 128

    def embed(self, faces):
        time.sleep(0.02)
        return {"features": np.zeros((len(faces), 4), np.float32)}

    def pool(self, tensors, keep=True):
        return tensors["features"]


def test_memory_stays_bounded_however_long_the_clip():
    with FeatureStream(SlowClient()) as stream:
        for i in range(3000):
            stream.add(i % 2, np.zeros((2, 2, 3), np.uint8))
            assert len(stream.pending) <= stream.limit
            assert len(stream.flying) <= AT_ONCE
        stream.flush()
        assert stream.pool(0).shape == stream.pool(1).shape == (1500, 4)


def test_failed_chunk_ends_the_clip_at_the_next_face():
    class BrokenClient(SlowClient):
        def embed(self, faces):
            raise ServerUnavailable("it was killed")

    with FeatureStream(BrokenClient()) as stream:
        for _ in range(stream.limit):
            stream.add(1, np.zeros((2, 2, 3), np.uint8))
        wait([chunk for _, chunk in stream.flying])
        with pytest.raises(ServerUnavailable, match="it was killed"):
            stream.add(1, np.zeros((2, 2, 3), np.uint8))


def test_python_without_the_packages_goes_on_in_the_projects_own(tmp_path):
    # -S: as a Python in which nothing is installed.
    command = [sys.executable, "-S", ROOT / "clients" / "predict.py", tmp_path / "no.mp4"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"predict: {tmp_path}/no.mp4")


@pytest.mark.parametrize("option", build_parser()._actions, ids=lambda option: option.dest)
def test_every_option_explains_itself(option):
    assert option.help
