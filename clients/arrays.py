"""Frames that Python has as arrays, in place of a video.

arrays (H, W, 3)  ->  as_video  ->  what clients.analyse reads, as it reads a Video
"""

from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from clients.errors import VideoUnreadable
from clients.video import EARLY, Frame, Video, VideoInfo


class Arrays:
    """Frames given one by one, at so many a second.

    Raises:
        VideoUnreadable: for none, or for an array of another dtype or shape.
    """

    name = "frames"
    damaged = 0

    def __init__(self, frames: Iterable[np.ndarray], rate: float) -> None:
        self.rate = rate
        self.upcoming: Iterator[np.ndarray] = iter(frames)
        self.first: Any = None  # until it is entered
        self.num_frames = len(frames) if isinstance(frames, (list, tuple, np.ndarray)) else 0

    def __enter__(self) -> Self:
        if self.first is None:
            first = next(self.upcoming, None)
            if first is None:
                raise VideoUnreadable("frames: there are none; expected (H, W, 3) uint8, RGB")
            self.first = checked(first, 0)
            self.upcoming = chain([first], self.upcoming)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def info(self) -> VideoInfo:
        """Say what the frames are."""
        height, width = self.first.shape[:2]
        return VideoInfo(
            num_frames=self.num_frames,
            fps=self.rate,
            width=width,
            height=height,
            duration=self.num_frames / self.rate if self.num_frames else None,
        )

    def frames(self, fps: float = 0, max_frames: int | None = None) -> Generator[Frame, None, None]:
        """Give them in order, as `Video.frames` does."""
        num_taken, due = 0, 0.0
        for index, image in enumerate(self.upcoming):
            seconds = index / self.rate
            if fps and seconds < due - EARLY / fps:
                continue
            if max_frames and num_taken == max_frames:
                return
            due = max(due, seconds - 1 / fps) + 1 / fps if fps else 0.0
            num_taken += 1
            yield Frame(checked(image, index), index, seconds)


def checked(image: Any, index: int) -> np.ndarray:
    """See that an array is a frame."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise VideoUnreadable(f"frame {index}: {got}; expected (H, W, 3) uint8, RGB")
    return image


def as_video(source: str | Path | Iterable[np.ndarray], rate: float) -> Video | Arrays:
    """Take a source or frames for what is analysed."""
    return Video(source) if isinstance(source, (str, Path)) else Arrays(source, rate)
