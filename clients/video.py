"""The first arrow: a video file -> frames, upright and with their times.

    video.mp4 (anything FFmpeg decodes)  ->  Frame, Frame, ...   at most `fps` of them a second

Comes before `clients.faces`. Frames are decoded as they are asked for; `prefetch` decodes ahead
in a thread, so that memory stays bounded however long the video is.
"""

import logging
import math
import queue
import struct
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from clients.errors import VideoUnreadable

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEAST_DECODED = 0.9  # of the frames that a header promises; fewer are worth a warning
PREFETCHED_FRAMES = 8  # decoded ahead of the detector; 50 MB at 1080p
# The boxes at the top of a file of the MP4 family (ISO/IEC 14496-12, QuickTime).
BOXES = (
    b"ftyp moov mdat wide free skip pnot moof mfra sidx ssix styp prft emsg meta uuid udta".split()
)


@dataclass(frozen=True)
class Frame:
    """One decoded picture.

    Args:
        image: (H, W, 3) uint8, RGB, upright.
        index: its place in the file, from 0.
        pts_seconds: its time from the start of the file.
    """

    image: np.ndarray
    index: int
    pts_seconds: float


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says.

    Args:
        num_frames: exact in MP4, an estimate elsewhere, 0 where unknown.
        fps: average frames a second, 0 where unknown.
        width: pixels, of the upright picture.
        height: pixels, of the upright picture.
    """

    num_frames: int
    fps: float
    width: int
    height: int

    def num_sampled(self, fps: float, max_frames: int | None) -> int | None:
        """Estimate how many frames read_frames will yield; None where the header does not say."""
        if not self.num_frames or not self.fps:
            return max_frames
        sampled = self.num_frames
        if 0 < fps < self.fps:
            sampled = math.ceil(self.num_frames / self.fps * fps)
        return min(sampled, max_frames) if max_frames else sampled


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a video for decoding, its rotation honoured.

    Raises:
        VideoUnreadable: saying what is wrong with the file.
    """
    try:
        if path.is_dir():
            raise VideoUnreadable(f"{path} is a folder; expected a video file")
        check_complete(path)
        name = str(path.resolve())
        name.encode()
    except FileNotFoundError as error:
        raise VideoUnreadable(f"{path}: no such file") from error
    except OSError as error:
        raise VideoUnreadable(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeEncodeError as error:
        raise VideoUnreadable(f"{str(path)!a}: the name is not UTF-8; rename it") from error
    capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise VideoUnreadable(
            f"{path}: no video that FFmpeg can decode (expected a video stream; a text file, "
            "audio alone, or a damaged file has none)"
        )
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def check_complete(path: Path) -> None:
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
            f"{path} is cut off: it holds {size} bytes of at least {offset}; copy it again"
        )


def read_info(path: Path) -> VideoInfo:
    """Read a video's header."""
    capture = open_video(path)
    try:
        return VideoInfo(
            max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))),
            max(0.0, capture.get(cv2.CAP_PROP_FPS)),
            int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
    finally:
        capture.release()


def read_frames(
    path: Path, fps: float = 0, max_frames: int | None = None
) -> Generator[Frame, None, None]:
    """Decode a video's frames in order.

    Args:
        fps: take at most so many frames a second, evenly by their times; 0 takes every one.
        max_frames: stop after so many.

    Raises:
        VideoUnreadable: for a file that is no video, or holds no frame at all.
    """
    capture = open_video(path)
    try:
        num_taken = num_stepped = 0
        next_seconds = 0.0
        for index, pts_seconds in enumerate(frame_times(capture)):
            num_stepped += 1
            if pts_seconds < next_seconds - 1e-6:
                continue
            if max_frames and num_taken == max_frames:
                return
            if fps:
                next_seconds = max(next_seconds, pts_seconds - 1 / fps) + 1 / fps
            ok, image = capture.retrieve()
            if ok:
                num_taken += 1
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), index, pts_seconds)
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if 0 < num_stepped < LEAST_DECODED * promised:
            # Trimmed videos promise frames they hide, so this cannot be an error.
            logger.warning(
                "%s: only %d of the %d frames its header promises could be decoded",
                *(path, num_stepped, promised),
            )
    finally:
        capture.release()
    if not num_taken:
        raise VideoUnreadable(f"{path}: not one frame could be decoded")


def frame_times(capture: cv2.VideoCapture) -> Iterator[float]:
    """Step through a video; the frame whose time is yielded is the one to retrieve."""
    step = 1 / (capture.get(cv2.CAP_PROP_FPS) or 25)
    last = -step
    while capture.grab():
        pts_seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        # Some containers have no times; then the frames' number and rate stand in.
        last = pts_seconds if pts_seconds > last else last + step
        yield last


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
