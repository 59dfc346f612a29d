"""Results as people want to see them: text, tables, pictures, a video, a page in a real browser."""

import csv
import json
import os
import subprocess

import av
import cv2
import numpy as np
import pytest
from conftest import ROOT, ffmpeg

from clients.analysis import (
    Analysis,
    ClipAnswer,
    Options,
    Segment,
    SourceInfo,
    Track,
    Window,
)
from clients.reports.annotate import annotate
from clients.reports.colors import person_color, to_rgb
from clients.reports.page import write_page
from clients.reports.plot import plot
from clients.reports.tables import windows_path

BROWSER = ROOT / ".venv-browser" / "bin" / "python"
LABELS = ("happy", "sad")
POINTS = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])


def track_of(number, start, name="happy", labels=LABELS, num=20, left=40.0):
    """A person who stands still for two seconds, first with one emotion, then with another."""
    certain = np.array([0.9, 0.1] if name == "happy" else [0.2, 0.8], np.float32)
    frames = np.arange(start, start + 2 * num, 2)
    box = np.array([left, 60, left + 100, 180], np.float32)
    answer = ClipAnswer(
        logits=np.log(certain),
        probabilities=certain,
        shares=np.linspace(1, 2, num, dtype=np.float32) / (1.5 * num),
        frame_logits=np.tile(np.log(certain), (num, 1)),
        model_version="1",
    )
    halves = [certain, certain[::-1]]
    seconds = frames / 20
    windows = tuple(
        Window(
            start=float(seconds[0]) + i,
            end=float(seconds[0]) + i + 1,
            first=i * num // 2,
            last=(i + 1) * num // 2,
            probabilities=probabilities,
            coverage=1.0,
        )
        for i, probabilities in enumerate(halves)
    )
    segments = tuple(
        Segment(
            start=w.start,
            end=w.end,
            emotion=labels[int(w.probabilities.argmax())],
            probability=0.9,
        )
        for w in windows
    )
    return Track(
        number=number,
        labels=labels,
        frames=frames,
        seconds=seconds,
        boxes=np.tile(box, (num, 1)),
        landmarks=np.tile(box[:2] + 100 * POINTS, (num, 1, 1)),
        scores=np.full(num, 0.9, np.float32),
        answer=answer,
        windows=windows,
        segments=segments,
        coverage=0.8,
    )


def analysis_of(*tracks, name="clip.webm", labels=LABELS):
    frames = np.arange(0, 60, 2)
    return Analysis(
        source=SourceInfo(name=name, width=320, height=240, fps=20.0, duration=3.0),
        options=Options(window=1.0, step=1.0),
        labels=labels,
        tracks=tracks,
        frames=frames,
        seconds=frames / 20,
        model="fan",
        model_version="1",
        url="nowhere:1",
        created="2026-11-26T12:00:00+00:00",
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds of a test picture with a tone, as WebM: what every browser plays."""
    target = tmp_path_factory.mktemp("clip") / "clip.webm"
    picture = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=20:d=3")
    tone = ("-f", "lavfi", "-i", "sine=d=3")
    coded = ("-c:v", "libvpx", "-b:v", "500k", "-g", "10", "-deadline", "realtime")
    ffmpeg(*picture, *tone, *coded, "-c:a", "libopus", target)
    return target


@pytest.fixture
def two():
    return analysis_of(track_of(1, 0), track_of(2, 10, "sad", left=190.0))


# --- text ---


def test_text_names_every_person_with_times_and_segments(two):
    lines = two.to_text().splitlines()
    assert lines[:2] == ["person 1, 0.0-1.9 s", "happy  90.0%  seen in 80% of the frames"]
    assert "  0.0-1.0 s happy, 1.0-2.0 s sad" in lines
    assert "person 2, 0.5-2.4 s" in lines
    assert lines[-1] == "frames: 30 looked at, 25 with a face, 5 without"


def test_labels_that_hold_control_characters_are_printed_clean():
    labels = ("happy\x1b[31m", "sad\nforged: line")
    text = analysis_of(track_of(1, 0, labels=labels), labels=labels).to_text()
    assert "\x1b" not in text
    assert not any(line.startswith("forged") for line in text.splitlines())


# --- tables ---


def test_csv_has_a_row_a_frame_and_face_and_a_row_a_window(two, tmp_path):
    two.to_csv(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    first = rows[0]
    assert (first["video"], first["track"], first["frame"], first["time_s"]) == (
        *("clip.webm", "1", "0", "0.0"),
    )
    assert float(first["right"]) - float(first["left"]) == 100
    assert float(first["nose_x"]) == pytest.approx(90)
    assert sum(float(first[label]) for label in LABELS) == pytest.approx(1, abs=1e-5)
    shares = [float(row["share"]) for row in rows if row["track"] == "2"]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    with windows_path(tmp_path / "t.csv").open(newline="") as file:
        windows = list(csv.DictReader(file))
    assert [(w["track"], w["start_s"], w["faces"]) for w in windows] == [
        *(("1", "0.0", "10"), ("1", "1.0", "10"), ("2", "0.5", "10"), ("2", "1.5", "10")),
    ]


def test_json_is_an_object_of_schema_1_that_says_the_same(two):
    said = json.loads(two.to_json())
    assert said == two.to_dict()
    assert said["schema"] == 1
    assert [track["emotion"] for track in said["tracks"]] == ["happy", "sad"]
    assert said["tracks"][1]["segments"][0]["start_s"] == 0.5


def test_frame_of_pandas_has_the_rows_of_the_csv(two):
    pandas = pytest.importorskip("pandas", reason="pandas is optional")
    frame = two.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 40


# --- pictures ---


def test_plot_draws_every_person(two, clip, tmp_path):
    plot(two, clip, tmp_path / "p.png")
    plot(analysis_of(track_of(1, 0)), clip, tmp_path / "one.png")
    both, one = (cv2.imread(str(tmp_path / name)) for name in ("p.png", "one.png"))
    assert both.shape[0] > 1.7 * one.shape[0]
    happy = np.array((0x23, 0xB9, 0xE8))  # BGR of its colour
    assert (np.abs(one.astype(int) - happy).max(axis=2) < 3).sum() > 5000


def test_annotated_video_draws_everyone_in_a_colour_of_their_own(two, clip, tmp_path):
    annotate(two, clip, tmp_path / "seen.mp4")
    with av.open(str(tmp_path / "seen.mp4")) as made, av.open(str(clip)) as given:
        after, before = list(made.decode(video=0)), list(given.decode(video=0))
        assert [f.time for f in after] == pytest.approx([f.time for f in before], abs=1e-3)
        assert made.streams.audio  # sound is kept
    image = after[20].to_ndarray(format="rgb24").astype(int)
    for track in two.tracks:
        left, top, right, bottom = track.boxes[0].astype(int)
        edge = image[(top + bottom) // 2, [left, right]]
        assert np.abs(edge - to_rgb(person_color(track.number))).max() < 60  # 4:2:0 blurs colours
    first = after[0].to_ndarray(format="rgb24").astype(int)
    edge = first[120, 190]
    assert np.abs(edge - to_rgb(person_color(2))).max() > 60  # who is not there yet has no box


# --- the page ---


def browser(theme):
    """The environment of a browser without a display, of a theme."""
    preferred = {"dark": 0, "light": 1}[theme]  # Blink's numbers
    # As root, which containers of tests run as, Chromium wants no sandbox.
    colors = f"--blink-settings=preferredColorScheme={preferred}"
    flags = ("--no-sandbox", "--disable-gpu", "--mute-audio", colors)
    return {
        **os.environ,
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_CHROMIUM_FLAGS": " ".join(flags),
    }


@pytest.fixture(scope="module")
def browsed(clip, tmp_path_factory):
    """What a browser showed of the page, in a light and a dark theme."""
    folder = tmp_path_factory.mktemp("page")
    tracks = track_of(1, 0), track_of(2, 10, "sad", left=190.0)
    write_page(analysis_of(*tracks), clip, folder / "page.html")
    seen = {}
    for theme in ("light", "dark"):
        script, shot = ROOT / "tests/clients/browse.py", folder / f"{theme}.png"
        command = [BROWSER, script, folder / "page.html", shot]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=browser(theme), timeout=180
        )
        assert done.returncode == 0, done.stderr
        seen[theme] = json.loads(done.stdout)
        assert cv2.imread(str(folder / f"{theme}.png")) is not None
    return seen


def test_page_shows_everyone_without_a_word_on_the_console(browsed):
    seen = browsed["light"]
    assert seen["console"] == []
    first = seen["at first"]
    assert first["title"] == "clip.webm: happy, sad"
    assert (first["people"], first["faces"], first["rows"]) == (2, 12, 2)
    assert first["ready"] >= 2  # the video plays


def test_click_on_a_timeline_seeks_the_player(browsed):
    clicked = browsed["light"]["clicked in the middle"]
    assert clicked["player"] == pytest.approx(1.5, abs=0.05)
    assert clicked["now"] == f"{clicked['player']:.2f} s, now sad 90 %"


def test_keys_move_by_a_step_and_to_the_start(browsed):
    seen = browsed["light"]
    assert seen["one step on"]["player"] == pytest.approx(
        seen["clicked in the middle"]["player"] + 1, abs=0.01
    )
    assert seen["home"]["player"] == 0


def test_click_on_a_face_seeks_to_it(browsed):
    clicked = browsed["light"]["clicked a face"]
    assert clicked["player"] == pytest.approx(1.4, abs=0.01)  # the first of those that count most


def test_dark_theme_has_dark_paper(browsed):
    light, dark = (browsed[theme]["at first"]["paper"] for theme in ("light", "dark"))
    assert light == "rgb(255, 255, 255)"
    assert dark == "rgb(20, 24, 28)"


def test_page_needs_no_network_and_no_name_can_break_out_of_it(clip, tmp_path):
    evil = "</script><script>alert(1)</script>"
    labels = (evil, "sad")
    tracks = [track_of(1, 0, labels=labels)]
    write_page(analysis_of(*tracks, name=evil, labels=labels), clip, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert evil not in page
    assert page.count("</script>") == 2
    assert "http://" not in page
    assert "https://" not in page


def test_large_video_is_linked_instead_of_embedded(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("clients.reports.page.EMBEDDED_MB", 0.0)
    (tmp_path / "videos").mkdir()
    copy = tmp_path / "videos" / "clip.webm"
    copy.write_bytes(clip.read_bytes())
    write_page(analysis_of(track_of(1, 0)), copy, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert '"video":"videos/clip.webm"' in page
