"""What trained networks say of the pictures that another one learns from.

    teachers, pictures  ->  softened  ->  targets (M, classes)

A small network learns more from what a good one says of a picture (sad, perhaps angry) than from
its label alone.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from networks.checkpoint import Checkpoint
from training import TrainingError
from training.data import Dataset
from training.measure import score_dataset

TEACHERS_SHARE = 0.7  # of a target; the label has the rest. No other share was tried.


def softened(targets: Tensor, data: Dataset, teachers: Sequence[Checkpoint]) -> Tensor:
    """Blend labels with the mean of what teachers say of each frame and of its mirror image.

    Args:
        targets: (M, classes) float32, one-hot, a row for each frame of the data.
        teachers: networks of the same emotions, in any order; they see faces as they are served.

    Returns:
        (M, classes) float32, each row a distribution.

    Raises:
        TrainingError: for a teacher of other emotions.
    """
    num = len(data.frames)
    stills = replace(
        data, starts=torch.arange(num + 1), labels=data.frame_labels(), subjects=(None,) * num
    )
    mirrored = replace(stills, frames=data.frames.flip(-1))
    said = [answers(teacher, view) for teacher in teachers for view in (stills, mirrored)]
    return TEACHERS_SHARE * torch.stack(said).mean(0) + (1 - TEACHERS_SHARE) * targets


def answers(teacher: Checkpoint, stills: Dataset) -> Tensor:
    """Ask one teacher: (M, classes) probabilities, numbered as the data are."""
    if sorted(teacher.labels) != sorted(stills.label_names):
        raise TrainingError(
            f"--teachers: {teacher.network} knows {', '.join(teacher.labels)}; expected the "
            f"emotions of the data, {', '.join(stills.label_names)}, in any order"
        )
    order = [teacher.labels.index(name) for name in stills.label_names]
    # For one frame FAN's three systems are one, as good as.
    return next(iter(score_dataset(teacher, stills).values()))[:, order]
