"""Where in a face a network looked, as far as it says: RAN's regions, Deep-Emotion's window.

ClipAnswer, place of a face  ->  Outline, ...  ->  plot.py, annotate.py
"""

from dataclasses import dataclass

import numpy as np

from clients.analysis import EVEN, ClipAnswer
from clients.faces import FACE_SIZE

# RAN's crops of a face: left, top, right, bottom, as fractions of its sides; the whole face last.
# Source: Wang et al., "Region Attention Networks for Pose and Occlusion Robust Facial Expression
# Recognition in the Wild", 2020: crops at fixed positions.
REGIONS = np.array(
    [
        (0.125, 0.25, 0.875, 1.0),
        (0.0, 0.0, 0.75, 0.75),
        (0.25, 0.0, 1.0, 0.75),
        (0.05, 0.05, 0.95, 0.95),
        (0.1, 0.1, 0.9, 0.9),
        (0.125, 0.125, 0.875, 0.875),
        (0.125, 0.0, 0.875, 0.75),
        (0.0, 0.0, 1.0, 1.0),
    ]
)
REGIONS_OF = {6: REGIONS[[0, 1, 2, 3, 4, 7]], 8: REGIONS}  # by how many a network weighs
SQUARE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])  # corners, in drawing order


@dataclass(frozen=True)
class Outline:
    """A part of an aligned face.

    Args:
        corners: (4, 2) float, x and y in pixels of the crop.
        strength: in (0, 1], its share against the greatest.
    """

    corners: np.ndarray
    strength: float


def outline(answer: ClipAnswer, i: int) -> list[Outline]:
    """Outline where the network looked in face `i`, the strongest last; nothing if it says not."""
    if answer.region_weights is not None:
        return outline_regions(answer.region_weights[i])
    if answer.theta is not None:
        return [outline_window(answer.theta[i])]
    return []


def outline_regions(weights: np.ndarray) -> list[Outline]:
    """Outline the regions whose weights (R,) are at least even: among all, none would stand out."""
    regions = REGIONS_OF.get(len(weights))
    if regions is None:
        return []
    counted = [i for i in np.argsort(weights) if weights[i] >= weights.mean() - EVEN]
    top = float(weights.max())
    return [Outline(to_pixels(box_corners(regions[i])), weights[i] / top) for i in counted]


def outline_window(theta: np.ndarray) -> Outline:
    """Outline what a spatial transformer sees, by its affine map (2, 3) of the square -1..1."""
    seen = (2 * SQUARE - 1) @ theta[:, :2].T + theta[:, 2]
    return Outline(to_pixels((seen + 1) / 2), 1.0)


def box_corners(box: np.ndarray) -> np.ndarray:
    """Name the corners (4, 2) of a box (4,): left, top, right, bottom."""
    return box[:2] + SQUARE * (box[2:] - box[:2])


def to_pixels(fractions: np.ndarray) -> np.ndarray:
    """Turn fractions of a crop's side into pixels, whose centres are whole numbers."""
    return fractions * FACE_SIZE - 0.5
