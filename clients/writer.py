"""Write a video of drawn frames: H.264 in MP4, with their own times and the sound of another.

    (H, W, 3) uint8, seconds  ->  VideoWriter  ->  an MP4 that every browser plays

Its index comes first, so that it plays while it loads. The file appears under its name once it is
whole.
"""

import logging
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from base.files import partial_of
from clients.errors import NotWritten
from clients.video import reason, target_of

logger = logging.getLogger(__name__)

TIME_BASE = Fraction(1, 90_000)  # of MPEG; every usual rate divides it
COPIED = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}  # sound that MP4 holds as it is


class VideoWriter:
    """Writes one video.

        with VideoWriter(target, fps=25, size=(640, 360), sound_of="clip.mp4") as writer:
            writer.write(image, seconds)

    Args:
        target: the file; whatever is there is replaced at the end.
        fps: about how many frames a second will come; their times need not be even.
        size: width and height, even numbers.
        sound_of: a source whose sound is copied, as far as the frames go.

    Raises:
        NotWritten: at any step, for a full disk, say; the target is then as it was.
    """

    def __init__(
        self, target: Path, *, fps: float, size: tuple[int, int], sound_of: str | Path | None = None
    ) -> None:
        self.target = target
        self.partial = partial_of(target)
        self.fps = Fraction(fps).limit_denominator(1001)
        self.size = size
        self.sound_of = sound_of

    def __enter__(self) -> Self:
        try:
            self.container = av.open(
                f"file:{self.partial}", "w", format="mp4", options={"movflags": "+faststart"}
            )
            self.video: Any = self.container.add_stream("libx264", rate=self.fps)
            self.video.width, self.video.height = self.size
            self.video.pix_fmt = "yuv420p"
            self.video.options = {"crf": "20"}
            self.video.codec_context.time_base = TIME_BASE
            self.sound = Sound(self.container, self.sound_of)
        except (av.error.FFmpegError, OSError) as error:
            raise self.failed(error) from error
        return self

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Add a frame (H, W, 3) uint8, RGB; what lies beyond the video's size is cut off."""
        width, height = self.size
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), "rgb24")
        frame.pts, frame.time_base = round(seconds / TIME_BASE), TIME_BASE
        try:
            self.container.mux(self.video.encode(frame))
            self.sound.copy_until(seconds)
        except (av.error.FFmpegError, OSError) as error:
            raise self.failed(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.container.mux(self.video.encode(None))
            self.sound.close()
            self.container.close()
            if kind is None:
                self.partial.replace(self.target)
                logger.info("wrote %s", self.target)
        except (av.error.FFmpegError, OSError) as failure:
            if kind is None:
                raise self.failed(failure) from failure
        finally:
            self.partial.unlink(missing_ok=True)

    def failed(self, error: BaseException) -> NotWritten:
        """Say which file could not be written, and why."""
        self.partial.unlink(missing_ok=True)
        return NotWritten(f"{self.target} cannot be written ({reason(error)})")


class Sound:
    """The sound of a source, copied packet by packet as the video grows."""

    def __init__(self, container: Any, spec: str | Path | None) -> None:
        self.container = container
        self.source: Any = None
        if spec is None:
            return
        target, options = target_of(spec, str(spec))
        self.source = av.open(target, metadata_errors="replace", **options)
        stream = self.source.streams.best("audio")
        if stream is None or stream.codec.canonical_name not in COPIED:
            if stream is not None:
                logger.warning("sound of %s is left out: MP4 does not hold it as it is", spec)
            self.close()
            return
        self.track = container.add_stream_from_template(stream)
        self.start = (self.source.start_time or 0) / av.time_base
        self.packets = self.source.demux(stream)
        self.waiting = next(self.packets, None)

    def copy_until(self, seconds: float) -> None:
        """Copy what is heard before a time."""
        while self.source is not None and self.waiting is not None:
            packet = self.waiting
            if packet.dts is not None:
                if float(packet.dts * packet.time_base) - self.start > seconds:
                    return
                shift = round(self.start / packet.time_base)
                packet.dts -= shift
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.stream = self.track
                self.container.mux(packet)
            self.waiting = next(self.packets, None)

    def close(self) -> None:
        """Close the source."""
        if self.source is not None:
            self.source.close()
            self.source = None
