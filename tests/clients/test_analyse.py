"""Everyone in a video is named, all along it; windows are clips like any other."""

import cv2
import numpy as np
import pytest
from conftest import ffmpeg

import videofer
from clients.analyse import analyse
from clients.analysis import Options
from clients.errors import NoFaceFound, VideoUnreadable
from clients.faces import align
from clients.triton import TritonClient
from clients.video import read_frames

LONG = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", 18)


@pytest.fixture(scope="module")
def pair(sample, tmp_path_factory):
    """The sample's person beside herself, mirrored and smaller, who comes a second later."""
    target = tmp_path_factory.mktemp("pair") / "pair.mp4"
    beside = (
        "[0:v]trim=0:1,setpts=PTS-STARTPTS,loop=2:25[a];[1:v]trim=0:1,setpts=PTS-STARTPTS,loop=2:25,"
        "hflip,scale=240:240,pad=360:360:60:60[b];[b]drawbox=c=black:t=fill:enable='lt(t,1)'[c];"
        "[a][c]hstack"
    )
    ffmpeg("-i", sample, "-i", sample, "-filter_complex", beside, *LONG, target)
    return target


@pytest.fixture
def connected(server):
    with TritonClient(server.grpc_url) as client:
        yield client


def test_each_person_has_a_track_with_times_and_an_answer(pair, connected):
    analysis = analyse(pair, connected)
    one, other = analysis.tracks
    assert (one.number, other.number) == (1, 2)
    assert one.start == 0
    assert other.start == pytest.approx(1.0, abs=0.15)
    assert one.end == other.end == pytest.approx(2.9, abs=0.15)
    assert one.coverage == pytest.approx(1, abs=0.05)
    assert other.coverage == pytest.approx(2 / 3, abs=0.06)
    assert one.emotion == other.emotion == "happy"
    # Left and right: nobody's face is in the other's half.
    assert (one.boxes[:, 2] < 360).all()
    assert (other.boxes[:, 0] > 360).all()


def test_windows_are_pooled_as_the_ensemble_pools_their_crops(pair, connected):
    for track in analyse(pair, connected, Options(window=1.0, step=0.3)).tracks:
        frames = {frame.index: frame.image for frame in read_frames(pair)}
        crops = np.stack(
            [align(frames[i], p) for i, p in zip(track.frames, track.landmarks, strict=True)]
        )
        assert len(track.windows) > 2
        for window in track.windows:
            asked = connected.ask(crops[window.first : window.last])
            np.testing.assert_allclose(window.probabilities, asked.probabilities, atol=1e-5)
        whole = connected.ask(crops)
        np.testing.assert_allclose(track.answer.probabilities, whole.probabilities, atol=1e-5)
        np.testing.assert_allclose(track.answer.shares, whole.shares, atol=1e-5)


def test_window_longer_than_the_video_is_the_whole(sample, connected):
    (track,) = analyse(sample, connected, Options(window=60)).tracks
    (window,) = track.windows
    np.testing.assert_array_equal(window.probabilities, track.answer.probabilities)
    (segment,) = track.segments
    assert (segment.start, segment.end, segment.emotion) == (track.start, track.end, "happy")


def test_without_windows_there_are_no_segments(sample, connected):
    (track,) = analyse(sample, connected, Options(window=0)).tracks
    assert track.windows == track.segments == ()


def test_hard_cut_to_another_scene_begins_new_tracks(sample, tmp_path, connected):
    cut = tmp_path / "cut.mp4"
    both = (
        "[0:v]trim=0:1,setpts=PTS-STARTPTS[a];[1:v]trim=0:1,setpts=PTS-STARTPTS,hflip,"
        "scale=260:260,pad=360:360:90:90:white[b];[a][b]concat=n=2:v=1"
    )
    ffmpeg("-i", sample, "-i", sample, "-filter_complex", both, *LONG, cut)
    one, two = analyse(cut, connected).tracks
    assert one.end < 1 <= two.start
    assert len(analyse(cut, connected, Options(people=1)).tracks) == 1


def test_people_are_those_seen_most(pair, connected):
    (track,) = analyse(pair, connected, Options(people=1)).tracks
    assert len(track) > 25
    both = analyse(pair, connected, Options(people=2)).tracks
    assert [len(track) for track in both] == sorted((len(t) for t in both), reverse=True)


def test_thin_coverage_is_refused(pair, connected):
    (track,) = analyse(pair, connected, Options(min_coverage=0.8)).tracks
    assert track.start == 0
    half = Options(min_coverage=1.0)
    blank = [np.zeros((240, 320, 3), np.uint8)] * 20
    frames = [frame.image for frame in read_frames(pair, 10)]
    with pytest.raises(NoFaceFound, match=r"nobody is seen in 100% of the frames.*at most in 6"):
        videofer.analyse(
            [*frames, *blank], url=connected.url, rate=10, min_coverage=half.min_coverage
        )


def test_one_face_in_one_frame_is_an_answer(sample, connected):
    (track,) = analyse(sample, connected, Options(max_frames=1)).tracks
    assert len(track) == 1
    assert track.answer.shares == pytest.approx([1])


def test_face_too_small_is_told_with_its_size(sample, tmp_path, connected):
    far = tmp_path / "far.mp4"
    ffmpeg("-i", sample, "-vf", "trim=0:0.5,scale=40:40,pad=320:240:100:100", *LONG, far)
    with pytest.raises(NoFaceFound, match=r"the largest face was \d\d pixels; at least 40 are"):
        analyse(far, connected)


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (3840, 2160)])
def test_far_face_in_a_large_frame_is_found(sample, tmp_path, connected, width, height):
    far = tmp_path / "far.mp4"
    side = round(height / 10)
    place = f"trim=0:0.3,scale={side}:{side},pad={width}:{height}:{width // 3}:{height // 2}"
    ffmpeg("-i", sample, "-vf", place, *LONG, far)
    (track,) = analyse(far, connected, Options(max_frames=3)).tracks
    assert 40 <= (track.boxes[:, 3] - track.boxes[:, 1]).max() < 0.08 * height
    assert track.emotion == "happy"


def test_photograph_is_a_source_and_turned_upright(tmp_path, sample, connected):
    image = next(iter(read_frames(sample))).image[..., ::-1]
    jpeg = cv2.imencode(".jpg", np.rot90(image))[1].tobytes()
    # An EXIF block that says no more than: turn by 90 degrees (TIFF 6.0, tag Orientation).
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    marker = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "photo.jpg").write_bytes(jpeg[:2] + marker + jpeg[2:])
    (track,) = analyse(tmp_path / "photo.jpg", connected).tracks
    assert (track.emotion, len(track)) == ("happy", 1)


def test_arrays_are_analysed_as_the_video_they_came_from(sample, server):
    frames = [frame.image for frame in read_frames(sample)]
    of_file = videofer.analyse(sample, url=server.grpc_url)
    of_arrays = videofer.analyse(frames, url=server.grpc_url, rate=25)
    (one,), (other,) = of_file.tracks, of_arrays.tracks
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_allclose(one.answer.probabilities, other.answer.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "there are none"),
        ([np.zeros((4, 4, 3))], r"frame 0: float64 \(4, 4, 3\); expected \(H, W, 3\) uint8"),
        ([np.zeros((4, 4), np.uint8)], r"frame 0: uint8 \(4, 4\); expected"),
    ],
    ids=["none", "floats", "gray"],
)
def test_arrays_that_are_no_frames_are_refused(server, frames, words):
    with pytest.raises(VideoUnreadable, match=words):
        videofer.analyse(frames, url=server.grpc_url)


def test_options_out_of_range_are_refused(sample, server):
    with pytest.raises(ValueError, match="a step above 0"):
        videofer.analyse(sample, url=server.grpc_url, step=0)


def test_crops_of_ones_own_are_embedded_and_pooled(server):
    crops = np.random.default_rng(0).integers(0, 256, (150, 224, 224, 3), np.uint8)
    client = videofer.Client(server.grpc_url)
    features = client.embed(crops)  # more than one request takes
    assert features["features"].shape == (150, 512)
    part = {name: rows[:40] for name, rows in features.items()}
    np.testing.assert_allclose(
        client.pool(part).probabilities, client.ask(crops[:40]).probabilities, atol=1e-5
    )
    assert client.pool(features).shares.sum() == pytest.approx(1, abs=1e-5)
