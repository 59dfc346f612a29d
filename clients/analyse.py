"""The whole path: a source and a server -> an Analysis.

    Video -> detect -> follow -> align -> FeatureStream -> pool -> Analysis

Decoding runs ahead in a thread, several frames are searched for faces at once, and crops are
embedded while later frames are still being decoded.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clients.analysis import Analysis, ClipAnswer, Options, SourceInfo, Track, Window
from clients.arrays import Arrays
from clients.errors import NoFaceFound
from clients.faces import DetectorPool, Face, align
from clients.stream import FeatureStream
from clients.tracker import Following, LargestFace, Tracker
from clients.triton import TritonClient
from clients.video import Frame, Video, VideoInfo, prefetch
from clients.windows import NEAR, Span, cut, segment

logger = logging.getLogger(__name__)

MIN_FACE = 40  # pixels of a face's longer side: what is smaller says nothing
MIN_FACES = 3  # of a track: fewer are a false alarm, where there are frames enough


@dataclass(kw_only=True)
class Faces:
    """The faces of one track so far, each a row."""

    frames: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    landmarks: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    def add(self, frame: Frame, face: Face) -> None:
        """Take the face of the next frame."""
        self.frames.append(frame.index)
        self.seconds.append(frame.pts_seconds)
        self.boxes.append(face.box.astype(np.float32))
        self.landmarks.append(face.landmarks.astype(np.float32))
        self.scores.append(face.score)


@dataclass(kw_only=True)
class Seen:
    """What was seen so far: the frames looked at, and each track's faces by its number."""

    frames: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tracks: dict[int, Faces] = field(default_factory=dict)
    largest: float = 0.0  # pixels, of the faces that were too small

    def look(
        self, frame: Frame, faces: Sequence[Face], following: Following
    ) -> list[tuple[int, Face]]:
        """Note a frame and who is in it.

        Returns:
            the faces that are followed, with their tracks' numbers.
        """
        self.frames.append(frame.index)
        self.seconds.append(frame.pts_seconds)
        small = [face.size for face in faces if face.size < MIN_FACE]
        self.largest = max(self.largest, *small, 0.0)
        followed = following.update(frame, [face for face in faces if face.size >= MIN_FACE])
        for number, face in followed:
            self.tracks.setdefault(number, Faces()).add(frame, face)
        return followed

    def coverage(self, span: Span, *, closed: bool) -> float:
        """Say which part of the frames looked at during a span have its faces, 0..1.

        Args:
            closed: whether a frame at its very end counts.
        """
        borders = (span.start - NEAR, span.end + (NEAR if closed else -NEAR))
        first, last = np.searchsorted(self.seconds, borders)
        return (span.last - span.first) / max(1, int(last - first))

    def chosen(self, name: str, options: Options) -> list[int]:
        """Choose the tracks to report, in the order of their first faces.

        Raises:
            NoFaceFound: where there is none.
        """
        if not self.tracks:
            too_small = (
                f": the largest face was {self.largest:.0f} pixels; at least {MIN_FACE} are needed"
            )
            raise NoFaceFound(
                f"{name}: no face in any of the {len(self.frames)} frames looked at"
                f"{too_small if self.largest else ''}"
            )
        longest = max(map(len, self.tracks.values()))
        least = min(MIN_FACES, longest)
        kept = [number for number, faces in self.tracks.items() if len(faces) >= least]
        covered = [n for n in kept if self.part(n) >= options.min_coverage]
        if not covered:
            raise NoFaceFound(
                f"{name}: nobody is seen in {options.min_coverage:.0%} of the frames, as "
                f"--min-coverage asks; at most in {longest / len(self.frames):.0%}"
            )
        if options.people:
            most = sorted(covered, key=lambda n: -len(self.tracks[n]))[: options.people]
            covered = [n for n in covered if n in most]
        return sorted(covered, key=lambda n: self.tracks[n].frames[0])

    def part(self, number: int) -> float:
        """Say which part of all frames looked at have a track's face, 0..1."""
        return len(self.tracks[number]) / len(self.frames)


def analyse(
    source: str | Path | Video | Arrays,
    client: TritonClient,
    options: Options = Options(),  # noqa: B008 (frozen)
    *,
    detectors: DetectorPool | None = None,
    progress: bool = False,
) -> Analysis:
    """Say who is in a source, when, and with which emotion.

    Args:
        source: a file, a URL, "-" for standard input: whatever FFmpeg reads to its end; or one that
            is open already.
        client: an entered client of the network to ask.
        detectors: that find its faces, entered, and perhaps shared; by default its own.
        progress: show a bar on stderr.

    Raises:
        FerError: one of `clients.errors`, for what the user can act on.
    """
    video = Video(source) if isinstance(source, str | Path) else source
    with video, FeatureStream(client) as stream:
        info = video.info()
        logger.info("%s: %s", video.name, info)
        total = info.num_sampled(options.fps, options.max_frames)
        frames = prefetch(video.frames(options.fps, options.max_frames))
        bar = tqdm(frames, total=total, unit="frame", desc=video.name, disable=not progress)
        shared = nullcontext(detectors) if detectors else DetectorPool()
        with closing(frames), shared as pool:
            seen = send_faces(pool.detect_all(bar), following(options), stream)
        chosen = seen.chosen(video.name, options)
        logger.info("%d frames looked at, %d people", len(seen.frames), len(chosen))
        return conclude(
            about(video.name, info), seen, chosen, stream, options, damaged=video.damaged
        )


def following(options: Options) -> Following:
    """Choose how faces are followed."""
    return LargestFace() if options.people == 1 else Tracker()


def about(name: str, info: VideoInfo) -> SourceInfo:
    """Say what a source is."""
    return SourceInfo(
        name=name, width=info.width, height=info.height, fps=info.fps, duration=info.duration
    )


def send_faces(
    detected: Iterable[tuple[Frame, list[Face]]], following: Following, stream: FeatureStream
) -> Seen:
    """Follow and send the faces of every frame."""
    seen = Seen()
    for frame, faces in detected:
        for number, face in seen.look(frame, faces, following):
            stream.add(number, align(frame.image, face.landmarks))
    return seen


def conclude(
    source: SourceInfo,
    seen: Seen,
    chosen: Sequence[int],
    stream: FeatureStream,
    options: Options,
    *,
    damaged: int = 0,
    dropped: int = 0,
) -> Analysis:
    """Pool what was sent of the chosen tracks, and say all of it."""
    stream.flush()
    client = stream.client
    tracks = tuple(
        read_track(place, number, seen, stream, options) for place, number in enumerate(chosen, 1)
    )
    return Analysis(
        source=source,
        options=options,
        labels=client.contract.labels,
        tracks=tracks,
        frames=np.array(seen.frames),
        seconds=np.array(seen.seconds),
        dropped=dropped,
        damaged=damaged,
        stopped_early=len(seen.frames) == options.max_frames,
        model=client.model,
        model_version=tracks[0].answer.model_version,
        url=client.url,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read_track(
    place: int, number: int, seen: Seen, stream: FeatureStream, options: Options
) -> Track:
    """Pool a track: each of its windows, then the whole."""
    faces = seen.tracks[number]
    seconds, labels = np.array(faces.seconds), stream.client.contract.labels
    spans = cut(seconds, options.window, options.step) if options.window else []
    # One window of everything is the whole, which is asked for anyway.
    alone = len(spans) == 1 and spans[0].last - spans[0].first == len(faces)
    answers = [] if alone else stream.pool_spans(number, spans)
    whole = stream.pool(number)
    windows = read_windows(spans, [whole] if alone else answers, seen)
    return Track(
        number=place,
        labels=labels,
        frames=np.array(faces.frames),
        seconds=seconds,
        boxes=np.stack(faces.boxes),
        landmarks=np.stack(faces.landmarks),
        scores=np.array(faces.scores, np.float32),
        answer=whole,
        windows=windows,
        segments=segment(windows, labels, float(seconds[0]), float(seconds[-1])),
        coverage=seen.part(number),
    )


def read_windows(
    spans: Sequence[Span], answers: Sequence[ClipAnswer], seen: Seen
) -> tuple[Window, ...]:
    """Join windows with what the server says of them."""
    return tuple(
        Window(
            start=span.start,
            end=span.end,
            first=span.first,
            last=span.last,
            probabilities=answer.probabilities,
            coverage=seen.coverage(span, closed=span is spans[-1]),
        )
        for span, answer in zip(spans, answers, strict=True)
    )
