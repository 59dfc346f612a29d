"""A live source: who shows which emotion, step by step, as it happens.

    camera, RTSP, URL  ->  Grabber, a thread  ->  newest frames  ->  faces  ->  Moment, ...
                                                                     at the end  ->  Analysis

Frames are dropped, and counted, rather than lag. A stream that breaks is opened again, after pauses
that grow.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from clients.analyse import Seen, about, conclude, following
from clients.analysis import Analysis, Options
from clients.errors import VideoUnreadable
from clients.faces import DetectorPool, align
from clients.stream import FeatureStream
from clients.triton import TritonClient
from clients.video import Frame, Video, is_stream
from clients.windows import Span

logger = logging.getLogger(__name__)

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # before a broken stream is opened again
LAG_S = 0.5  # of frames that wait; older ones are dropped
WAIT_S = 0.1  # how often a wait for a frame looks at the clock


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What one person shows now: the answer to the last window of their track.

    Args:
        track: the person's number.
        time: seconds since the first frame.
        start: seconds, where the window begins.
        faces: how many are in the window.
        coverage: share of the frames looked at in it that have the face, 0..1.
        probabilities: (C,) float32, sums to 1.
        labels: the C emotions.
        box: (4,) float32, of the newest face: left, top, right, bottom in pixels.
        dropped: frames passed over so far, rather than lag.
        behind: seconds from the newest frame's arrival to this answer.
    """

    track: int
    time: float
    start: float
    faces: int
    coverage: float
    probabilities: np.ndarray
    labels: tuple[str, ...]
    box: np.ndarray
    dropped: int
    behind: float

    @property
    def emotion(self) -> str:
        """The most probable label."""
        return self.labels[int(self.probabilities.argmax())]

    def to_dict(self) -> dict[str, Any]:
        """Say it in numbers and text, as one line of JSON has it."""
        probabilities = np.round(self.probabilities.astype(float), 6).tolist()
        return {
            "track": self.track,
            "time_s": round(self.time, 3),
            "start_s": round(self.start, 3),
            "emotion": self.emotion,
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
            "faces": self.faces,
            "coverage": round(self.coverage, 4),
            "box": np.round(self.box.astype(float), 1).tolist(),
            "dropped": self.dropped,
            "behind_s": round(self.behind, 3),
        }


class Grabber:
    """Decodes a live source in a thread, and keeps the frames of the last LAG_S alone.

    Raises:
        VideoUnreadable: on entering, where the source cannot be opened at first.
    """

    def __init__(self, spec: str | Path, fps: float) -> None:
        self.spec = spec
        self.fps = fps
        self.video = Video(spec)
        self.lock = threading.Condition()
        self.waiting: deque[tuple[Frame, float]] = deque()
        self.dropped = 0
        self.index = 0
        self.ended = False
        self.stopped = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.work, daemon=True, name="grabber")

    def __enter__(self) -> Self:
        self.video.open()
        try:
            self.info = self.video.info()
        except BaseException:
            self.video.close()
            raise
        self.began = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.thread.join(timeout=5)  # one that hangs in the network dies with the process

    @property
    def is_endless(self) -> bool:
        """Whether the source breaks off rather than ends: one that tells no duration."""
        return is_stream(self.spec) and self.info.duration is None

    def work(self) -> None:
        """Decode until the source ends or nobody wants more; open it again where it broke."""
        failures = 0
        try:
            while not self.stopped.is_set():
                failures = 0 if self.decode() else failures + 1
                if self.stopped.is_set() or not self.is_endless:
                    break
                pause = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
                logger.warning("%s broke off; opening it again in %g s", self.video.name, pause)
                self.stopped.wait(pause)
        except Exception as error:  # noqa: BLE001  raised again where it can be handled
            self.error = error
        finally:
            with self.lock:
                self.ended = True
                self.lock.notify_all()

    def decode(self) -> bool:
        """Decode to where the source ends or breaks; say whether there was a frame."""
        first = self.index
        try:
            with self.video as video:  # open already, at first
                base = time.monotonic() - self.began
                for frame in video.frames(self.fps):
                    if self.stopped.is_set():
                        break
                    self.wait_until(base + frame.pts_seconds)
                    self.offer(frame.image, base + frame.pts_seconds)
        except VideoUnreadable as error:
            if not self.is_endless:
                raise
            logger.info("%s", error)
        return self.index > first

    def wait_until(self, seconds: float) -> None:
        """Hold a file to its own pace, as if it were live."""
        if not is_stream(self.spec):
            self.stopped.wait(max(0.0, self.began + seconds - time.monotonic()))

    def offer(self, image: np.ndarray, seconds: float) -> None:
        """Let a frame wait to be looked at."""
        with self.lock:
            self.waiting.append((Frame(image, self.index, seconds), time.monotonic()))
            self.drop()
            self.index += 1
            self.lock.notify_all()

    def drop(self) -> None:
        """Drop the oldest frames: those that wait too long, or that are too many."""
        most = max(1, round(LAG_S * (self.fps or self.info.fps)))
        late = time.monotonic() - LAG_S
        while len(self.waiting) > most or (len(self.waiting) > 1 and self.waiting[0][1] < late):
            self.waiting.popleft()
            self.dropped += 1

    def take(self) -> tuple[Frame, float] | None:
        """Wait at most WAIT_S for the next frame and its arrival; None where there is none."""
        with self.lock:
            if not self.waiting and not self.ended:
                self.lock.wait(WAIT_S)
            self.drop()
            return self.waiting.popleft() if self.waiting else None


class Live:
    """A live analysis: iterate it for its moments; `analysis()` is the summary of the whole.

        with Live("rtsp://camera/1", client) as live:
            for moment in live:
                print(moment.track, moment.emotion)
            print(live.analysis().to_text())

    Args:
        source: a camera ("0", "/dev/video0"), a URL, "-"; a file is played at its own pace.
        client: an entered client of the network to ask.
        options: `window` and `step` say what a moment is of, and how often it comes.
        duration: seconds after which it ends; None for as long as the source gives frames.

    Raises:
        VideoUnreadable: on entering, where the source cannot be opened.
    """

    def __init__(
        self,
        source: str | Path,
        client: TritonClient,
        options: Options = Options(),  # noqa: B008 (frozen)
        duration: float | None = None,
    ) -> None:
        self.grabber = Grabber(source, options.fps)
        self.options = options
        self.duration = duration
        self.stream = FeatureStream(client)
        self.detectors = DetectorPool()
        self.seen = Seen()

    def __enter__(self) -> Self:
        self.grabber.__enter__()
        self.detectors.__enter__()
        self.stream.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stream.__exit__()
        self.detectors.__exit__()
        self.grabber.__exit__()

    def __iter__(self) -> Iterator[Moment]:
        follower = following(self.options)
        due = self.options.step
        ends = None if self.duration is None else time.monotonic() + self.duration
        while not self.grabber.ended or self.grabber.waiting:
            if ends is not None and time.monotonic() >= ends:
                return
            taken = self.grabber.take()
            if taken is None:
                continue
            frame, arrived = taken
            faces = self.detectors.detect(frame.image)
            for number, face in self.seen.look(frame, faces, follower):
                self.stream.add(number, align(frame.image, face.landmarks))
            if frame.pts_seconds >= due:
                due = frame.pts_seconds + self.options.step
                yield from self.moments(frame, arrived)
        if self.grabber.error:
            raise self.grabber.error

    def moments(self, frame: Frame, arrived: float) -> Iterator[Moment]:
        """Give a moment of everyone who is in the frame."""
        self.stream.flush()
        for number, faces in self.seen.tracks.items():
            if faces.frames[-1] != frame.index:
                continue
            length = self.options.window or self.options.step
            start = max(faces.seconds[0], frame.pts_seconds - length)
            first = int(np.searchsorted(faces.seconds, start))
            span = Span(start=start, end=frame.pts_seconds, first=first, last=len(faces))
            (answer,) = self.stream.pool_spans(number, [span])
            yield Moment(
                track=number,
                time=frame.pts_seconds,
                start=start,
                faces=span.last - span.first,
                coverage=self.seen.coverage(span, closed=True),
                probabilities=answer.probabilities,
                labels=self.stream.client.contract.labels,
                box=faces.boxes[-1],
                dropped=self.grabber.dropped,
                behind=time.monotonic() - arrived,
            )

    def analysis(self) -> Analysis:
        """Sum up all that was seen; once, at the end.

        Raises:
            NoFaceFound: where nobody was.
        """
        name, info = self.grabber.video.name, self.grabber.info
        chosen = self.seen.chosen(name, self.options)
        return conclude(
            about(name, info),
            self.seen,
            chosen,
            self.stream,
            self.options,
            damaged=self.grabber.video.damaged,
            dropped=self.grabber.dropped,
        )
