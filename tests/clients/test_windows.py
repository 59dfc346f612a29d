"""A track is cut into windows and segments by the rule that clients/windows.py writes down."""

import numpy as np
import pytest

from clients.analysis import Window
from clients.windows import cut, segment

LABELS = ("happy", "sad", "neutral")


def times(end, fps=10.0):
    return np.arange(0, end + 1e-9, 1 / fps)


def windows(named, step=0.5, length=2.0):
    """Windows each step, each sure of the emotion named by its letter."""
    return [
        Window(
            start=i * step,
            end=i * step + length,
            first=0,
            last=1,
            probabilities=np.eye(3)["hsn".index(letter)],
            coverage=1.0,
        )
        for i, letter in enumerate(named)
    ]


def told(segments):
    return [(round(s.start, 3), round(s.end, 3), s.emotion) for s in segments]


def test_windows_come_each_step_and_the_last_ends_with_the_last_face():
    spans = cut(times(5.3), 2.0, 0.5)
    starts = [span.start for span in spans]
    assert starts == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.3])
    assert spans[-1].end == pytest.approx(5.3)
    assert spans[-1].last == 54


def test_face_on_a_border_is_in_the_next_window_alone_but_at_the_end():
    first, *_, last = cut(times(4.0), 2.0, 2.0)
    assert (first.first, first.last) == (0, 20)
    assert (last.first, last.last) == (20, 41)


@pytest.mark.parametrize("end", [0.0, 1.3, 2.0])
def test_track_no_longer_than_a_window_is_one_window(end):
    (span,) = cut(times(end), 2.0, 0.5)
    assert (span.start, span.end, span.first, span.last) == (0, end, 0, len(times(end)))


def test_window_without_a_face_is_left_out():
    seconds = np.concatenate([times(2.0), 10 + times(2.0)])
    spans = cut(seconds, 2.0, 1.0)
    assert all(span.last > span.first for span in spans)
    assert not any(span.start > 3 and span.end < 10 for span in spans)


def test_neighbours_of_one_emotion_are_one_segment_and_segments_fill_the_track():
    segments = segment(windows("sssshhhh"), LABELS, 0.0, 5.5)
    # Windows speak for the time around their middles: 1.0, 1.5, ...
    assert told(segments) == [(0.0, 2.75, "sad"), (2.75, 5.5, "happy")]
    assert [s.probability for s in segments] == [1.0, 1.0]


def test_flicker_shorter_than_half_a_window_goes_to_its_longer_neighbour():
    assert told(segment(windows("sssshsss"), LABELS, 0.0, 5.5)) == [(0.0, 5.5, "sad")]
    assert told(segment(windows("sssnhhhh"), LABELS, 0.0, 5.5)) == [
        (0.0, 2.25, "sad"),
        (2.25, 5.5, "happy"),
    ]


def test_the_shortest_flicker_goes_first():
    # "n" (0.5 s) joins the longer "h"; then nothing is left that is too short.
    kept = told(segment(windows("ssshhhnhhh"), LABELS, 0.0, 6.5))
    assert kept == [(0.0, 2.25, "sad"), (2.25, 6.5, "happy")]


def test_stretch_of_half_a_window_stays():
    assert [s.emotion for s in segment(windows("sssshhssss"), LABELS, 0.0, 6.5)] == [
        "sad",
        "happy",
        "sad",
    ]


def test_time_with_nobody_in_it_belongs_to_no_segment():
    early, late = windows("ss"), windows("ss")
    late = [
        Window(**{**vars(w), "start": w.start + 10, "end": w.end + 10})  # the same, later
        for w in late
    ]
    assert told(segment([*early, *late], LABELS, 0.0, 12.5)) == [
        (0.0, 2.5, "sad"),
        (10.0, 12.5, "sad"),
    ]


def test_no_windows_make_no_segments():
    assert segment([], LABELS, 0.0, 3.0) == ()
