"""The first arrow: a video -> frames, as a player shows them, with their own times.

    file, URL, pipe, camera (whatever FFmpeg reads)  ->  Frame, Frame, ...   at most `fps` a second

Comes before `clients.faces`. Upright, square pixels, progressive; the default track. Frames are
decoded as they are asked for; `prefetch` decodes ahead in a thread, so that memory stays bounded
however long the video is. Damaged packets are passed over and counted.
"""

import logging
import math
import queue
import struct
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import av
import cv2
import numpy as np
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from base.text import clean
from clients.errors import VideoUnreadable
from clients.pipes import BOXES, readable

logger = logging.getLogger(__name__)

T = TypeVar("T")

PREFETCHED_FRAMES = 8  # decoded ahead of the detector; 50 MB at 1080p
MAX_PIXELS = 2**27  # of a frame, 11,585 a side: 400 MB decoded
TIMEOUT_S = 10.0  # of a network source that says nothing
EARLY = 0.1  # of the time between two frames to look at
MAX_FPS = 1000  # what a header says beyond that is a unit of time
USUAL_FPS = Fraction(25)  # where neither the container nor the codec says
STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp", "tcp")
CAMERA_FORMAT = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


@dataclass(frozen=True)
class Frame:
    """One decoded picture.

    Args:
        image: (H, W, 3) uint8, RGB, upright, of square pixels.
        index: its place in the source, from 0.
        pts_seconds: its time from the start of the source.
    """

    image: np.ndarray
    index: int
    pts_seconds: float


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video's header says.

    Args:
        num_frames: 0 where unknown; an estimate in most containers.
        fps: average frames a second, 0 where unknown.
        width: pixels, of the picture as a player shows it.
        height: likewise.
        duration: seconds; None where unknown.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float | None

    def num_sampled(self, fps: float, max_frames: int | None) -> int | None:
        """Estimate how many frames will be looked at; None where the header does not say."""
        if not self.num_frames or not self.fps:
            return max_frames
        sampled = self.num_frames
        if 0 < fps < self.fps:
            sampled = math.ceil(self.num_frames / self.fps * fps)
        return min(sampled, max_frames) if max_frames else sampled


class Video:
    """An opened video: iterate it, once, for its frames.

        with Video("clip.mp4") as video:
            for frame in video.frames(fps=10):

    `damaged` counts packets that could not be decoded so far.

    Raises:
        VideoUnreadable: on entering, saying what is wrong with the source.
    """

    def __init__(self, spec: str | Path) -> None:
        self.spec = spec
        self.name = masked(spec)
        self.damaged = 0
        self.container: Any = None

    def open(self) -> None:
        """Open the source, unless it is open already; after `close`, anew."""
        if self.container is not None:
            return
        target, options = target_of(self.spec, self.name)
        self.container = open_container(target, options, self.name)
        try:
            self.stream = self.choose_stream()
            self.decoding = self.decoded()
            self.first: VideoFrame | None = None  # decoded already, for what it says of the rest
            self.rotation: int | None = None  # degrees, of the last frame shown
            self.matrix: tuple[int, int, int, int] | None = None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the source."""
        container, self.container = self.container, None
        if container is not None:
            container.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def choose_stream(self) -> Any:
        """Take the track that a player takes; refuse sound alone, with or without a cover."""
        stream = self.container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise VideoUnreadable(
                f"{self.name}: no video that FFmpeg can decode (expected a video stream; a text "
                "file, audio alone, or a damaged file has none)"
            )
        if stream.codec_context is None:
            raise VideoUnreadable(f"{self.name}: its video is of a codec that FFmpeg here lacks")
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise VideoUnreadable(
                f"{self.name}: pictures of {context.width}x{context.height}; expected at most "
                f"{MAX_PIXELS:,} pixels"
            )
        stream.thread_type = "AUTO"
        return stream

    def info(self) -> VideoInfo:
        """Read the header; how the picture is turned stands beside the first frame alone."""
        rate = float(self.rate())
        duration = self.container.duration
        seconds = duration / av.time_base if duration else None
        stream = self.stream
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        context = stream.codec_context
        self.first = self.first or next(self.decoding, None)
        width, height = shown_size(context.width, context.height, self.aspect())
        if self.first is not None and is_sideways(self.first):
            width, height = height, width
        return VideoInfo(
            num_frames=stream.frames or round((seconds or 0) * rate),
            fps=rate,
            width=width,
            height=height,
            duration=seconds,
        )

    def rate(self) -> Fraction:
        """Frames a second, on average."""
        stream = self.stream
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        return next((rate for rate in rates if rate and rate <= MAX_FPS), USUAL_FPS)

    def aspect(self) -> Fraction:
        """Width of a pixel by its height."""
        for found in (
            self.stream.sample_aspect_ratio,
            self.stream.codec_context.sample_aspect_ratio,
        ):
            if found:
                return Fraction(found)
        return Fraction(1)

    def frames(self, fps: float = 0, max_frames: int | None = None) -> Generator[Frame, None, None]:
        """Decode in order.

        Args:
            fps: take at most so many frames a second, evenly by their times; 0 takes every one.
            max_frames: stop after so many.

        Raises:
            VideoUnreadable: for a source of which no frame at all can be decoded.
        """
        num_taken = 0
        next_seconds = 0.0
        for index, (frame, seconds) in enumerate(self.timed()):
            # Matroska rounds times to milliseconds: one that is a little early is in time.
            if fps and seconds < next_seconds - EARLY / fps:
                continue
            if max_frames and num_taken == max_frames:
                return
            if fps:
                next_seconds = max(next_seconds, seconds - 1 / fps) + 1 / fps
            num_taken += 1
            yield Frame(self.show(frame), index, seconds)
        if not num_taken:
            codec = self.stream.codec_context.name
            hint = (
                "; its index may come last, where this server lets nobody jump: download it first"
            )
            raise VideoUnreadable(
                f"{self.name}: not one frame could be decoded (FFmpeg here takes its video for "
                f"{codec}{hint if '://' in str(self.spec) else ''})"
            )
        if self.damaged:
            logger.warning(
                "%s: %d damaged packets were passed over; their frames are missing",
                *(self.name, self.damaged),
            )

    def show(self, frame: VideoFrame) -> np.ndarray:
        """Turn a decoded frame into what a player shows: (H, W, 3) uint8, RGB."""
        image = to_rgb(frame, self.aspect())
        if frame.rotation != self.rotation:
            # Asked for where it changes alone: PyAV 18 ties a frame to its side data in a circle,
            # which keeps megabytes until Python looks for circles.
            self.rotation = frame.rotation
            try:
                self.matrix = display_matrix(frame)
            except ValueError:
                # A photograph: PyAV names no EXIF, and then gives no side data at all.
                upright = cv2.imread(str(self.spec), cv2.IMREAD_COLOR_RGB)
                return upright if upright is not None else image
        return turned(image, self.matrix)

    def timed(self) -> Iterator[tuple[VideoFrame, float]]:
        """Give every frame its time from the source's start; times grow."""
        frames = deinterlaced(chain(filter(None, [self.first]), self.decoding))
        first = next(frames, None)
        if first is None:
            return
        # Raw streams have no times, and their container guesses the rate that the codec knows.
        step = 1 / float(self.rate())
        if first.time is None:
            step = 1 / float(self.stream.codec_context.framerate or self.rate())
        # A video may start after its sound. Alone it starts at once, as in AVI, whose times are
        # those of decoding.
        alone = len(self.container.streams) == 1 or self.container.format.name == "avi"
        start = first.time if alone else (self.container.start_time or 0) / av.time_base
        told = ((frame, frame.time) for frame in chain([first], frames))
        yield from in_order(told, start or 0.0, step)

    def decoded(self) -> Iterator[VideoFrame]:
        """Decode packet by packet, and pass over those that cannot be."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self.damaged += 1
                logger.info("%s: reading ends: %s", self.name, error)
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError as error:
                self.damaged += 1
                logger.info("%s: a packet is passed over: %s", self.name, error)


def is_stream(spec: str | Path) -> bool:
    """Tell a URL or a camera from a file."""
    text = str(spec)
    return "://" in text or text.isdecimal() or text.startswith("/dev/video")


def is_live(spec: str | Path) -> bool:
    """Tell a source that is live by its nature: a camera, or a URL of a protocol for streams."""
    scheme = str(spec).partition("://")[0]
    return is_stream(spec) and (scheme in STREAMS or "://" not in str(spec))


def target_of(spec: str | Path, name: str) -> tuple[Any, dict[str, Any]]:
    """Say what FFmpeg opens for a path, a URL, "-" or a camera, and how.

    Raises:
        VideoUnreadable: for a path that is none, or a file that was cut off.
    """
    text = str(spec)
    if text == "-":
        return readable(sys.stdin.buffer), {}
    if "://" in text:
        options = {"rtsp_transport": "tcp"} if text.startswith("rtsp") else {}
        return text, {"options": options, "timeout": TIMEOUT_S}
    if text.isdecimal() or text.startswith("/dev/video"):
        device = f"/dev/video{text}" if text.isdecimal() and sys.platform == "linux" else text
        return device, {"format": CAMERA_FORMAT.get(sys.platform, "v4l2")}
    path = Path(spec)
    try:
        if path.is_dir():
            raise VideoUnreadable(f"{name} is a folder; expected a video file")
        if path.is_fifo():
            return readable(path.open("rb")), {}
        if path.is_file():
            check_complete(path, name)
        path.stat()
        resolved = str(path.resolve())
        resolved.encode()
    except FileNotFoundError as error:
        raise VideoUnreadable(f"{name}: no such file") from error
    except UnicodeEncodeError as error:
        raise VideoUnreadable(f"{text!a}: the name is not UTF-8; rename it") from error
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise VideoUnreadable(f"{name} cannot be read ({reason(error)})") from error
    return f"file:{resolved}", {}


def open_container(target: Any, options: dict[str, Any], name: str) -> Any:
    """Open a source for reading.

    Raises:
        VideoUnreadable: in FFmpeg's words where it says more than that there is nothing.
    """
    try:
        return av.open(target, mode="r", metadata_errors="replace", **options)
    except av.error.InvalidDataError as error:
        raise VideoUnreadable(
            f"{name}: no video that FFmpeg can decode (expected a video stream; a text file, "
            "audio alone, or a damaged file has none)"
        ) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoUnreadable(f"{name} cannot be opened ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Say in a few words why the system, or FFmpeg, refused."""
    return clean(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def masked(spec: str | Path) -> str:
    """Name a source for a person: printable, without what a URL has before the host."""
    text = str(spec)
    scheme, separator, rest = text.partition("://")
    if separator:
        host, slash, path = rest.partition("/")
        text = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return clean(text)


def check_complete(path: Path, name: str) -> None:
    """Refuse an MP4 or MOV whose boxes promise more bytes than the file has.

    FFmpeg would decode what is there and say nothing, and half a video would pass for a whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset + 8 <= size:
            file.seek(offset)
            header = file.read(16)
            length, kind = struct.unpack(">I4s", header[:8])
            if kind not in BOXES:
                return  # another container, or what some cameras append
            if length == 1 and len(header) == 16:
                (length,) = struct.unpack(">Q", header[8:])
            if length < 8:
                return  # 0: to the end of the file; else not a box after all
            offset += length
    if offset > size:
        raise VideoUnreadable(
            f"{name} is cut off: it holds {size} bytes of at least {offset}; copy it again"
        )


def in_order(
    frames: Iterable[tuple[T, float | None]], start: float, step: float
) -> Iterator[tuple[T, float]]:
    """Make frames' times grow from the start.

    A time that leaps beyond the next one's is put between its neighbours. Where times begin anew,
    as in streams that were joined, they go on from the last. Where there are none, frames are one
    step apart.
    """
    held: tuple[T, float] | None = None  # until the next one says that it is in order
    before, offset = -step, -start
    for frame, told in frames:
        latest = before if held is None else held[1]
        seconds = latest + step if told is None else told + offset
        if held is None and seconds < 0:
            offset, seconds = offset - seconds, 0.0
        if held is not None and seconds <= held[1]:
            if seconds > before:
                held = (held[0], (max(before, 0.0) + seconds) / 2)
            else:
                offset += held[1] + step - seconds
                seconds = held[1] + step
        if held is not None:
            yield held
            before = held[1]
        held = (frame, seconds)
    if held is not None:
        yield held


def deinterlaced(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Make whole pictures of interlaced ones, from the first of them on; others stay as they are.

    A frame comes out once the next one went in; where the picture's size changes, what is held
    comes first.
    """
    graph: Graph | None = None
    shape: tuple[object, ...] = ()
    for frame in frames:
        found = (frame.width, frame.height, frame.format.name)
        if graph is not None and found != shape:
            yield from drain(graph)
            graph = None
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None:
            graph, shape = deinterlacer(frame), found
        graph.push(frame)
        yield from pull(graph)
    if graph is not None:
        yield from drain(graph)


def deinterlacer(frame: VideoFrame) -> Graph:
    """Make a graph that turns frames flagged as interlaced into progressive ones, one for one."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    fields = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(fields)
    fields.link_to(sink)
    graph.configure()
    return graph


def pull(graph: Graph) -> Iterator[VideoFrame]:
    """Take what a graph has ready."""
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if isinstance(frame, VideoFrame):
            yield frame


def drain(graph: Graph) -> Iterator[VideoFrame]:
    """Take what a graph still holds."""
    graph.push(None)
    yield from pull(graph)


def shown_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height of a picture in square pixels: the side that is short of them grows."""
    if aspect > 1:
        return round(width * aspect), height
    return width, round(height / aspect)


def to_rgb(frame: VideoFrame, aspect: Fraction) -> np.ndarray:
    """Turn a decoded frame into square pixels, (H, W, 3) uint8, RGB."""
    width, height = shown_size(frame.width, frame.height, aspect)
    return frame.reformat(
        width, height, format="rgb24", interpolation=Interpolation.BILINEAR
    ).to_ndarray()


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """Signs of a frame's display matrix (a, b, c, d), as x' = a x + c y; None where it has none."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    values = struct.unpack("=9i", bytes(data)[:36])
    scaled = [values[i] / 65536 for i in (0, 1, 3, 4)]
    if any(0.1 < abs(value) < 0.9 for value in scaled):
        return None  # no quarter turn: no player turns it either
    a, b, c, d = (max(-1, min(1, round(value))) for value in scaled)
    return (a, b, c, d)


def is_sideways(frame: VideoFrame) -> bool:
    """Tell a frame that is shown a quarter turned."""
    return abs(frame.rotation) == 90


def turned(image: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """Rotate by quarters and flip as a display matrix says."""
    if matrix is None:
        return image
    a, b, c, d = matrix
    if b and c:
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def read_info(spec: str | Path) -> VideoInfo:
    """Read a video's header."""
    with Video(spec) as video:
        return video.info()


def read_frames(
    spec: str | Path, fps: float = 0, max_frames: int | None = None
) -> Generator[Frame, None, None]:
    """Open a video and decode its frames in order, as `Video.frames` does."""
    with Video(spec) as video:
        yield from video.frames(fps, max_frames)


def prefetch(items: Iterable[T], ahead: int = PREFETCHED_FRAMES) -> Generator[T, None, None]:
    """Iterate `items` in a thread, at most `ahead` of them before they are asked for.

    Errors of the thread are raised here; leaving the loop ends the thread.
    """
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                put("item", item)
            put("end", None)
        except BaseException as error:  # noqa: BLE001  raised again where it can be handled
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
