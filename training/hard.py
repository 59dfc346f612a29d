"""Make still faces harder to read: partly hidden, or turned, as RAN's paper measures networks.

    faces (N, C, h, w) uint8  ->  occluded or turned  ->  (N, C, size, size) uint8

What is drawn depends on the seed alone, so that every network is measured on the same pictures; a
GPU draws others than a CPU.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from training.augment import uniform, view
from training.data import Dataset
from training.spoil import sign

SIZE = 112  # pixels of a side: a patch's edge is no coarser than a face's own pixels
BATCH = 512
# Left, top, right and bottom as shares of a face: the eyes, the mouth, either half.
PATCHES = (
    (0.1, 0.28, 0.9, 0.5),
    (0.25, 0.62, 0.75, 0.9),
    (0.0, 0.0, 0.5, 1.0),
    (0.5, 0.0, 1.0, 1.0),
)
TILT = (15.0, 35.0)  # degrees in the picture's plane, either way
YAW = (20.0, 45.0)  # degrees around the face's height, either way
DISTANCE = 3.0  # of the camera, in half sides: how much nearer the near side of a face is


def occlude(faces: Tensor, draws: Generator) -> Tensor:
    """Cover the eyes, the mouth or a half of each of (B, C, S, S) faces, 0..1, with one gray."""
    boxes = torch.tensor(PATCHES, device=faces.device)
    chosen = torch.randint(len(boxes), (len(faces),), generator=draws, device=faces.device)
    left, top, right, bottom = boxes[chosen].T[:, :, None]
    places = (torch.arange(faces.shape[-1], device=faces.device) + 0.5) / faces.shape[-1]
    columns = (places >= left) & (places < right)
    rows = (places >= top) & (places < bottom)
    covered = (rows[:, :, None] & columns[:, None, :])[:, None]
    gray = uniform(faces, 0, 1, draws, len(faces), 1, 1, 1)
    return torch.where(covered, gray, faces)


def turn(faces: Tensor, draws: Generator) -> Tensor:
    """Tilt each of (B, C, S, S) faces, 0..1, and turn it to a side, as a flat picture turns."""
    n, size = len(faces), faces.shape[-1]
    tilt, yaw = (
        torch.deg2rad(uniform(faces, *span, draws, n)) * sign(faces, draws) for span in (TILT, YAW)
    )
    places = (2 * torch.arange(size, device=faces.device) + 1) / size - 1
    y, x = torch.meshgrid(places, places, indexing="ij")
    cos, sin = (f(tilt)[:, None, None] for f in (torch.cos, torch.sin))
    # Where the ray through a pixel meets the turned plane, in the plane's own directions.
    across, down = cos * x + sin * y, cos * y - sin * x
    depth = yaw.cos()[:, None, None] - across * yaw.sin()[:, None, None] / DISTANCE
    grid = torch.stack([across / depth, down * yaw.cos()[:, None, None] / depth], 3)
    return grid_sample(faces, grid, padding_mode="border", align_corners=False)


HARD: dict[str, Callable[[Tensor, Generator], Tensor]] = {"occluded": occlude, "turned": turn}


def harden(data: Dataset, kind: str, seed: int = 0) -> Dataset:
    """Make every face of some data harder to read.

    Args:
        kind: one of HARD.
    """
    size = max(SIZE, data.frames.shape[-1])
    still = torch.eye(2, 3, device=data.frames.device)
    made = []
    for start in range(0, len(data.frames), BATCH):
        chunk = data.frames[start : start + BATCH].float() / 255
        draws = Generator(data.frames.device).manual_seed(seed * 1_000_003 + start)
        faces = view(chunk, still.repeat(len(chunk), 1, 1), size)
        made.append((HARD[kind](faces, draws) * 255).round().clamp(0, 255).byte())
    return replace(data, name=f"{data.name}, {kind}", frames=torch.cat(made))
