"""Frames come out of a video upright, with their times, evenly, and one by one."""

import numpy as np
import pytest
from conftest import ffmpeg

from clients.errors import VideoUnreadable
from clients.sample import FPS
from clients.video import prefetch, read_frames, read_info


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


def test_damaged_video_is_warned_about(sample, tmp_path, caplog):
    content = bytearray(sample.read_bytes())
    content[60_000:170_000] = bytes(110_000)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    num_frames = len(times(damaged))
    assert f"only {num_frames} of the 125 frames its header promises" in caplog.text


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
