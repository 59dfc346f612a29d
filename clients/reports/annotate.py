"""The video again, with everyone's emotion drawn in.

    Analysis + source  ->  annotate  ->  MP4: each person's box, number and emotion at the time

Each person has a colour. A frame that was not looked at shows what the last one before it said.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from base.text import clean
from clients.analysis import Analysis, Track
from clients.faces import unalign
from clients.reports.colors import person_color, to_rgb
from clients.reports.outlines import outline
from clients.video import Frame, read_frames, read_info
from clients.writer import VideoWriter

RGB_WHITE = (255, 255, 255)
RGB_BLACK = (0, 0, 0)
RGB_CYAN = (23, 190, 207)  # of where in a face the network looked


def annotate(
    analysis: Analysis, source: str | Path, target: Path, *, progress: bool = False
) -> None:
    """Write the source, as far as it was looked at, with the answers drawn into every frame.

    H.264, 4:2:0, its index first: what every browser plays. Times and sound are the source's own.
    """
    info = read_info(source)
    # 4:2:0 wants even sides: one column or row goes where there is an odd one.
    size = (max(2, info.width // 2 * 2), max(2, info.height // 2 * 2))
    total = int(analysis.frames[-1]) + 1 if analysis.stopped_early else info.num_frames
    with VideoWriter(target, fps=info.fps, size=size, sound_of=source) as writer:
        frames = annotated_frames(analysis, source)
        for frame in tqdm(
            frames, total=total, unit="frame", desc=target.name, disable=not progress
        ):
            writer.write(fit(frame.image, size), frame.pts_seconds)


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a frame of another size, as they come in mid stream, to the video's."""
    height, width = image.shape[:2]
    if (width // 2 * 2, height // 2 * 2) == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@dataclass(frozen=True, kw_only=True)
class Marked:
    """One face to draw: a track, and the place of the face in it."""

    track: Track
    i: int

    def words(self) -> str:
        """Name the person and the emotion of the window around the face."""
        seconds = self.track.seconds[self.i]
        probabilities = self.track.answer.probabilities
        if self.track.windows:
            window = min(self.track.windows, key=lambda w: abs(w.start + w.end - 2 * seconds))
            probabilities = window.probabilities
        emotion = clean(self.track.labels[int(probabilities.argmax())])
        return f"{self.track.number} {emotion} {probabilities.max():.0%}"


def annotated_frames(analysis: Analysis, source: str | Path) -> Iterator[Frame]:
    """Draw into every frame what the last frame looked at, itself or before it, showed."""
    marked: dict[int, list[Marked]] = {}
    for track in analysis.tracks:
        for i, index in enumerate(track.frames):
            marked.setdefault(int(index), []).append(Marked(track=track, i=i))
    looked, last = set(analysis.frames.tolist()), int(analysis.frames[-1])
    shown: list[Marked] = []
    for frame in read_frames(source):
        if frame.index in looked:
            shown = marked.get(frame.index, [])
        if analysis.stopped_early and frame.index > last:
            return  # nobody looked at what comes after
        image = frame.image.copy()
        for mark in shown:
            draw(image, mark)
        yield replace(frame, image=image)


def draw(image: np.ndarray, mark: Marked) -> None:
    """Draw a face's box, its words, and a bar of its share against the greatest of its track."""
    height, width = image.shape[:2]
    unit = max(1, round(min(height, width) / 250))
    color = to_rgb(person_color(mark.track.number))
    left, top, right, bottom = (round(float(value)) for value in mark.track.boxes[mark.i])
    cv2.rectangle(image, (left, top), (right, bottom), color, 2 * unit)
    strengths = mark.track.answer.strengths
    part = float(strengths[mark.i] / max(strengths.max(), 1e-9))
    bar = (bottom + 3 * unit, bottom + 7 * unit)
    cv2.rectangle(image, (left, bar[0]), (right, bar[1]), RGB_BLACK, -1)
    cv2.rectangle(image, (left, bar[0]), (left + round(part * (right - left)), bar[1]), color, -1)
    for part_of_face in outline(mark.track.answer, mark.i):
        corners = unalign(part_of_face.corners, mark.track.landmarks[mark.i])
        thickness = max(1, round(unit * part_of_face.strength))
        points = np.round(corners).astype(np.int32)
        cv2.polylines(image, [points], True, RGB_CYAN, thickness, cv2.LINE_AA)
    place = (max(0, left), max(14 * unit, top - 5 * unit))
    font = (cv2.FONT_HERSHEY_SIMPLEX, 0.5 * unit)
    words = mark.words().encode("ascii", "replace").decode()  # all that OpenCV's font has
    cv2.putText(image, words, place, *font, RGB_BLACK, 3 * unit, cv2.LINE_AA)
    cv2.putText(image, words, place, *font, RGB_WHITE, unit, cv2.LINE_AA)
