"""A written video has the input's times and sound, and is there whole or not at all."""

import resource

import av
import numpy as np
import pytest
from conftest import ffmpeg

from clients.errors import NotWritten
from clients.video import read_frames
from clients.writer import VideoWriter

SIZE = (64, 48)


def picture(i):
    return np.full((48, 64, 3), 10 * i % 250, np.uint8)


def test_uneven_times_are_kept(tmp_path):
    seconds = [0.0, 0.04, 0.08, 1.5, 1.54, 4.0]
    with VideoWriter(tmp_path / "seen.mp4", fps=25, size=SIZE) as writer:
        for i, time in enumerate(seconds):
            writer.write(picture(i), time)
    read = [frame.pts_seconds for frame in read_frames(tmp_path / "seen.mp4")]
    assert read == pytest.approx(seconds, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["seen.mp4"]


@pytest.mark.parametrize("codec", ["aac", "mp3"])
def test_sound_is_kept_as_far_as_the_frames_go(tmp_path, codec):
    source = tmp_path / "source.mkv"
    tone = ["-f", "lavfi", "-i", "sine=duration=4", "-c:a", codec]
    gray = ["-f", "lavfi", "-i", "color=gray:size=64x48:rate=25:duration=4"]
    ffmpeg(*gray, *tone, "-c:v", "libx264", source)
    with VideoWriter(tmp_path / "seen.mp4", fps=25, size=SIZE, sound_of=source) as writer:
        for i in range(50):
            writer.write(picture(i), i / 25)
    with av.open(str(tmp_path / "seen.mp4")) as written:
        (sound,) = written.streams.audio
        assert sound.codec_context.name.startswith(codec)
        assert float(sound.duration * sound.time_base) == pytest.approx(2, abs=0.1)


def test_source_without_sound_gives_none(sample, tmp_path):
    with VideoWriter(tmp_path / "seen.mp4", fps=25, size=SIZE, sound_of=sample) as writer:
        writer.write(picture(0), 0.0)
    with av.open(str(tmp_path / "seen.mp4")) as written:
        assert not written.streams.audio


def test_name_with_a_colon_or_of_full_length_is_written(tmp_path):
    for name in ("12:30.mp4", f"{'x' * 251}.mp4"):
        with VideoWriter(tmp_path / name, fps=25, size=SIZE) as writer:
            writer.write(picture(0), 0.0)
        assert (tmp_path / name).stat().st_size > 500


def test_full_disk_is_told_by_name_and_the_old_file_kept(tmp_path):
    target = tmp_path / "seen.mp4"
    target.write_bytes(b"as it was")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # what a file may grow to
    try:
        with (
            pytest.raises(NotWritten, match=r"seen.mp4 cannot be written \(File too large\)"),
            VideoWriter(target, fps=25, size=SIZE) as writer,
        ):
            for i in range(200):
                writer.write(np.roll(noise, 7 * i, 1), i / 25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["seen.mp4"]


def test_failure_half_way_leaves_the_old_file(tmp_path):
    target = tmp_path / "seen.mp4"
    target.write_bytes(b"as it was")
    with pytest.raises(KeyboardInterrupt), VideoWriter(target, fps=25, size=SIZE) as writer:
        writer.write(picture(0), 0.0)
        raise KeyboardInterrupt
    assert target.read_bytes() == b"as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["seen.mp4"]


def test_folder_that_is_not_there_is_told(tmp_path):
    words = r"cannot be written \(No such file or directory\)"
    target = tmp_path / "no" / "seen.mp4"
    with (
        pytest.raises(NotWritten, match=words),
        VideoWriter(target, fps=25, size=SIZE) as writer,
    ):
        writer.write(picture(0), 0.0)
