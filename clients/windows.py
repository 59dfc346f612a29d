"""A track over time: windows, and the segments that they make.

    times of a track's faces  ->  cut      ->  spans, each pooled on its own by the server
    windows with answers      ->  segment  ->  stretches of one emotion

The rule of segments. Each window speaks for the time around its middle, to halfway to the next
window's. Neighbours of one emotion are joined. A stretch shorter than half a window is a flicker:
the shortest goes first, to its longer neighbour, until none is left. Windows more than a window
apart, with nobody seen between, are not neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from clients.analysis import Segment, Window

NEAR = 1e-6  # seconds; times that differ by less are one
FLICKER = 0.5  # of a window


@dataclass(frozen=True, kw_only=True)
class Span:
    """The part of a track that a window shows.

    Args:
        start, end: seconds.
        first, last: faces [first, last) of the track.
    """

    start: float
    end: float
    first: int
    last: int


def cut(seconds: np.ndarray, window: float, step: float) -> list[Span]:
    """Cut a track into windows: one each step, the last ends with the last face.

    Args:
        seconds: (N,) float, times of the track's faces, growing.
        window: seconds; a track that is no longer is one window.
        step: seconds from a window's start to the next one's.

    Returns:
        spans with a face each, in time order.
    """
    begin, end = float(seconds[0]), float(seconds[-1])
    if end - begin <= window + NEAR:
        return [Span(start=begin, end=end, first=0, last=len(seconds))]
    count = int((end - begin - window) / step + NEAR) + 1
    starts = [begin + k * step for k in range(count)]
    if starts[-1] + window < end - NEAR:
        starts.append(end - window)
    spans = []
    for start in starts:
        first = int(np.searchsorted(seconds, start - NEAR))
        # A face on the border is the next window's, but for the last one.
        border = NEAR if start + window >= end - NEAR else -NEAR
        last = int(np.searchsorted(seconds, start + window + border))
        if last > first:
            spans.append(Span(start=start, end=start + window, first=first, last=last))
    return spans


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A segment in the making: windows [first, last) of one emotion, from start to end."""

    first: int
    last: int
    start: float
    end: float
    emotion: int

    @property
    def length(self) -> float:
        """In seconds."""
        return self.end - self.start


def segment(
    windows: Sequence[Window], labels: Sequence[str], begin: float, end: float
) -> tuple[Segment, ...]:
    """Join windows into segments by the rule above.

    Args:
        windows: in time order.
        begin, end: seconds of the track's first and last face.
    """
    if not windows:
        return ()
    named = [int(window.probabilities.argmax()) for window in windows]
    segments = []
    for first, last in neighbours(windows):
        left = begin if first == 0 else windows[first].start
        right = end if last == len(windows) else windows[last - 1].end
        stretches = split(windows, named, first, last, left, right)
        shortest = FLICKER * (windows[first].end - windows[first].start)
        for stretch in absorb(stretches, shortest):
            its_windows = windows[stretch.first : stretch.last]
            segments.append(
                Segment(
                    start=stretch.start,
                    end=stretch.end,
                    emotion=labels[stretch.emotion],
                    probability=float(
                        np.mean([w.probabilities[stretch.emotion] for w in its_windows])
                    ),
                )
            )
    return tuple(segments)


def neighbours(windows: Sequence[Window]) -> list[tuple[int, int]]:
    """Find runs [first, last) of windows that overlap or touch."""
    breaks = [i for i in range(1, len(windows)) if windows[i].start > windows[i - 1].end + NEAR]
    edges = [0, *breaks, len(windows)]
    return list(pairwise(edges))


def split(
    windows: Sequence[Window],
    named: Sequence[int],
    first: int,
    last: int,
    left: float,
    right: float,
) -> list[Stretch]:
    """Make a stretch of each run of windows with one emotion; stretches fill left to right."""
    middles = [(windows[i].start + windows[i].end) / 2 for i in range(first, last)]
    edges = [left, *((a + b) / 2 for a, b in pairwise(middles)), right]
    stretches: list[Stretch] = []
    for i in range(first, last):
        start, end = edges[i - first], edges[i - first + 1]
        if stretches and stretches[-1].emotion == named[i]:
            stretches[-1] = replace(stretches[-1], last=i + 1, end=end)
        else:
            stretches.append(Stretch(first=i, last=i + 1, start=start, end=end, emotion=named[i]))
    return stretches


def absorb(stretches: list[Stretch], shortest: float) -> list[Stretch]:
    """Give stretches that are too short to their longer neighbours, the shortest first."""
    kept = list(stretches)
    while len(kept) > 1:
        i = min(range(len(kept)), key=lambda i: kept[i].length)
        if kept[i].length >= shortest - NEAR:
            break
        beside = [j for j in (i - 1, i + 1) if 0 <= j < len(kept)]
        j = max(beside, key=lambda j: kept[j].length)
        kept[min(i, j) : max(i, j) + 1] = [merge(kept[min(i, j)], kept[max(i, j)], kept[j].emotion)]
        kept = join(kept)
    return kept


def merge(one: Stretch, other: Stretch, emotion: int) -> Stretch:
    """Make one stretch of two neighbours."""
    return Stretch(
        first=one.first, last=other.last, start=one.start, end=other.end, emotion=emotion
    )


def join(stretches: list[Stretch]) -> list[Stretch]:
    """Join neighbours of one emotion."""
    joined: list[Stretch] = []
    for stretch in stretches:
        if joined and joined[-1].emotion == stretch.emotion:
            joined[-1] = merge(joined[-1], stretch, stretch.emotion)
        else:
            joined.append(stretch)
    return joined
