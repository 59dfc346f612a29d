"""Who is who from frame to frame: faces -> tracks.

    Frame, faces  ->  Tracker or FaceFollower  ->  (track number, face), ...

Faces are told apart by where they are and how large, never by who they are: a person who comes back
later is a new track. Comes after `clients.faces`, before `clients.analyse`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from clients.faces import Face, FaceFollower
from clients.video import Frame
from clients.windows import NEAR

HIDDEN_S = 1.0  # for so long a person may be hidden, or a scene interrupted
REACH = 1.0  # how far from where it is expected a face may be, in its sizes
MAX_RATIO = 1.8  # of the sizes of one face in two neighbouring frames
NEWEST = 0.5  # part of the newest movement in a track's pace
THUMBNAIL = (32, 18)  # pixels: what a cut changes, and a gesture does not
ALIKE = 0.6  # correlation of two thumbnails, from which on they show one scene
CHANGED = 0.5  # part of the pixels that a cut changes at least: people alone change fewer
DIFFERENCE = 20.0  # of 255, from which on a pixel has changed


class Following(Protocol):
    """What gives faces their numbers."""

    def update(self, frame: Frame, faces: Sequence[Face]) -> list[tuple[int, Face]]:
        """Number those of a frame's faces that are followed; a person has one number."""


class LargestFace:
    """Follows one face alone, from the start to the end, through cuts: everything is number 1."""

    def __init__(self) -> None:
        self.follower = FaceFollower()

    def update(self, frame: Frame, faces: Sequence[Face]) -> list[tuple[int, Face]]:
        """Take the followed face, if it is there."""
        face = self.follower.follow(faces, frame.pts_seconds)
        return [] if face is None else [(1, face)]


@dataclass(kw_only=True)
class Path:
    """A track while it lasts: where its face was last, and how it moves.

    Args:
        pace: (2,) float, pixels a second of the face's centre.
    """

    number: int
    scene: int
    face: Face
    seconds: float
    pace: np.ndarray

    def expect(self, seconds: float) -> np.ndarray:
        """Say where the face's centre should be at a time: (2,) float."""
        return self.face.centre + self.pace * (seconds - self.seconds)

    def distance(self, face: Face, seconds: float) -> float:
        """Measure how unlike this track a face is: 0 and up, above REACH for another person."""
        ratio = max(face.size, self.face.size) / max(1.0, min(face.size, self.face.size))
        if ratio > MAX_RATIO:
            return float("inf")
        size = (face.size + self.face.size) / 2
        expected = float(np.linalg.norm(face.centre - self.expect(seconds)))
        stood = float(np.linalg.norm(face.centre - self.face.centre))
        # Who turns round or stops is near where they were, though not where they were going.
        return min(expected, stood + size / 4) / size + float(np.log(ratio))

    def move(self, face: Face, seconds: float) -> None:
        """Take the face of the next frame."""
        passed = max(1e-3, seconds - self.seconds)
        newest = (face.centre - self.face.centre) / passed
        self.pace = NEWEST * newest + (1 - NEWEST) * self.pace
        self.face, self.seconds = face, seconds


class Tracker:
    """Follows everyone: each face goes to the track that expects one there, nearest pairs first.

    A track ends after HIDDEN_S without a face, or at a cut. A scene that is back within HIDDEN_S,
    as when somebody walks past the camera, goes on with its tracks. Where frames are looked at less
    often, a track may miss one.
    """

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.scenes = Scenes()
        self.count = 0
        self.seconds = 0.0

    def update(self, frame: Frame, faces: Sequence[Face]) -> list[tuple[int, Face]]:
        """Give each face of the next frame its track's number."""
        seconds = frame.pts_seconds
        longest = max(HIDDEN_S, 2 * (seconds - self.seconds)) + NEAR
        self.seconds = seconds
        scene = self.scenes.update(frame)
        self.paths = [path for path in self.paths if seconds - path.seconds <= longest]
        expected = [path for path in self.paths if path.scene == scene]
        pairs = sorted(
            (path.distance(face, seconds), i, j)
            for i, path in enumerate(expected)
            for j, face in enumerate(faces)
        )
        found: dict[int, Path] = {}
        taken: set[int] = set()
        for distance, i, j in pairs:
            if distance <= REACH and i not in taken and j not in found:
                taken.add(i)
                found[j] = expected[i]
        return [
            (self.follow(found.get(j), face, scene, seconds), face) for j, face in enumerate(faces)
        ]

    def follow(self, path: Path | None, face: Face, scene: int, seconds: float) -> int:
        """Move a face's track there, or begin one; say its number."""
        if path is not None:
            path.move(face, seconds)
            return path.number
        self.count += 1
        begun = Path(number=self.count, scene=scene, face=face, seconds=seconds, pace=np.zeros(2))
        self.paths.append(begun)
        return self.count


class Scenes:
    """Tells cuts: numbers the scenes of a source, frame by frame.

    Thumbnails are compared by correlation, so that light may change: a scene grown dark is the
    same.
    """

    def __init__(self) -> None:
        self.number = 0
        self.count = 0
        self.last: np.ndarray | None = None
        self.before: tuple[int, np.ndarray, float] | None = None  # the scene before, and its end
        self.seconds = 0.0

    def update(self, frame: Frame) -> int:
        """Number the scene that the next frame shows."""
        shown = thumbnail(frame.image)
        if self.last is not None and is_cut(self.last, shown):
            ended = (self.number, self.last, self.seconds)
            self.number = self.find_back(shown, frame.pts_seconds)
            self.before = ended
        self.last, self.seconds = shown, frame.pts_seconds
        return self.number

    def find_back(self, shown: np.ndarray, seconds: float) -> int:
        """Number the scene after a cut: that before, if it is back soon, else a new one."""
        if self.before is not None:
            number, last, ended = self.before
            if seconds - ended <= HIDDEN_S and not is_cut(last, shown):
                return number
        self.count += 1
        return self.count


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink a frame (H, W, 3) uint8 to (h, w, 3) float32, each colour without its mean."""
    small = cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
    return small - small.mean(axis=(0, 1))


def is_cut(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two thumbnails show different scenes.

    All over the frame, and in what is light and dark beside what: a scene grown dark is the same,
    and so is one in which people move.
    """
    changed = float((np.abs(one - other).max(axis=2) > DIFFERENCE).mean())
    return changed > CHANGED and correlation(one, other) < ALIKE


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Compare two thumbnails: 1 for alike, 0 for nothing in common; two blank ones are alike."""
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / lengths if lengths > 1 else 1.0
