"""The walk of predict.py's path measures every stage on the same frames, and says what it saw."""

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ffmpeg

from benchmarks import client_memory, pipeline, turns
from clients.analysis import ClipAnswer, Options
from serving import ServingError

LABELS = ("happy", "sad")
STAGES = ["load", "decode", "detect", "align", "wire and server"]
# Frames a second, of two rounds: detect is the slowest, and the whole takes 1.25 times as long.
RATES = {
    "load": [1000.0, 1000.0],
    "decode": [500.0, 500.0],
    "detect": [50.0, 50.0],
    "align": [2000.0, 2000.0],
    "wire and server": [200.0, 200.0],
    "whole path": [40.0, 40.0],
}
SPENT_MS = dict.fromkeys(RATES, 4.0)


class StandInClient:
    """Answers as a server would, at once; keeps how many faces it was asked of."""

    model, url = "fan", "nowhere:1"
    contract = SimpleNamespace(max_frames=128, labels=LABELS)

    def __init__(self):
        self.asked = []

    def embed(self, crops):
        return {"features": np.zeros((len(crops), 512), np.float32)}

    def pool(self, features, keep=True):
        n = len(features["features"])
        self.asked.append(n)
        even = np.full(n, 1 / n, np.float32)
        return ClipAnswer(
            logits=np.zeros(2),
            probabilities=np.full(2, 0.5),
            shares=even,
            frame_logits=np.zeros((n, 2), np.float32),
            model_version="1",
            self_weights=even,
        )


@pytest.fixture
def short(monkeypatch):
    """A run of a few frames, without rests."""
    options = Options(max_frames=6, people=1, window=0)
    monkeypatch.setattr(pipeline, "OPTIONS", options)
    monkeypatch.setattr(pipeline, "WINDOWED", replace(options, window=0.2, step=0.1))
    monkeypatch.setattr(turns, "REST_S", 0)


def run_of(rss_mb, peak_mb, minutes=1.0):
    return client_memory.MemoryRun(minutes, np.arange(1.0, 5.0), np.array(rss_mb), peak_mb)


def test_every_stage_is_measured_for_the_same_frames(sample, short):
    work = pipeline.prepare(sample)
    client = StandInClient()
    with pipeline.DetectorPool(2) as detectors:
        ways = pipeline.make_ways(work, detectors, client)
        assert list(ways) == [*STAGES, pipeline.WHOLE, pipeline.FINE]
        assert {name: way() for name, way in ways.items()} == dict.fromkeys(ways, 6)
    # Alone and within the whole the same faces; then windows of them, too.
    assert client.asked[:2] == [6, 6]
    *windows, whole = client.asked[2:]
    assert whole == 6
    assert len(windows) > 3


def test_report_has_every_stage_and_its_pictures(sample, short, tmp_path):
    work = pipeline.prepare(sample)
    server = SimpleNamespace(
        platform=SimpleNamespace(name="ort_int8"), process=SimpleNamespace(pid=os.getpid())
    )
    text = "\n".join(pipeline.measure(work, StandInClient(), server, 2, tmp_path / "stages.png"))
    assert "sample.mp4, platform ort_int8" in text
    for name in (*STAGES, pipeline.WHOLE):
        assert f"| {name} |" in text
    assert "6 frames of 360x360 sampled at 10 a second, 6 with a face" in text
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("fails", ["the next server", "the watch on memory"])
def test_what_was_measured_outlives_what_fails_later(sample, short, monkeypatch, tmp_path, fails):
    def fail(*arguments):
        raise ServingError(fails)

    def serve(platform):
        if platform.name == "openvino_int8":
            fail()
        return nullcontext(SimpleNamespace(platform=platform, grpc_url="nowhere:1"))

    monkeypatch.setattr(pipeline, "MAX_FRAMES", 1)
    monkeypatch.setattr(pipeline, "read_served", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(pipeline, "EmbeddedServer", serve)
    monkeypatch.setattr(pipeline, "TritonClient", lambda url: nullcontext())
    monkeypatch.setattr(pipeline, "measure", lambda *arguments: ["## measured"])
    monkeypatch.setattr(pipeline, "measure_memory", fail)
    platforms = ["ort_int8", "openvino_int8"] if fails == "the next server" else ["ort_int8"]
    with pytest.raises(ServingError, match=fails):
        pipeline.run(sample, platforms, 2, 60, tmp_path)
    assert "## measured" in (tmp_path / "pipeline.md").read_text()


def test_short_video_is_repeated_until_as_much_is_sampled_as_is_kept(sample, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "OPTIONS", Options(max_frames=60, people=1))
    monkeypatch.setattr(pipeline, "MAX_FRAMES", 60)
    work = pipeline.prepare(sample)
    pipeline.repeat(sample, tmp_path / "repeated.mp4")
    longer = pipeline.prepare(tmp_path / "repeated.mp4")
    assert len(work.frames) < len(longer.frames) == 60
    assert longer.frames[0].image.shape == work.frames[0].image.shape


def test_report_names_the_slowest_stage_and_the_ceiling_it_sets():
    text = pipeline.pace_section(RATES, SPENT_MS)
    assert "The slowest stage is detect**: 20.00 ms a frame, a ceiling of 50.0 frames/s" in text
    assert "takes 1.25 times as long as detect alone" in text
    assert "above the goal of 1.2" in text
    # 1 + 2 + 20 + 0.5 + 5 ms one after the other, against 25 ms: waiting, not overlapping.
    assert "stages take 28.50 ms a frame; overlapping makes that 25.00" in text


def test_what_windows_cost_is_said():
    rates = RATES | {pipeline.FINE: [36.0, 36.0]}
    text = pipeline.pace_section(rates, SPENT_MS | {pipeline.FINE: 4.0})
    assert "the whole path takes 1.11 times as long** (quartiles 1.11 to 1.11), above" in text


def test_goal_is_said_to_be_met_where_it_is():
    assert "within the goal of 1.2" in pipeline.pace_section(
        RATES | {"whole path": [45.0, 45.0]}, SPENT_MS
    )


def test_processor_time_of_the_client_is_counted():
    before = pipeline.cpu_seconds(0)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert pipeline.cpu_seconds(0) - before >= 0.05  # the kernel counts in hundredths


@pytest.mark.parametrize("name", ["nobody.mp4", "missing.mp4", "text.mp4"])
def test_video_without_a_face_ends_in_one_line(tmp_path, capsys, name):
    if name == "nobody.mp4":
        ffmpeg("-f", "lavfi", "-i", "color=gray:size=64x64:duration=0.5", tmp_path / name)
    elif name == "text.mp4":
        (tmp_path / name).write_text("this is no video\n" * 100)
    assert pipeline.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pipeline: ")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_platform_that_nobody_knows_ends_in_one_line(sample, tmp_path, capsys):
    out = tmp_path / "out"
    assert pipeline.main([str(sample), "--platforms", "nothing", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("pipeline: ")
    assert printed.err.count("\n") == 1
    assert not out.exists()


def test_memory_is_that_of_the_watched_process(monkeypatch):
    monkeypatch.setattr(client_memory, "INTERVAL_S", 0.02)
    program = "import time; held = bytearray(80_000_000); time.sleep(0.5); del held; time.sleep(.5)"
    seconds, rss_mb, peak_mb = client_memory.watch([sys.executable, "-c", program])
    assert len(seconds) == len(rss_mb) > 3
    assert 80 < peak_mb < 160
    assert rss_mb[-1] < 60  # given back, which a peak alone would not show


def test_client_that_fails_is_told_in_its_own_words():
    program = "import sys; sys.exit('no Triton answers')"
    with pytest.raises(client_memory.FerError, match="client failed: no Triton answers"):
        client_memory.watch([sys.executable, "-c", program])


def test_long_video_is_as_long_as_asked(sample, tmp_path):
    from clients.video import read_info

    client_memory.write_looped(sample, tmp_path / "long.mp4", 12.0)
    info = read_info(tmp_path / "long.mp4")
    assert info.num_frames / info.fps == pytest.approx(12, abs=0.2)
    assert info.height == client_memory.HEIGHT
    assert [path.name for path in tmp_path.iterdir()] == ["long.mp4"]


def test_report_says_whether_memory_stays_under_the_limit(tmp_path):
    flat = run_of([200.0, 210.0, 210.0, 220.0], 250.0)
    assert "under the limit of 600 MB" in client_memory.memory_section([flat])
    over = run_of([200.0, 400.0, 600.0, 700.0], 700.0, minutes=60.0)
    assert "OVER the limit" in client_memory.memory_section([flat, over])
    client_memory.draw_memory([flat, over], tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", pipeline.build_parser()._actions, ids=lambda option: option.dest)
def test_every_option_explains_itself(option):
    assert option.help


def test_sample_is_where_the_makefile_makes_it():
    makefile = (Path(pipeline.ROOT) / "Makefile").read_text()
    folder = pipeline.SAMPLE.parent.relative_to(pipeline.ROOT)
    assert f"DEMO := {folder}\n" in makefile
    assert f"$(DEMO)/{pipeline.SAMPLE.name}: clients/sample.py" in makefile
