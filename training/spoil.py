"""Make clips out of still faces, some of their frames of little use.

    one face  ->  K frames: other crops, shifts, light, small changes of pose
              ->  some spoilt: blur, dark, occluded, misaligned, or another person's face

Where no videos are at hand, this is what attention learns from and is measured on. The kinds are
what a face detector and a camera do to frames.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from training.augment import Variation, light, rectangles, shrink, uniform, view, windows

KINDS = ("blurred", "dark", "occluded", "misaligned", "other face")
BLURRED, DARK, OCCLUDED, MISALIGNED, OTHER = range(len(KINDS))
CLEAR = -1

# One face over the frames of a clip: a smaller change than between two faces.
WITHIN_CLIP = Variation(
    crop=(0.85, 1.0), turn=6.0, shear=0.05, shift=0.02, light=0.12, erase=0.0, gamma=0.0
)
BLUR_TAPS = 9
NEUTRAL_SHARE = 0.5  # of the other faces, where the clip's own label is not neutral


@dataclass(frozen=True)
class Clips:
    """A batch of clips of equal length.

    Args:
        faces: (B, K, C, size, size) float, 0..1.
        labels: (B,) int64, each clip's emotion.
        kinds: (B, K) int64: CLEAR, or what a frame was spoilt with, an index into KINDS.
    """

    faces: Tensor
    labels: Tensor
    kinds: Tensor


def draw_kinds(num_clips: int, num_frames: int, num_spoilt: Tensor, draws: Generator) -> Tensor:
    """Choose which frames are spoilt, and how: (B, K) int64.

    Args:
        num_spoilt: (B,) int64, how many frames of each clip.
    """
    device = num_spoilt.device
    order = torch.rand(num_clips, num_frames, generator=draws, device=device).argsort(1).argsort(1)
    kinds = torch.randint(len(KINDS), order.shape, generator=draws, device=device)
    return torch.where(order < num_spoilt[:, None], kinds, CLEAR)


def other_faces(labels: Tensor, like: Tensor, neutral: int | None, draws: Generator) -> Tensor:
    """Choose, for each label in `like`, a picture of another emotion; half of them neutral.

    Args:
        labels: (N,) of all pictures.
        like: (M,) labels to differ from.
        neutral: the label of neutral faces, if there is one.

    Returns:
        (M,) indices into `labels`.
    """
    chance = torch.rand(len(like), len(labels), generator=draws, device=labels.device)
    allowed = labels != like[:, None]
    if neutral is not None:
        wants = torch.rand(len(like), 1, generator=draws, device=labels.device) < NEUTRAL_SHARE
        wants &= (like != neutral)[:, None] & (labels == neutral).any()
        allowed &= ~wants | (labels == neutral)
    return torch.where(allowed, chance, -1.0).argmax(1)


def make_clips(
    images: Tensor,
    labels: Tensor,
    chosen: Tensor,
    num_frames: int,
    num_spoilt: Tensor,
    size: int,
    neutral: int | None,
    draws: Generator,
) -> Clips:
    """Make a clip of each chosen face.

    Args:
        images: (N, C, h, w) uint8, all pictures.
        labels: (N,) int64.
        chosen: (B,) indices of the faces.
        num_frames: K, of each clip.
        num_spoilt: (B,) int64, at most K.
        size: pixels of a side of the frames.
        neutral: the label of neutral faces, if there is one.
    """
    kinds = draw_kinds(len(chosen), num_frames, num_spoilt, draws)
    if (labels == labels[0]).all():
        kinds = kinds.where(kinds != OTHER, BLURRED)  # there is no other emotion to show
    sources = chosen[:, None].repeat(1, num_frames)
    other = kinds == OTHER
    if other.any():
        sources[other] = other_faces(labels, labels[sources[other]], neutral, draws)
    # A face does not change sides within a clip.
    mirrored = torch.rand(len(chosen), generator=draws, device=images.device) < 0.5
    flat = kinds.flatten()
    pixels = shrink(images[sources.flatten()].float() / 255, size)
    thetas = windows(pixels, WITHIN_CLIP, draws)
    flips = mirrored.repeat_interleave(num_frames) != (thetas[:, 0, 0] < 0)
    thetas[flips, :, 0] *= -1
    thetas = misalign(thetas, flat == MISALIGNED, draws)
    faces = light(view(pixels, thetas, size), WITHIN_CLIP, draws)
    faces = blur(faces, flat == BLURRED, draws)
    faces = darken(faces, flat == DARK, draws)
    faces = occlude(faces, flat == OCCLUDED, draws)
    return Clips(faces.unflatten(0, kinds.shape), labels[chosen], kinds)


def misalign(thetas: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
    """Move, turn and zoom the chosen windows so that most of the face is out of its place."""
    n = len(thetas)
    zoom = uniform(thetas, 0.35, 0.6, draws, n)
    zoom = torch.where(uniform(thetas, 0, 1, draws, n) < 0.5, zoom, 1 / zoom)
    angle = uniform(thetas, 0.5, 1, draws, n) * math.radians(70) * sign(thetas, draws)
    shifts = torch.stack(
        [uniform(thetas, 0.4, 0.8, draws, n) * sign(thetas, draws) for _ in range(2)], 1
    )
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    wrong = torch.stack([cos, -sin, shifts[:, 0], sin, cos, shifts[:, 1]], 1).view(n, 2, 3)
    return torch.where(chosen[:, None, None], wrong, thetas)


def sign(like: Tensor, draws: Generator) -> Tensor:
    """Draw +1 or -1, one a row."""
    return 1 - 2 * (uniform(like, 0, 1, draws, len(like)) < 0.5).float()


def blur(faces: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
    """Smear the chosen faces along a straight line, 0.2 to 0.5 of their side long."""
    angle = uniform(faces, 0, math.pi, draws, len(faces))
    length = uniform(faces, 0.4, 1.0, draws, len(faces))  # in windows' units: a side is 2 long
    if not chosen.any():
        return faces
    still = torch.eye(2, 3, device=faces.device).repeat(int(chosen.sum()), 1, 1)
    step = torch.stack([angle.cos() * length, angle.sin() * length], 1)[chosen]
    total = torch.zeros_like(faces[chosen])
    for tap in range(BLUR_TAPS):
        moved = still.clone()
        moved[:, :, 2] = step * (tap / (BLUR_TAPS - 1) - 0.5)
        total += view(faces[chosen], moved, faces.shape[-1])
    return faces.index_put((chosen,), total / BLUR_TAPS)


def darken(faces: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
    """Leave the chosen faces a twentieth to a sixth of their light, and a sensor's noise."""
    left = uniform(faces, 0.05, 0.17, draws, len(faces), 1, 1, 1)
    noise = 0.02 * torch.randn(faces.shape, generator=draws, device=faces.device)
    return torch.where(chosen[:, None, None, None], (faces * left + noise).clamp(0, 1), faces)


def occlude(faces: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
    """Cover much of the lower face of the chosen ones with one gray: a hand, a microphone."""
    gray = uniform(faces, 0, 1, draws, len(faces), 1, 1, 1)
    covered = rectangles(faces, (0.55, 0.85), draws, low=True) & chosen[:, None, None, None]
    return torch.where(covered, gray, faces)
