"""What trained embedders say of the pictures that another network learns from.

    teachers, pictures  ->  softened  ->  targets (N, classes)

Labels given by hand are often wrong (people agree on about 65 % of FER2013's); networks that were
trained on them, and have not learnt them by heart, are wrong elsewhere. A student learns from both.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from export.checkpoint import FRAME_CLASSIFIER, Embedder
from training import TrainingError
from training.loop import place
from training.stills import StillClassifier, classify

TEACHERS_SHARE = 0.7  # of a target; the label has the rest
TEACHERS_SIZE = 112  # pixels of a side: what training makes embedders for, unless it is told
ASKED_AT_ONCE = 1024  # pictures, between two steps of the progress bar


def softened(
    targets: Tensor,
    images: Tensor,
    teachers: Sequence[Embedder],
    label_names: Sequence[str],
) -> Tensor:
    """Blend labels with the mean of what teachers say of each picture and of its mirror image.

    Args:
        targets: (N, classes) float32, one-hot.
        images: (N, 1 or 3, h, w) uint8.
        teachers: embedders with their classifiers.

    Returns:
        (N, classes) float32, each row a distribution.

    Raises:
        TrainingError: for a teacher without a classifier of these labels.
    """
    models = [as_teacher(teacher, label_names, images.device) for teacher in teachers]
    said = []
    for some in tqdm(images.split(ASKED_AT_ONCE), desc="teachers", mininterval=5):
        views = [some, some.flip(-1)]
        logits = [classify(model, view, TEACHERS_SIZE) for model in models for view in views]
        said.append(torch.stack(logits).softmax(2).mean(0))
    return TEACHERS_SHARE * torch.cat(said) + (1 - TEACHERS_SHARE) * targets


def as_teacher(
    teacher: Embedder, label_names: Sequence[str], device: torch.device
) -> StillClassifier:
    """Build an embedder with its classifier, its labels in this order."""
    if any(k not in teacher.state for k in FRAME_CLASSIFIER):
        raise TrainingError("--teachers: one of them has no classifier of single frames")
    if sorted(teacher.labels) != sorted(label_names):
        raise TrainingError(
            f"--teachers: one of them knows {', '.join(teacher.labels) or 'no labels'}; expected "
            f"those of the data, {', '.join(label_names)}"
        )
    model = StillClassifier(len(label_names))
    model.load_embedder(teacher, label_names)
    return place(model, device)
