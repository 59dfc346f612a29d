"""Make the demo's sample video, from a picture that a dependency carries.

    python -m clients.sample build/demo/sample.mp4

The picture is scikit-image's `astronaut` (NASA, public domain: Eileen Collins, smiling). A camera
drifts over it for five seconds. Clear stretches alternate with spoilt ones, so that a clip's
weights have something to tell apart.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from skimage.data import astronaut

from clients.writer import VideoWriter

FPS = 25
SIDE = 360  # pixels, of the square video
FACE = (224.0, 112.0)  # x, y in the picture: between eyes and mouth
FACE_VIEW = 230.0  # pixels of the picture that the camera sees around the face
SHUTTLE = (437.0, 250.0)  # x, y in the picture: no face near
SHUTTLE_VIEW = 140.0

Kind = Literal["clear", "blurred", "dark", "occluded", "faceless"]


@dataclass(frozen=True)
class Stretch:
    """A part of the sample in which every frame is of one kind."""

    kind: Kind
    seconds: float


STRETCHES = (
    Stretch("clear", 1.0),
    Stretch("blurred", 0.6),
    Stretch("clear", 0.6),
    Stretch("dark", 0.6),
    Stretch("clear", 0.6),
    Stretch("occluded", 0.6),
    Stretch("faceless", 0.4),
    Stretch("clear", 0.6),
)


def kind_at(pts_seconds: float) -> Kind:
    """Name the kind of the sample's frame at a time."""
    end = 0.0
    for stretch in STRETCHES:
        end += stretch.seconds
        if pts_seconds < end - 1e-6:
            return stretch.kind
    raise ValueError(f"{pts_seconds} s is past the sample's end, {end:.1f} s")


def render(picture: np.ndarray, pts_seconds: float) -> np.ndarray:
    """Draw the sample's frame at a time, (SIDE, SIDE, 3) uint8 RGB."""
    kind = kind_at(pts_seconds)
    sway = np.array([np.sin(2.1 * pts_seconds), np.cos(1.7 * pts_seconds)])
    centre, view = (SHUTTLE, SHUTTLE_VIEW) if kind == "faceless" else (FACE, FACE_VIEW)
    scale = SIDE / (view + 12 * np.sin(1.3 * pts_seconds))
    shift = SIDE / 2 - scale * (np.array(centre) + 6 * sway)
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    image = cv2.warpAffine(picture, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
    return spoil(image, kind)


def spoil(image: np.ndarray, kind: Kind) -> np.ndarray:
    """Spoil a frame in the way its kind says; clear and faceless ones stay as they are."""
    if kind == "blurred":
        return cv2.GaussianBlur(image, (0, 0), 9)
    if kind == "dark":
        return (image * 0.12).astype(np.uint8)
    if kind == "occluded":
        # An arm across nose and mouth.
        return cv2.rectangle(image.copy(), (0, 160), (SIDE, 230), (90, 70, 60), -1)
    return image


def write_sample(target: Path) -> None:
    """Write the sample as H.264."""
    picture = astronaut()
    target.parent.mkdir(parents=True, exist_ok=True)
    num_frames = round(FPS * sum(stretch.seconds for stretch in STRETCHES))
    with VideoWriter(target, fps=FPS, size=(SIDE, SIDE)) as writer:
        for index in range(num_frames):
            writer.write(render(picture, index / FPS), index / FPS)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m clients.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", type=Path, help="MP4 file to write")
    write_sample(parser.parse_args(argv).target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
