"""Faces that nobody has, and the options of a short training on them."""

from dataclasses import replace

import numpy as np
import torch

from networks.checkpoint import (
    LABELS,
)
from training.data import Dataset
from training.loop import generator
from training.run import (
    Options,
)
from training.stills import Phase

FER2013 = LABELS["fer2013"]
CPU = torch.device("cpu")


def draws(*numbers):
    return generator(CPU, *numbers)


def pictures(num, side=48, seed=0):
    """Gray pictures, (num, side, side) uint8, and labels that take turns."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, side, side), dtype=np.uint8), np.arange(num) % 7


def dataset(num=28, frames_per_clip=1, seed=0):
    images, _ = pictures(num * frames_per_clip, seed=seed)
    return Dataset(
        name="made up",
        frames=torch.from_numpy(images)[:, None],
        starts=torch.arange(num + 1) * frames_per_clip,
        labels=torch.arange(num) % 7,
        label_names=FER2013,
        subjects=tuple(f"S{i // 2:03}" for i in range(num)),
    )


def options(folder, **changes):
    usual = Options(
        out=folder, size=56, phases=(Phase(56, 3.0),), clip_epochs=3.0, seed=0, initial=None
    )
    return replace(usual, **changes)
