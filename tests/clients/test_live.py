"""A live source is answered as it happens: frames are dropped rather than late."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise

import imageio_ffmpeg
import pytest
from conftest import ROOT

import videofer
from clients.analysis import Options
from clients.live import LAG_S, Live
from clients.triton import TritonClient

ENCODE = ("-an", "-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "10")


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def send(sample, port):
    """Send the sample over TCP at its own pace; ends with the test."""
    running = []

    def start(seconds):
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-re", "-stream_loop", "-1"),
            *("-i", str(sample), "-t", str(seconds), *ENCODE),
            *("-flush_packets", "1", "-f", "mpegts", f"tcp://127.0.0.1:{port}?listen=1"),
        ]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def watch(server, source, *arguments):
    command = [sys.executable, "-P", "-m", "videofer", "predict", str(source), *map(str, arguments)]
    environment = {**os.environ, "TRITON_URL": server.grpc_url, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def connect(server, port, *arguments):
    """Start predict on the stream once its sender listens."""
    time.sleep(1)
    return watch(server, f"tcp://127.0.0.1:{port}", *arguments)


def lines(output):
    return [json.loads(line) for line in output.splitlines()]


def test_stream_gives_a_line_a_person_and_step_and_the_summary(server, send, port):
    send(30)
    output, error = connect(server, port, "--duration", 5, "--fps", 5).communicate(timeout=60)
    *moments, summary = lines(output)
    assert error == ""
    assert len(moments) >= 3
    assert {moment["emotion"] for moment in moments} == {"happy"}
    assert all(b["time_s"] > a["time_s"] for a, b in pairwise(moments))
    assert summary["schema"] == 1
    assert summary["source"]["duration"] is None
    assert summary["tracks"][0]["emotion"] == "happy"
    assert summary["frames"]["looked_at"] > 5


def test_interrupt_ends_with_the_summary(server, send, port):
    send(30)
    running = connect(server, port, "--fps", 5)
    first = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    output, error = running.communicate(timeout=30)
    assert running.returncode == 0, error
    assert json.loads(first)["track"] == 1
    assert lines(output)[-1]["schema"] == 1


def test_stream_that_breaks_is_taken_up_again(server, send, port):
    first = send(30)
    running = connect(server, port, "--fps", 5, "--duration", 14)
    before = json.loads(running.stdout.readline())
    first.kill()
    first.wait()
    send(30)
    output, error = running.communicate(timeout=60)
    *moments, summary = lines(output)
    assert "broke off; opening it again in 0.5 s" in error
    assert moments[-1]["time_s"] > before["time_s"] + 2
    assert summary["frames"]["looked_at"] > 5


def test_file_played_live_ends_by_itself(server, sample):
    output, error = watch(server, sample, "--live").communicate(timeout=60)
    *moments, summary = lines(output)
    assert error == ""
    assert 5 <= len(moments) <= 10
    assert summary["source"]["duration"] == pytest.approx(5, abs=0.1)


def test_frames_are_dropped_and_counted_rather_than_late(server, sample, monkeypatch):
    with TritonClient(server.grpc_url) as client:
        options = Options(fps=0, window=1, step=0.2)
        with Live(sample, client, options) as live:
            detect = live.detectors.detect

            def slow(image):
                time.sleep(0.15)  # for 0.04 s of video
                return detect(image)

            monkeypatch.setattr(live.detectors, "detect", slow)
            behind = [moment.behind for moment in live]
            analysis = live.analysis()
    assert analysis.dropped > 40
    assert len(analysis.frames) + analysis.dropped == pytest.approx(125, abs=5)
    # What waits, one frame at work, and the answer; generous, for a busy machine. All that came
    # would be 15 s late at the end.
    assert max(behind) < LAG_S + 1


def test_follow_is_a_generator_of_moments(server, sample):
    moments = list(videofer.follow(sample, url=server.grpc_url, duration=2.5))
    assert moments
    assert moments[0].emotion == "happy"
    assert moments[0].to_dict()["track"] == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/dev/video97", "/dev/video97 cannot be opened"),
        ("tcp://127.0.0.1:9", "cannot be opened (Connection refused)"),
        ("rtsp://user:secret@127.0.0.1:9/x", "rtsp://127.0.0.1:9/x cannot be opened"),
    ],
)
def test_source_that_is_not_there_is_told_in_one_line(server, source, words):
    running = watch(server, source)
    output, error = running.communicate(timeout=60)
    assert (running.returncode, output, error.count("\n")) == (1, "", 1)
    assert words in error
    assert "secret" not in error
