"""Frames come out of a video upright, with their times, evenly, and one by one."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ffmpeg

from clients.errors import VideoUnreadable
from clients.sample import FPS
from clients.video import in_order, prefetch, read_frames, read_info


def times(path, **options):
    return [frame.pts_seconds for frame in read_frames(path, **options)]


def test_every_frame_is_read_once_with_its_time(sample):
    frames = list(read_frames(sample))
    assert [frame.index for frame in frames] == list(range(125))
    expected = [i / FPS for i in range(125)]
    assert [frame.pts_seconds for frame in frames] == pytest.approx(expected)
    assert frames[0].image.shape == (360, 360, 3)


def test_sampled_frames_are_even_in_time_and_as_many_as_foretold(sample):
    sampled = times(sample, fps=10)
    assert len(sampled) == 50 == read_info(sample).num_sampled(10, None)
    assert max(abs(t - i / 10) for i, t in enumerate(sampled)) <= 1 / FPS


def test_rate_above_the_videos_takes_every_frame(sample):
    assert len(times(sample, fps=1000)) == 125


def test_max_frames_stops_early(sample):
    assert times(sample, fps=5, max_frames=3) == pytest.approx([0, 0.2, 0.4])


def test_times_of_a_video_of_uneven_rate_are_kept(sample, tmp_path):
    uneven = tmp_path / "uneven.mp4"
    slower = "settb=1/1000,setpts='if(lt(N,50),N/50/TB,(1+(N-50)/5)/TB)'"
    ffmpeg("-i", sample, "-vf", slower, "-fps_mode", "vfr", "-enc_time_base", "1:1000", uneven)
    read = times(uneven)
    assert len(read) == 125
    assert read[49:53] == pytest.approx([0.98, 1.0, 1.2, 1.4], abs=0.011)
    # Evenly by time, not by count: 10 a second of the fast second, every one of the slow rest.
    assert len(times(uneven, fps=10)) == 10 + 75


def test_rotated_video_is_read_upright(sample, tmp_path):
    wide, turned = tmp_path / "wide.mp4", tmp_path / "turned.mp4"
    ffmpeg("-i", sample, "-vf", "crop=360:200", "-frames:v", 3, wide)
    ffmpeg("-display_rotation", 90, "-i", wide, "-c", "copy", turned)
    info = read_info(turned)
    assert (info.width, info.height) == (200, 360)
    upright = next(iter(read_frames(wide))).image
    image = next(iter(read_frames(turned))).image
    np.testing.assert_array_equal(image, np.rot90(upright))


def test_picture_is_rgb(tmp_path):
    red = tmp_path / "red.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64:duration=0.2", red)
    image = next(iter(read_frames(red))).image
    assert image[32, 32, 0] > 200 > 60 > image[32, 32, 2]


def test_bytes_that_a_camera_appended_are_no_cut(sample, tmp_path):
    longer = tmp_path / "longer.mp4"
    longer.write_bytes(sample.read_bytes() + b"A" * 100)
    assert len(times(longer)) == 125


def test_damaged_packets_are_passed_over_and_told(sample, tmp_path, caplog):
    content = bytearray(sample.read_bytes())
    content[60_000:100_000] = bytes(40_000)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    read = times(damaged)
    assert 60 < len(read) < 125
    assert read[-1] == pytest.approx(124 / FPS)  # what comes after the damage is read
    assert "damaged packets were passed over" in caplog.text


def test_nothing_is_warned_about_where_nothing_was_lost(sample, tmp_path, caplog):
    trimmed = tmp_path / "trimmed.mp4"
    ffmpeg("-ss", 0.7, "-i", sample, "-c", "copy", trimmed)
    assert len(times(trimmed)) < 125
    assert caplog.text == ""


# A clip of NUM frames: frame i is a gray of level(i), but for a square that is wider than high.
NUM = 12
RATE = 10


def level(i):
    return 40 + 15 * i


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A video without loss, whose frames say their number by their brightness."""
    path = tmp_path_factory.mktemp("numbered") / "numbered.mkv"
    gray = f"color=black:size=96x64:rate={RATE}:duration={NUM / RATE},format=gray"
    ffmpeg("-f", "lavfi", "-i", f"{gray},geq=lum='40+15*N'", "-c:v", "ffv1", path)
    return path


def numbers(path):
    """Which frames of `numbered` a video shows, by their brightness, and when."""
    frames = list(read_frames(path))
    shown = [round((f.image[8:-8, 8:-8].mean() - 40) / 15) for f in frames]
    return shown, [f.pts_seconds for f in frames]


ENCODED = {
    "interlaced mpeg2.mpg": ["-c:v", "mpeg2video", "-q:v", 1, "-flags", "+ildct+ilme"],
    "interlaced h264.ts": [
        "-c:v",
        "libx264",
        "-qp",
        4,
        "-x264opts",
        "tff=1",
        "-vf",
        "setfield=tff",
    ],
    "interlaced.mov": ["-c:v", "prores_ks", "-flags", "+ildct"],
    "progressive, flagged.mp4": ["-c:v", "libx264", "-qp", 4, "-x264opts", "fake-interlaced=1"],
    "av1.mp4": ["-c:v", "libsvtav1", "-preset", 12, "-crf", 4],
    "b-frames.avi": ["-c:v", "mpeg4", "-q:v", 1, "-bf", 2],
    "raw.h264": ["-c:v", "libx264", "-qp", 4],
    "raw.hevc": ["-c:v", "libx265", "-x265-params", "log-level=error:qp=4"],
    "animated.gif": [],
    "animated.apng": ["-f", "apng"],
    "ten bits.mp4": [
        "-c:v",
        "libx265",
        "-x265-params",
        "log-level=error:qp=4",
        "-pix_fmt",
        "yuv420p10le",
    ],
    "fragments.mp4": [
        "-c:v",
        "libx264",
        "-qp",
        4,
        "-g",
        4,
        "-movflags",
        "frag_keyframe+empty_moov",
    ],
    "offset.ts": ["-c:v", "libx264", "-qp", 4, "-output_ts_offset", 3600],
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_frame_of_every_kind_is_shown_at_its_own_time(numbered, tmp_path, name):
    target = tmp_path / name
    rate = [] if "animated" in name else ["-r", 25, "-pix_fmt", "yuv420p"]
    ffmpeg("-i", numbered, *rate, *ENCODED[name], target)
    shown, seconds = numbers(target)
    fps = 25 if rate else RATE
    assert seconds == pytest.approx([i / fps for i in range(len(seconds))], abs=0.006)
    each = [min(NUM - 1, round(t * RATE - 0.25)) for t in seconds]
    assert max(abs(a - b) for a, b in zip(shown, each, strict=True)) <= 1
    assert sorted(set(shown)) == list(range(NUM))


@pytest.mark.parametrize("ratio", ["4/3", "64/45", "2/1", "1/2"])
def test_pixels_that_are_not_square_are_shown_as_a_player_does(numbered, tmp_path, ratio):
    squeezed = tmp_path / "squeezed.mkv"
    ffmpeg("-i", numbered, "-vf", f"setsar={ratio}", "-c:v", "ffv1", squeezed)
    above, below = map(int, ratio.split("/"))
    height, width = next(read_frames(squeezed)).image.shape[:2]
    assert width / height == pytest.approx(96 / 64 * above / below, rel=0.02)
    assert (read_info(squeezed).width, read_info(squeezed).height) == (width, height)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["-display_hflip"], np.fliplr),
        (["-display_vflip"], np.flipud),
        (["-display_rotation", 180], lambda image: np.rot90(image, 2)),
        (["-display_rotation", 270], lambda image: np.rot90(image, 3)),
        (["-display_rotation", 45], lambda image: image),
    ],
    ids=["hflip", "vflip", "180", "270", "no quarter"],
)
def test_display_matrix_is_honoured(sample, tmp_path, option, expected):
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    ffmpeg("-i", sample, "-vf", "crop=360:200", "-frames:v", 2, plain)
    ffmpeg(*option, "-i", plain, "-c", "copy", turned)
    upright = next(read_frames(plain)).image
    np.testing.assert_array_equal(next(read_frames(turned)).image, expected(upright))


def test_video_that_starts_after_its_sound_keeps_its_times(numbered, tmp_path):
    late = tmp_path / "late.mkv"
    tone = ["-f", "lavfi", "-i", "sine=duration=4"]
    ffmpeg("-itsoffset", 2, "-i", numbered, *tone, "-c:v", "copy", "-c:a", "aac", late)
    assert times(late) == pytest.approx([2 + i / RATE for i in range(NUM)], abs=0.03)


def test_stretch_without_pictures_loses_none(numbered, tmp_path):
    gap = tmp_path / "gap.mp4"
    apart = "settb=1/1000,setpts='if(lt(N,4),N*100,60000+(N-4)*100)'"
    tone = ["-f", "lavfi", "-i", "sine=duration=62", "-map", "0:v", "-map", "1:a", "-c:a", "aac"]
    way = ["-fps_mode", "vfr", "-enc_time_base", "1:1000", "-c:v", "libx264", "-bf", 0, "-qp", 4]
    ffmpeg("-i", numbered, *tone, "-vf", f"{apart},format=yuv420p", *way, gap)
    shown, seconds = numbers(gap)
    assert shown == list(range(NUM))
    assert seconds[3:5] == pytest.approx([0.3, 60.0], abs=0.06)


def test_size_that_changes_in_mid_stream_is_shown_as_it_changes(numbered, tmp_path):
    parts = []
    for size in ("96:64", "192:128"):
        part = tmp_path / f"{size.replace(':', 'x')}.ts"
        ffmpeg(
            "-i", numbered, "-vf", f"scale={size},format=yuv420p", "-c:v", "libx264", "-bf", 0, part
        )
        parts.append(part.read_bytes())
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(parts))
    frames = list(read_frames(joined))
    assert [f.image.shape[0] for f in frames] == [64] * NUM + [128] * NUM
    # The second part's times begin anew; here they go on.
    assert np.diff([f.pts_seconds for f in frames]) == pytest.approx(np.full(2 * NUM - 1, 1 / RATE))


def test_default_track_is_taken_and_a_cover_is_not(numbered, sample, tmp_path):
    two = tmp_path / "two.mkv"
    ways = [
        "-map",
        0,
        "-map",
        1,
        "-c",
        "copy",
        "-disposition:v:0",
        0,
        "-disposition:v:1",
        "default",
    ]
    ffmpeg("-i", sample, "-i", numbered, *ways, two)
    assert next(read_frames(two)).image.shape == (64, 96, 3)


def test_rate_of_the_video_itself_takes_every_frame_of_matroska(sample, tmp_path):
    rounded = tmp_path / "rounded.mkv"
    ffmpeg("-i", sample, "-vf", "setpts=N/(30*TB)", "-r", 30, rounded)
    assert len(times(rounded, fps=30)) == len(times(rounded)) == 125


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([0.0, 0.1, 3600.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.3, 0.4]),  # one absurd time
        ([5.0, 5.1, 5.2], [0.0, 0.1, 0.2]),
        ([0.0, 0.1, 0.2, 0.0, 0.1], [0.0, 0.1, 0.2, 0.3, 0.4]),  # joined streams
        ([None, None, None], [0.0, 0.1, 0.2]),
        ([0.0, 0.1, 60.0, 60.1], [0.0, 0.1, 60.0, 60.1]),  # a true gap
    ],
    ids=["leap", "offset", "anew", "none", "gap"],
)
def test_times_grow_whatever_is_told(told, expected):
    start = told[0] or 0.0
    found = [seconds for _, seconds in in_order(((i, t) for i, t in enumerate(told)), start, 0.1)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such.mp4", "no such file"),
        ("loop.mp4", "cannot be read"),
        ("x" * 300 + ".mp4", "cannot be read (File name too long)"),
        ("rtsp://user:secret@localhost:9/stream", "rtsp://localhost:9/stream cannot be opened"),
        ("http://localhost:9/clip.mp4", "cannot be opened (Connection refused)"),
        ("/dev/video97", "/dev/video97 cannot be opened (No such file or directory)"),
    ],
    ids=["missing", "loop", "long", "rtsp", "http", "camera"],
)
def test_source_that_is_not_there_is_told_in_one_line(tmp_path, name, words):
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    spec = name if name.startswith(("/", "rtsp", "http")) else tmp_path / name
    with pytest.raises(VideoUnreadable) as error:
        next(read_frames(spec))
    assert words in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_video_on_standard_input_is_read(sample, tmp_path, monkeypatch):
    piped = tmp_path / "piped.mkv"
    ffmpeg("-i", sample, "-c", "copy", piped)
    with piped.open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        assert len(times("-")) == 125


def test_prefetch_holds_no_more_than_it_was_told(sample):
    made = []
    ahead = prefetch((made.append(i) or i for i in range(100)), ahead=4)
    assert next(ahead) == 0
    assert len(made) <= 1 + 4 + 1  # taken, waiting, and one in the thread's hands
    assert list(ahead) == list(range(1, 100))


def test_prefetch_passes_errors_on():
    def failing():
        yield 1
        raise VideoUnreadable("half a frame")

    ahead = prefetch(failing())
    assert next(ahead) == 1
    with pytest.raises(VideoUnreadable, match="half a frame"):
        next(ahead)


def test_leaving_early_ends_the_reading(sample):
    ended = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            ended.append(True)

    source = endless()
    ahead = prefetch(source)
    next(ahead)
    ahead.close()
    source.close()
    assert ended


@pytest.fixture
def pieces(sample, tmp_path):
    """The sample with its index last, first, and without one."""
    ffmpeg("-i", sample, "-c", "copy", "-movflags", "+faststart", tmp_path / "first.mp4")
    ffmpeg("-i", sample, "-c", "copy", tmp_path / "last.mp4")
    ffmpeg("-i", sample, "-c", "copy", tmp_path / "none.ts")
    return tmp_path


@pytest.mark.parametrize("name", ["first.mp4", "last.mp4", "none.ts"])
def test_pipe_is_read_wherever_its_index_lies(pieces, name):
    named = pieces / "pipe"
    os.mkfifo(named)
    writer = threading.Thread(target=lambda: named.write_bytes((pieces / name).read_bytes()))
    writer.start()
    frames = list(read_frames(named))
    writer.join(timeout=10)
    assert not writer.is_alive()
    assert len(frames) == 125


def test_url_that_is_not_there_is_told_with_what_the_server_said(tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://someone:secret@127.0.0.1:{server.server_port}/none.mp4"
        with pytest.raises(VideoUnreadable, match="404 Not Found") as caught:
            read_info(url)
        server.shutdown()
    assert "secret" not in str(caught.value)
