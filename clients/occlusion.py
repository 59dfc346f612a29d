"""Where a network reads an emotion off a face: cover part after part, and ask again each time.

    face (224, 224, 3)  ->  occluded copies  ->  Triton  ->  Saliency  ->  text, JSON, a map

Works for every network: each copy is a clip of one frame. Source: Minaee et al., "Deep-Emotion:
Facial Expression Recognition Using Attentional Convolutional Network", 2021, section 4.
"""

import json
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from clients.faces import FACE_SIZE, FRAMING
from clients.triton import TritonClient

GRAY = 128  # of the patch, in every channel
# What FRAMING gives the places of.
LANDMARKS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")


@dataclass(frozen=True)
class Patch:
    """The gray square that covers a part of a face, and how far it moves at a time.

    Args:
        size: pixels of its side, at most those of a face.
        stride: pixels; at most `size`, so that every part of the face is covered once.
    """

    size: int = 48
    stride: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size <= FACE_SIZE:
            raise ValueError(f"{self}: expected 1 <= stride <= size <= {FACE_SIZE}")

    @property
    def starts(self) -> list[int]:
        """(K,) the K places of its left edge, and of its top edge; the last ends with the face."""
        last = FACE_SIZE - self.size
        return [*range(0, last, self.stride), last]

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(K * K) left and top of every place, row by row."""
        return [(left, top) for top in self.starts for left in self.starts]


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """What covering parts of a face does to the network's answer.

    Args:
        face: (224, 224, 3) uint8, RGB, not covered.
        labels: the C emotions.
        probabilities: (C,) float, the answer to the face as it is.
        falls: (K, K) float, by how much the emotion's probability falls with the patch at row and
            column; negative where it rises.
        patch: what covered it.
        model: the network that answered.
        pts_seconds: the face's time in its video; None for a picture.
    """

    face: np.ndarray
    labels: tuple[str, ...]
    probabilities: np.ndarray
    falls: np.ndarray
    patch: Patch
    model: str
    pts_seconds: float | None

    @property
    def emotion(self) -> str:
        """The most probable label of the face as it is."""
        return self.labels[int(self.probabilities.argmax())]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the patch that the probability falls most under."""
        left, top = self.patch.corners[int(self.falls.argmax())]
        return left, top, left + self.patch.size, top + self.patch.size

    @property
    def landmark(self) -> str:
        """The landmark that is nearest to the middle of `box`."""
        left, top, right, bottom = self.box
        away = FRAMING * FACE_SIZE - [(left + right) / 2, (top + bottom) / 2]
        return LANDMARKS[int((away**2).sum(axis=1).argmin())]

    def heat(self) -> np.ndarray:
        """Spread the falls over the face: (224, 224), each pixel's mean over what covered it."""
        total = np.zeros((FACE_SIZE, FACE_SIZE))
        times = np.zeros((FACE_SIZE, FACE_SIZE))
        size = self.patch.size
        for (left, top), fall in zip(self.patch.corners, self.falls.flat, strict=True):
            total[top : top + size, left : left + size] += fall
            times[top : top + size, left : left + size] += 1
        return total / times

    def to_text(self) -> str:
        """Write the answer for a person."""
        at = "" if self.pts_seconds is None else f"  (face at {self.pts_seconds:.2f} s)"
        top = float(self.probabilities.max())
        left, above, right, below = self.box
        return (
            f"{self.emotion}  {top:.1%}{at}\n"
            f"falls most, to {top - self.falls.max():.1%}, where the face is covered near the "
            f"{self.landmark}: x {left} to {right}, y {above} to {below} of {FACE_SIZE}"
        )

    def to_json(self) -> str:
        """Write the answer for a program, as one JSON object."""
        probabilities = self.probabilities.tolist()
        content = {
            "emotion": self.emotion,
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
            "greatest_fall": float(self.falls.max()),
            "box": list(self.box),
            "landmark": self.landmark,
            "falls": self.falls.tolist(),
            "starts": self.patch.starts,
            "patch": self.patch.size,
            "stride": self.patch.stride,
            "timestamp_s": self.pts_seconds,
            "model": self.model,
        }
        return json.dumps(content)


def find_saliency(
    client: TritonClient,
    face: np.ndarray,
    patch: Patch = Patch(),
    pts_seconds: float | None = None,
    *,
    progress: bool = False,
) -> Saliency:
    """Cover a face part by part, and ask what each part does for the emotion seen in it.

    Args:
        client: an entered client of the network to ask.
        face: (224, 224, 3) uint8, RGB, aligned.
        pts_seconds: passed on.
        progress: show a bar on stderr.
    """
    places = [None, *patch.corners]  # first the face as it is
    most = client.contract.max_frames
    answers = []
    for start in tqdm(range(0, len(places), most), unit="request", disable=not progress):
        copies = [cover(face, place, patch.size) for place in places[start : start + most]]
        answers.append(classify(client, np.stack(copies)))
    probabilities, *covered = np.concatenate(answers)
    emotion = int(probabilities.argmax())
    falls = probabilities[emotion] - np.array(covered)[:, emotion]
    num_starts = len(patch.starts)
    return Saliency(
        face=face,
        labels=client.contract.labels,
        probabilities=probabilities,
        falls=falls.reshape(num_starts, num_starts),
        patch=patch,
        model=client.model,
        pts_seconds=pts_seconds,
    )


def cover(face: np.ndarray, place: tuple[int, int] | None, size: int) -> np.ndarray:
    """Copy a face, a square of it made gray; nowhere if `place`, its left and top, is None."""
    copy = face.copy()
    if place is not None:
        left, top = place
        copy[top : top + size, left : left + size] = GRAY
    return copy


def classify(client: TritonClient, faces: np.ndarray) -> np.ndarray:
    """Ask of each of (N, 224, 224, 3) faces by itself: (N, C) probabilities.

    One request has them all; pooling, which is little work, is asked for one by one.
    """
    tensors = client.embed(faces)
    rows = [{name: tensors[name][i : i + 1] for name in tensors} for i in range(len(faces))]
    return np.stack([client.pool(row).probabilities for row in rows])
