"""Folders are done a few at a time, each video once, and a kill loses nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, ffmpeg

from clients.folder import Shard, find


@pytest.fixture(scope="module")
def folder(sample, tmp_path_factory):
    """Three short clips, one of them deeper, a text that claims to be one, and other files."""
    root = tmp_path_factory.mktemp("videos")
    (root / "deep" / "er").mkdir(parents=True)
    for i, name in enumerate(("a.mp4", "b.mkv", "deep/er/c.mp4")):
        ffmpeg("-ss", i / 10, "-i", sample, "-t", 0.6, "-c:v", "libx264", root / name)
    (root / "bad.mp4").write_text("this is no video\n")
    (root / "notes.txt").write_text("nor is this\n")
    (root / ".hidden.mp4").write_text("nobody asked\n")
    return root


@pytest.fixture
def predict_folder(server):
    """Run `videofer predict`, or start it and give the process."""

    def run(*arguments, wait=True):
        command = [sys.executable, "-P", "-m", "videofer", "predict", *map(str, arguments)]
        environment = {**os.environ, "TRITON_URL": server.grpc_url, "PYTHONPATH": str(ROOT)}
        if wait:
            return subprocess.run(command, capture_output=True, text=True, env=environment)
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    return run


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_every_video_has_its_results_and_failures_are_listed(predict_folder, folder, tmp_path):
    out = tmp_path / "out"
    done = predict_folder(folder, "--out", out)
    assert done.returncode == 1
    assert done.stderr == f"predict: 1 failed; {out}/failed.csv says why\n"
    results = ["a.mp4", "b.mkv", "deep/er/c.mp4"]
    expected = {f"{name}{end}" for name in results for end in (".json", ".csv", ".windows.csv")}
    assert set(contents(out)) == expected | {"run.json", "summary.csv", "failed.csv"}
    summary = rows(out / "summary.csv")
    assert [row["video"] for row in summary] == results
    assert {row["emotion"] for row in summary} == {"happy"}
    (failed,) = rows(out / "failed.csv")
    assert failed["video"] == "bad.mp4"
    assert "no video that FFmpeg can decode" in failed["error"]
    result = json.loads((out / "a.mp4.json").read_text())
    assert result["schema"] == 1
    assert len(rows(out / "a.mp4.csv")) == len(result["tracks"][0]["faces"]["frame"])


def test_nothing_is_done_twice_unless_the_video_or_the_options_changed(
    predict_folder, folder, tmp_path
):
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    for name in ("a.mp4", "b.mkv"):
        (mine / name).write_bytes((folder / name).read_bytes())

    def times():
        return {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}

    assert predict_folder(mine, "--out", out).returncode == 0
    first = times()
    assert predict_folder(mine, "--out", out).returncode == 0
    assert times() == first
    (mine / "b.mkv").write_bytes((folder / "deep/er/c.mp4").read_bytes())
    assert predict_folder(mine, "--out", out).returncode == 0
    second = times()
    assert second["a.mp4.json"] == first["a.mp4.json"]
    assert second["b.mkv.json"] != first["b.mkv.json"]
    assert predict_folder(mine, "--out", out, "--fps", 5).returncode == 0
    assert not set(times().items()) & set(second.items()) - {("run.json", first["run.json"])}


def test_killed_run_is_finished_by_the_same_command(predict_folder, folder, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    predict_folder(folder, "--out", whole)
    running = predict_folder(folder, "--out", killed, wait=False)
    deadline = time.monotonic() + 120
    while not list(killed.glob("**/*.mp4.json")) and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    predict_folder(folder, "--out", killed)
    one, other = contents(whole), contents(killed)
    leftovers = {name for name in other if ".partial" in name}
    assert set(other) - leftovers == set(one)
    assert one["failed.csv"] == other["failed.csv"]
    for name in ("a.mp4.json", "b.mkv.json"):
        first, second = json.loads(one[name]), json.loads(other[name])
        assert first["made_of"] == second["made_of"]
        assert first["tracks"][0]["faces"]["frame"] == second["tracks"][0]["faces"]["frame"]


def test_shards_share_the_work(predict_folder, folder, tmp_path):
    out = tmp_path / "out"
    predict_folder(folder, "--out", out, "--shard", "1/2")
    some = {row["video"] for row in rows(out / "summary.1-of-2.csv")}
    predict_folder(folder, "--out", out, "--shard", "2/2")
    others = {row["video"] for row in rows(out / "summary.2-of-2.csv")}
    assert some | others == {"a.mp4", "b.mkv", "deep/er/c.mp4"}
    assert not some & others


def test_shards_may_be_counted_from_0_or_from_1():
    def part(index):
        shard = Shard(index=index, count=3)
        return [i for i in range(7) if i % shard.count == shard.index % shard.count]

    assert part(0) == part(3)
    assert sorted(part(0) + part(1) + part(2)) == list(range(7))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("empty", "no video or picture in it, nor in the folders below"),
        ("files", "holds files, but no results of videofer"),
        ("other", "holds results of"),
    ],
)
def test_bad_folder_is_told_in_one_line(predict_folder, folder, tmp_path, case, words):
    out, source = tmp_path / "out", folder
    out.mkdir()
    if case == "empty":
        source = tmp_path / "empty"
        source.mkdir()
    elif case == "files":
        (out / "mine.txt").write_text("keep this\n")
    else:
        (out / "run.json").write_text('{"schema": 1, "sources": ["/elsewhere"]}')
    before = contents(out)
    done = predict_folder(source, "--out", out)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert words in done.stderr
    assert contents(out) == before


def test_server_that_is_down_stops_the_run(folder, tmp_path):
    command = [sys.executable, "-P", "-m", "videofer", "predict", folder, "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_URL": "localhost:9"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no Triton answers at localhost:9" in done.stderr
    assert not (tmp_path / "out").exists()


def test_two_of_one_name_are_refused(tmp_path):
    from clients.errors import VideoUnreadable

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"x")
    with pytest.raises(VideoUnreadable, match=r"would both write to a\.mp4\.json"):
        find([tmp_path / "one", tmp_path / "two"])
