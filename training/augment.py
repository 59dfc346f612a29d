"""Vary pictures as a face's pictures vary: whole batches at once, on any device.

    pictures (B, C, h, w) uint8  ->  vary    ->  faces (B, C, size, size) float in 0..1
    faces                        ->  erase, mix_up

Every function draws from the generator it is given and from nothing else, so that a step of
training depends on its number alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How far a face's pictures vary.

    Args:
        crop: range of the side that is kept, as a fraction of the picture's.
        turn: greatest rotation in the plane, degrees.
        shear: greatest shear, a fraction: a small change of pose.
        shift: greatest shift beyond the crop's own, a fraction of the picture's side.
        light: greatest change of brightness (added) and contrast (a factor around 1).
        erase: share of the pictures that lose a rectangle: neither mouth nor brows tell it all.
        gamma: greatest change of the tone curve: pixels to the power of exp(-gamma) to exp(gamma).
        detail: greatest sharpening; as much the other way leaves a face blurred. Faces of 48
            pixels are softer than a camera's, and many of a video's are softer still.
        noise: greatest standard deviation of a sensor's noise.
    """

    crop: tuple[float, float] = (0.75, 1.0)
    turn: float = 12.0
    shear: float = 0.08
    shift: float = 0.03
    light: float = 0.15
    erase: float = 0.4
    gamma: float = 0.3
    detail: float = 1.5
    noise: float = 0.03

    def scaled(self, factor: float) -> "Variation":
        """Vary less (below 1) or more."""
        low, high = (1 - (1 - side) * factor for side in self.crop)
        return Variation(
            crop=(low, high),
            turn=self.turn * factor,
            shear=self.shear * factor,
            shift=self.shift * factor,
            light=self.light * factor,
            erase=self.erase * factor,
            gamma=self.gamma * factor,
            detail=self.detail * factor,
            noise=self.noise * factor,
        )


def uniform(like: Tensor, low: float, high: float, draws: Generator, *shape: int) -> Tensor:
    """Draw float32 values where `like` is."""
    values = torch.rand(shape, generator=draws, device=like.device)
    return low + (high - low) * values


def view(pictures: Tensor, thetas: Tensor, size: int) -> Tensor:
    """Look at (B, C, h, w) pictures through affine windows (B, 2, 3); what is outside repeats."""
    shape = [len(pictures), pictures.shape[1], size, size]
    grid = F.affine_grid(thetas, shape, align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def shrink(pixels: Tensor, size: int) -> Tensor:
    """Average pictures down to twice `size` where they are larger: `view` reads 2 x 2 pixels."""
    if pixels.shape[-1] <= 2 * size:
        return pixels
    return F.interpolate(pixels, (2 * size, 2 * size), mode="area")


def windows(like: Tensor, variation: Variation, draws: Generator) -> Tensor:
    """Draw a window a picture: (B, 2, 3) in grid_sample's coordinates, where a side is 2 long."""
    n = len(like)
    crop = uniform(like, *variation.crop, draws, n)
    angle = uniform(like, -1, 1, draws, n) * math.radians(variation.turn)
    shear = uniform(like, -1, 1, draws, n) * variation.shear
    flip = 1 - 2 * (uniform(like, 0, 1, draws, n) < 0.5).float()
    room = 1 - crop + 2 * variation.shift
    x, y = uniform(like, -1, 1, draws, 2, n) * room
    cos, sin = angle.cos() * crop, angle.sin() * crop
    rows = [flip * cos, shear * cos - sin, x, flip * sin, shear * sin + cos, y]
    return torch.stack(rows, 1).view(n, 2, 3)


def vary(pictures: Tensor, size: int, variation: Variation, draws: Generator) -> Tensor:
    """Crop, turn, flip and light every picture in its own way.

    Args:
        pictures: (B, C, h, w) uint8.

    Returns:
        (B, C, size, size) float32, 0..1.
    """
    pixels = shrink(pictures.float() / 255, size)
    faces = view(pixels, windows(pixels, variation, draws), size)
    faces = light(sharpen(faces, variation.detail, draws), variation, draws)
    if variation.noise:
        spread = variation.noise * uniform(faces, 0, 1, draws, len(faces), 1, 1, 1)
        noise = torch.randn(faces.shape, generator=draws, device=faces.device)
        faces = (faces + spread * noise).clamp(0, 1)
    return erase(faces, variation.erase, draws)


def sharpen(faces: Tensor, detail: float, draws: Generator) -> Tensor:
    """Sharpen some faces and blur others, by unsharp masking: a factor a face.

    What a face's pixels differ by from the mean around them is multiplied by 1 - detail / 2 to
    1 + detail; of faces of 48 pixels, shown larger, this is what a camera's would have more of.
    """
    if not detail:
        return faces
    # A window as wide as one and a half of FER2013's pixels, at whatever size it is seen.
    around = smooth(faces, 1.5 / 48)
    amount = detail * uniform(faces, -0.5, 1, draws, len(faces), 1, 1, 1)
    return (faces + amount * (faces - around)).clamp(0, 1)


def smooth(faces: Tensor, share: float) -> Tensor:
    """Average each pixel with those around it, twice, in windows of a share of the side."""
    half = max(1, round(share * faces.shape[-1] / 2))
    for _ in range(2):
        faces = F.avg_pool2d(faces, 2 * half + 1, 1, half, count_include_pad=False)
    return faces


def light(faces: Tensor, variation: Variation, draws: Generator) -> Tensor:
    """Change brightness, contrast and the tone curve."""
    shape = (len(faces), 1, 1, 1)
    if variation.gamma:
        power = (variation.gamma * uniform(faces, -1, 1, draws, *shape)).exp()
        faces = faces.clamp(min=1e-4) ** power
    contrast = 1 + variation.light * uniform(faces, -1, 1, draws, *shape)
    brightness = variation.light * uniform(faces, -1, 1, draws, *shape)
    mean = faces.mean((1, 2, 3), keepdim=True)
    return ((faces - mean) * contrast + mean + brightness).clamp(0, 1)


def rectangles(
    faces: Tensor, share: tuple[float, float], draws: Generator, *, low: bool = False
) -> Tensor:
    """Draw a rectangle a picture, sides a `share` of the picture's: (B, 1, H, W) bool.

    Args:
        low: only where mouth and nose are: centres in the lower half.
    """
    n, size = len(faces), faces.shape[-1]
    sides = uniform(faces, *share, draws, 2, n, 1)
    centres = uniform(faces, 0, 1, draws, 2, n, 1)
    if low:
        centres[0] = 0.5 + 0.4 * centres[0]
        centres[1] = 0.3 + 0.4 * centres[1]
    places = (torch.arange(size, device=faces.device) + 0.5) / size
    rows, columns = (places - centres).abs() < sides / 2
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(faces: Tensor, share: float, draws: Generator) -> Tensor:
    """Fill a rectangle of some faces with one gray."""
    if share == 0:
        return faces
    chosen = uniform(faces, 0, 1, draws, len(faces), 1, 1, 1) < share
    gray = uniform(faces, 0, 1, draws, len(faces), 1, 1, 1)
    return torch.where(rectangles(faces, (0.15, 0.55), draws) & chosen, gray, faces)


def mix_up(
    faces: Tensor, targets: Tensor, strength: float, draws: Generator
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
        u, v = torch.rand(2, generator=draws, device=faces.device) ** (1 / strength)
        if 0 < u + v <= 1:
            break
    share = u / (u + v)
    order = torch.randperm(len(faces), generator=draws, device=faces.device)
    return (
        share * faces + (1 - share) * faces[order],
        share * targets + (1 - share) * targets[order],
    )
