"""What the clients hand over: the emotion of a clip, and each frame's part in it.

ClipAnswer + where the faces were  ->  Result  ->  text, JSON, pictures.py
"""

import json
from dataclasses import dataclass

import numpy as np

BAR_WIDTH = 30  # characters of a probability of 1
NUM_TOP_FRAMES = 3
EVEN = 1e-6  # weights that differ by less are alike


@dataclass(frozen=True)
class Sighting:
    """Where the followed face was in one looked-at frame.

    Args:
        index: the frame's place in the file, from 0.
        pts_seconds: the frame's time.
        box: (4,) float, left, top, right, bottom in pixels; None where there was no face.
        landmarks: (5, 2) float; None where there was no face.
    """

    index: int
    pts_seconds: float
    box: np.ndarray | None = None
    landmarks: np.ndarray | None = None


@dataclass(frozen=True)
class Result:
    """The answer to a video. N frames had a face; C is the number of emotions.

    What not every network gives is None where it is not given.

    Args:
        labels: the C emotions, in the order of `probabilities`.
        probabilities: (C,) float, sums to 1.
        sightings: one for every looked-at frame, in time order; N of them with a face.
        weights: (N,) float, each face's share of the answer, sums to 1.
        self_weights: (N,) float in (0, 1), self-attention alone.
        region_weights: (N, R) float, each region's share of a face, sums to 1 over the regions.
        theta: (N, 2, 3) float, the affine window of a spatial transformer on each face.
        frame_probabilities: (N, C) float, what each frame speaks for; in FAN, seen beside its clip.
        model: the ensemble that answered.
        model_version: as the server names it.
        url: where it answered.
        stopped_early: whether frames after the last sighting were left out, as --max-frames asks.
    """

    labels: tuple[str, ...]
    probabilities: np.ndarray
    sightings: tuple[Sighting, ...]
    weights: np.ndarray
    self_weights: np.ndarray | None
    region_weights: np.ndarray | None
    theta: np.ndarray | None
    frame_probabilities: np.ndarray
    model: str
    model_version: str
    url: str
    stopped_early: bool = False

    def __post_init__(self) -> None:
        num_faces = len(self.faces)
        shapes = (self.probabilities.shape, self.weights.shape, self.frame_probabilities.shape)
        expected = ((len(self.labels),), (num_faces,), (num_faces, len(self.labels)))
        if shapes != expected:
            raise ValueError(
                f"probabilities, weights, frame_probabilities: {shapes}, not {expected}"
            )

    @property
    def emotion(self) -> str:
        """The most probable label."""
        return self.labels[int(self.probabilities.argmax())]

    @property
    def faces(self) -> list[Sighting]:
        """The N sightings that have a face, in the order of `weights`."""
        return [sighting for sighting in self.sightings if sighting.box is not None]

    @property
    def has_attention(self) -> bool:
        """Whether the network weighs frames, rather than giving each the same share."""
        return self.self_weights is not None or float(np.ptp(self.weights)) > EVEN

    @property
    def strengths(self) -> np.ndarray:
        """(N,) float in [0, 1]: each face's weight or, without attention, what it says for itself.

        That is how probable the face alone makes the clip's emotion.
        """
        if self.has_attention:
            return self.weights
        return self.frame_probabilities[:, int(self.probabilities.argmax())]

    def to_text(self) -> str:
        """Write the answer for a person."""
        width = max(map(len, self.labels))
        lines = [f"{self.emotion}  {self.probabilities.max():.1%}", ""]
        for i in np.argsort(-self.probabilities):
            share = self.probabilities[i]
            bar = "█" * round(share * BAR_WIDTH)
            lines.append(f"  {self.labels[i]:<{width}}  {bar:<{BAR_WIDTH}}  {share:6.1%}")
        faces = self.faces
        strengths = self.strengths
        top = np.argsort(-strengths)[:NUM_TOP_FRAMES]
        named = ", ".join(f"{faces[i].pts_seconds:.2f} s ({strengths[i]:.1%})" for i in top)
        said = "that counted most" if self.has_attention else f"most {self.emotion}"
        without = len(self.sightings) - len(faces)
        lines += [
            "",
            f"frames: {len(self.sightings)} decoded, {len(faces)} used, {without} without a face",
            f"frames {said}: {named}",
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Write the answer for a program, as one JSON object."""
        faces = self.faces
        probabilities = self.probabilities.tolist()
        content = {
            "emotion": self.emotion,
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
            "frames": {
                "decoded": len(self.sightings),
                "used": len(faces),
                "without_face": len(self.sightings) - len(faces),
            },
            "timestamps_s": [face.pts_seconds for face in faces],
            "weights": self.weights.tolist(),
            "self_weights": as_list(self.self_weights),
            "region_weights": as_list(self.region_weights),
            "theta": as_list(self.theta),
            "frame_probabilities": self.frame_probabilities.tolist(),
            "model": self.model,
            "model_version": self.model_version,
            "url": self.url,
        }
        return json.dumps(content)


def as_list(array: np.ndarray | None) -> list | None:
    """Turn an array into lists for JSON; None stays None."""
    return None if array is None else array.tolist()
