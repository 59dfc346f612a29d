"""Vary pictures as a face's pictures vary: whole batches at once, on any device.

    pictures (B, C, h, w) uint8  ->  vary    ->  faces (B, C, size, size) float in 0..1
    faces                        ->  erase, mix_up
    faces of a clip              ->  spoil   ->  the same, some of them of little use

Every function draws from the generator it is given and from nothing else, so that a step of
training depends on its number alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor


@dataclass(frozen=True)
class Variation:
    """How far a face's pictures vary.

    Args:
        crop: range of the side that is kept, as a fraction of the picture's.
        turn: greatest rotation in the plane, degrees.
        shear: greatest shear, a fraction: a small change of pose.
        shift: greatest shift beyond the crop's own, a fraction of the picture's side.
        light: greatest change of brightness (added) and contrast (a factor around 1).
        erase: share of the pictures that lose a rectangle.
    """

    crop: tuple[float, float] = (0.75, 1.0)
    turn: float = 12.0
    shear: float = 0.08
    shift: float = 0.03
    light: float = 0.15
    erase: float = 0.2


def uniform(like: Tensor, low: float, high: float, generator: Generator, *shape: int) -> Tensor:
    """Draw float32 values where `like` is."""
    values = torch.rand(shape, generator=generator, device=like.device)
    return low + (high - low) * values


def view(pictures: Tensor, thetas: Tensor, size: int) -> Tensor:
    """Look at (B, C, h, w) pictures through affine windows (B, 2, 3); what is outside repeats."""
    shape = [len(pictures), pictures.shape[1], size, size]
    grid = F.affine_grid(thetas, shape, align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def windows(like: Tensor, variation: Variation, generator: Generator) -> Tensor:
    """Draw a window a picture: (B, 2, 3) in grid_sample's coordinates, where a side is 2 long."""
    n = len(like)
    crop = uniform(like, *variation.crop, generator, n)
    angle = uniform(like, -1, 1, generator, n) * math.radians(variation.turn)
    shear = uniform(like, -1, 1, generator, n) * variation.shear
    flip = 1 - 2 * (uniform(like, 0, 1, generator, n) < 0.5).float()
    room = (1 - crop).clamp(min=0) + 2 * variation.shift
    x, y = uniform(like, -1, 1, generator, 2, n) * room
    cos, sin = angle.cos() * crop, angle.sin() * crop
    rows = [flip * cos, shear * cos - sin, x, flip * sin, shear * sin + cos, y]
    return torch.stack(rows, 1).view(n, 2, 3)


def vary(pictures: Tensor, size: int, variation: Variation, generator: Generator) -> Tensor:
    """Crop, turn, flip and light every picture in its own way.

    Args:
        pictures: (B, C, h, w) uint8.

    Returns:
        (B, C, size, size) float32, 0..1.
    """
    pixels = pictures.float() / 255
    faces = view(pixels, windows(pixels, variation, generator), size)
    return erase(light(faces, variation, generator), variation.erase, generator)


def light(faces: Tensor, variation: Variation, generator: Generator) -> Tensor:
    """Change brightness and contrast."""
    shape = (len(faces), 1, 1, 1)
    contrast = 1 + variation.light * uniform(faces, -1, 1, generator, *shape)
    brightness = variation.light * uniform(faces, -1, 1, generator, *shape)
    mean = faces.mean((1, 2, 3), keepdim=True)
    return ((faces - mean) * contrast + mean + brightness).clamp(0, 1)


def rectangles(
    faces: Tensor, share: tuple[float, float], generator: Generator, *, low: bool = False
) -> Tensor:
    """Draw a rectangle a picture, sides a `share` of the picture's: (B, 1, H, W) bool.

    Args:
        low: only where mouth and nose are: centres in the lower half.
    """
    n, size = len(faces), faces.shape[-1]
    sides = uniform(faces, *share, generator, 2, n, 1)
    centres = uniform(faces, 0, 1, generator, 2, n, 1)
    if low:
        centres[0] = 0.5 + 0.4 * centres[0]
        centres[1] = 0.3 + 0.4 * centres[1]
    places = (torch.arange(size, device=faces.device) + 0.5) / size
    rows, columns = (places - centres).abs() < sides / 2
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(faces: Tensor, share: float, generator: Generator) -> Tensor:
    """Fill a rectangle of some faces with one gray."""
    if share == 0:
        return faces
    chosen = uniform(faces, 0, 1, generator, len(faces), 1, 1, 1) < share
    gray = uniform(faces, 0, 1, generator, len(faces), 1, 1, 1)
    return torch.where(rectangles(faces, (0.15, 0.5), generator) & chosen, gray, faces)


def mix_up(
    faces: Tensor, targets: Tensor, strength: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Blend the batch with itself in another order, labels too.

    Args:
        targets: (B, classes) float, each row a distribution.
        strength: of the Beta distribution that a batch's share is drawn from; 0 changes nothing.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    if strength == 0:
        return faces, targets
    # Beta(a, a) from two draws, by Jöhnk: torch's own sampler takes no generator.
    while True:
        u, v = torch.rand(2, generator=generator, device=faces.device) ** (1 / strength)
        if 0 < u + v <= 1:
            break
    share = u / (u + v)
    order = torch.randperm(len(faces), generator=generator, device=faces.device)
    return (
        share * faces + (1 - share) * faces[order],
        share * targets + (1 - share) * targets[order],
    )
