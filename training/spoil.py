"""Make clips out of still faces: other views of them, some of little use.

    one face, or two of different emotions  ->  which picture each frame shows
              ->  K frames: other crops, shifts, light, small changes of pose
              ->  some spoilt: blur, dark, occluded, misaligned, turned away

Where no videos are at hand, this is what attention learns from and is measured on. The kinds are
what a face detector, a camera and a person who moves do to frames. Another emotion in a clip spoils
nothing: in a track there are no strangers, and what somebody felt for a second counts as a second.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from training.augment import (
    Variation,
    light,
    rectangles,
    sharpen,
    shrink,
    smooth,
    uniform,
    view,
    windows,
)

KINDS = ("blurred", "dark", "occluded", "misaligned", "turned away")
BLURRED, DARK, OCCLUDED, MISALIGNED, TURNED = range(len(KINDS))
CLEAR = -1

# One face over the frames of a clip: a smaller change than between two faces.
WITHIN_CLIP = Variation(
    crop=(0.85, 1.0), turn=6.0, shear=0.05, shift=0.02, light=0.12, erase=0.0, gamma=0.0, detail=1.0
)
BLUR_TAPS = 9
MIXED_SHARE = 0.5  # of the clips that learn: two emotions are in them
ALIKE_SHARE = 0.5  # of those: each emotion is one face's; in the others every frame is another's


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


def pictures_of(emotions: Tensor, wanted: Tensor, draws: Generator) -> Tensor:
    """Choose a picture of each emotion wanted.

    Args:
        emotions: (N,) of all pictures.
        wanted: (M,) emotions, each that of a picture at least.

    Returns:
        (M,) indices into `emotions`.
    """
    chance = torch.rand(len(wanted), len(emotions), generator=draws, device=emotions.device)
    return torch.where(emotions == wanted[:, None], chance, -1.0).argmax(1)


def other_emotions(emotions: Tensor, own: Tensor, draws: Generator) -> Tensor:
    """Choose another of the data's emotions for each in `own`, all as likely: (M,) int64.

    Where the data have one alone, that is it.
    """
    present = emotions.unique()
    chance = torch.rand(len(own), len(present), generator=draws, device=emotions.device)
    return present[torch.where(present != own[:, None], chance, -1.0).argmax(1)]


def mixed_sources(
    emotions: Tensor, chosen: Tensor, num_others: Tensor, num_frames: int, draws: Generator
) -> Tensor:
    """Choose which picture each frame shows, where a clip has two emotions.

    Args:
        emotions: (N,) of all pictures.
        chosen: (B,) indices of the faces that the clips are made of.
        num_others: (B,) how many frames, in no order, show the other emotion; 0 for none: such a
            clip is of the chosen face alone.

    Returns:
        (B, K) indices into `emotions`.
    """
    shape = (len(chosen), num_frames)
    order = torch.rand(shape, generator=draws, device=chosen.device).argsort(1).argsort(1)
    others = order < num_others[:, None]
    own = emotions[chosen]
    other = other_emotions(emotions, own, draws)
    wanted = torch.where(others, other[:, None], own[:, None])
    alike = torch.rand(shape[0], 1, generator=draws, device=chosen.device) < ALIKE_SHARE
    one_face = torch.where(others, pictures_of(emotions, other, draws)[:, None], chosen[:, None])
    any_face = pictures_of(emotions, wanted.flatten(), draws).view(shape)
    return torch.where(alike | (num_others == 0)[:, None], one_face, any_face)


def make_clips(
    images: Tensor, labels: Tensor, sources: Tensor, kinds: Tensor, size: int, draws: Generator
) -> Clips:
    """Make clips of chosen faces.

    Args:
        images: (N, C, h, w) uint8, all pictures.
        labels: (B,) int64, the clips'.
        sources: (B, K) the picture that each frame shows.
        kinds: (B, K) what each frame is spoilt with.
        size: pixels of a side of the frames.
    """
    num_frames = kinds.shape[1]
    # A face does not change sides within a clip.
    mirrored = torch.rand(len(kinds), generator=draws, device=images.device) < 0.5
    flat = kinds.flatten()
    pixels = shrink(images[sources.flatten()].float() / 255, size)
    thetas = windows(pixels, WITHIN_CLIP, draws)
    flips = mirrored.repeat_interleave(num_frames) != (thetas[:, 0, 0] < 0)
    thetas[flips, :, 0] *= -1
    thetas = misalign(thetas, flat == MISALIGNED, draws)
    thetas = turn_away(thetas, flat == TURNED, draws)
    faces = sharpen(view(pixels, thetas, size), WITHIN_CLIP.detail, draws)
    faces = light(faces, WITHIN_CLIP, draws)
    faces = blur(faces, flat == BLURRED, draws)
    faces = darken(faces, flat == DARK, draws)
    faces = occlude(faces, flat == OCCLUDED, draws)
    return Clips(faces.unflatten(0, kinds.shape), labels, kinds)


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


def turn_away(thetas: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
    """Squeeze the chosen faces to a third or half of their width and push them to one side.

    Of a still nothing better can be made: it does not show the side of a face.
    """
    width = uniform(thetas, 2.0, 3.0, draws, len(thetas))
    aside = uniform(thetas, 0.2, 0.6, draws, len(thetas)) * sign(thetas, draws)
    turned = thetas.clone()
    turned[:, :, 0] *= width[:, None]
    turned[:, 0, 2] += aside * width
    return torch.where(chosen[:, None, None], turned, thetas)


def sign(like: Tensor, draws: Generator) -> Tensor:
    """Draw +1 or -1, one a row."""
    return 1 - 2 * (uniform(like, 0, 1, draws, len(like)) < 0.5).float()


def blur(faces: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
    """Blur the chosen faces: half of them moved, the others are out of focus."""
    moved = uniform(faces, 0, 1, draws, len(faces)) < 0.5
    return defocus(smear(faces, chosen & moved, draws), chosen & ~moved, draws)


def defocus(faces: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
    """Take the chosen faces out of focus, by 0.03 to 0.08 of their side (standard deviation)."""
    much = uniform(faces, 0, 1, draws, len(faces), 1, 1, 1)
    if not chosen.any():
        return faces
    near, far = (smooth(faces[chosen], share) for share in (0.08, 0.19))
    return faces.index_put((chosen,), torch.lerp(near, far, much[chosen]))


def smear(faces: Tensor, chosen: Tensor, draws: Generator) -> Tensor:
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
