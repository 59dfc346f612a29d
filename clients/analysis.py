"""What every client hands over: who was in a source, when, and with which emotion.

    source + options  ->  clients.analyse  ->  Analysis  ->  clients.reports, Python

An Analysis has Tracks, one a person. A Track has its faces, as arrays of one row a face, the answer
to all of them, its windows and its segments. One person is a tuple of one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EVEN = 1e-6  # shares that differ by less are alike


@dataclass(frozen=True, kw_only=True)
class ClipAnswer:
    """What the server says of a clip of N crops. None stands for what the network has not.

    Args:
        logits: (C,) float32.
        probabilities: (C,) float32, sums to 1.
        shares: (N,) float32, each frame's part in the answer, sums to 1; the tensor `weights`.
        frame_logits: (N, C) float32, what each frame speaks for; in FAN, seen beside its clip.
        model_version: as the server names it.
        self_weights: (N,) float32 in (0, 1), of self-attention.
        region_weights: (N, R) float32, each region's share of a face, sums to 1 over regions.
        theta: (N, 2, 3) float32, the affine window of a spatial transformer on each face.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray
    frame_logits: np.ndarray
    model_version: str
    self_weights: np.ndarray | None = None
    region_weights: np.ndarray | None = None
    theta: np.ndarray | None = None

    @property
    def frame_probabilities(self) -> np.ndarray:
        """(N, C) float, rows sum to 1: the softmax of `frame_logits`."""
        exponents = np.exp(self.frame_logits - self.frame_logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)

    @property
    def has_attention(self) -> bool:
        """Whether the network weighs frames, rather than giving each the same share."""
        return self.self_weights is not None or float(np.ptp(self.shares)) > EVEN

    @property
    def strengths(self) -> np.ndarray:
        """(N,) float in [0, 1]: each face's share or, without attention, what it says for itself.

        That is how probable the face alone makes the clip's emotion.
        """
        if self.has_attention:
            return self.shares
        return self.frame_probabilities[:, int(self.probabilities.argmax())]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A clip cut from a track by time.

    Args:
        start, end: seconds of the source.
        first, last: the track's faces [first, last) are in it.
        probabilities: (C,) float32, sums to 1.
        coverage: share of the frames looked at meanwhile that have this face, 0..1.
    """

    start: float
    end: float
    first: int
    last: int
    probabilities: np.ndarray
    coverage: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a track with one emotion: neighbouring windows that agree.

    Args:
        start, end: seconds of the source.
        emotion: one of the labels.
        probability: mean over its windows, 0..1.
    """

    start: float
    end: float
    emotion: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Track:
    """One person through a source, from where they appear to where they leave. N faces.

    Args:
        number: from 1, in the order of appearance.
        labels: the C emotions, in the order of probabilities.
        frames: (N,) int64, places of the frames in the source, from 0; they grow.
        seconds: (N,) float64, the frames' times.
        boxes: (N, 4) float32: left, top, right, bottom in pixels of the frame.
        landmarks: (N, 5, 2) float32, x and y: eyes, nose, corners of the mouth.
        scores: (N,) float32, the detector's confidence, 0..1.
        answer: to all of its faces as one clip.
        windows: in time order.
        segments: in time order; they fill the time from the first face to the last.
        coverage: share of all frames looked at that have this face, 0..1.
    """

    number: int
    labels: tuple[str, ...]
    frames: np.ndarray
    seconds: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray
    answer: ClipAnswer
    windows: tuple[Window, ...]
    segments: tuple[Segment, ...]
    coverage: float

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def emotion(self) -> str:
        """The most probable label of the whole."""
        return self.labels[int(self.answer.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """How probable it is, 0..1."""
        return float(self.answer.probabilities.max())

    @property
    def start(self) -> float:
        """Seconds of the first face."""
        return float(self.seconds[0])

    @property
    def end(self) -> float:
        """Seconds of the last face."""
        return float(self.seconds[-1])


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What was looked at.

    Args:
        name: as a person calls it: printable, without a URL's password.
        width, height: pixels of a frame as a player shows it.
        fps: frames a second of the source; 0 where unknown.
        duration: seconds; None where unknown, as of a live source.
    """

    name: str
    width: int
    height: int
    fps: float
    duration: float | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked.

    Args:
        fps: frames to look at for each second, evenly; 0 for every frame.
        max_frames: look at no more than so many; None for all.
        people: how many tracks to give, those of most faces; 1 follows the largest face from the
            start to the end, through cuts; None for everyone.
        window: seconds of a window; 0 for none.
        step: seconds from a window to the next.
        min_coverage: tracks of less are left out, 0..1.
    """

    fps: float = 10.0
    max_frames: int | None = None
    people: int | None = None
    window: float = 2.0
    step: float = 0.5
    min_coverage: float = 0.0

    def __post_init__(self) -> None:
        if self.fps < 0 or self.window < 0 or self.step <= 0 or not 0 <= self.min_coverage <= 1:
            raise ValueError(
                f"{self}: expected fps and window from 0, a step above 0, min_coverage 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The answer to a source.

    Args:
        source: what was looked at.
        options: what was asked.
        labels: the C emotions, in the order of all probabilities.
        tracks: in the order of appearance; at least one.
        frames: (M,) int64, places of the frames looked at, in time order.
        seconds: (M,) float64, their times.
        dropped: frames of a live source that were passed over rather than lag.
        damaged: packets that could not be decoded.
        stopped_early: whether frames after the last looked at were left out, as max_frames asks.
        model: the ensemble that answered.
        model_version: as the server names it.
        url: where it answered.
        created: when, in UTC, as ISO 8601.
    """

    source: SourceInfo
    options: Options
    labels: tuple[str, ...]
    tracks: tuple[Track, ...]
    frames: np.ndarray
    seconds: np.ndarray
    dropped: int = 0
    damaged: int = 0
    stopped_early: bool = False
    model: str
    model_version: str
    url: str
    created: str

    @property
    def track(self) -> Track:
        """The track of most faces."""
        return max(self.tracks, key=len)

    @property
    def emotion(self) -> str:
        """The emotion of the person who is seen most."""
        return self.track.emotion

    def to_dict(self) -> dict[str, Any]:
        """Say all of it in lists, numbers and text, as docs/results.md describes: `schema` 1."""
        from clients.reports.tables import to_dict

        return to_dict(self)

    def to_json(self) -> str:
        """Write `to_dict` as one JSON object on one line."""
        from clients.reports.tables import to_json

        return to_json(self)

    def to_text(self) -> str:
        """Write the answer for a person."""
        from clients.reports.text import to_text

        return to_text(self)

    def to_csv(self, path: str | Path) -> None:
        """Write a row a frame and face; beside it NAME.windows.csv, a row a window."""
        from clients.reports.tables import write_csv

        write_csv(self, Path(path))

    def to_frame(self) -> Any:
        """Give the rows of `to_csv` as a pandas DataFrame; pandas must be installed."""
        import pandas

        from clients.reports.tables import face_rows

        return pandas.DataFrame(face_rows(self))
