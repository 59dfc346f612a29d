"""Between the stages: the classifier of single frames learns anew, others' faces beside the data's.

    stills, others' clips  -embed, once->  features (M, 512)  -L-BFGS->  fc

The embedder stays, so that pictures of another kind, posed or of few people, teach it nothing to
know by heart: they only move the borders between the emotions. Few of them move those far enough
when each counts many times.
"""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm import tqdm

from training.clips import ClipClassifier
from training.data import Dataset
from training.loop import autocast
from training.stills import weighed_loss

logger = logging.getLogger(__name__)

# What moving the classifier costs: the sum of its weights' squared ways, beside the mean loss.
ANCHOR = 1e-4
SMOOTHING = 0.1  # of the others' labels, behind which no votes stand
STEPS = 200  # of L-BFGS, at most
EMBED_BATCH = 128  # faces


@dataclass(frozen=True, kw_only=True)
class Told:
    """Faces as the classifier sees them, and what is learnt of each.

    Args:
        features: (M, 512) float32.
        targets: (M, C) float32, each row a distribution.
        weights: (M,) float32, how much each counts.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor


def relearn(
    model: ClipClassifier, data: Dataset, others: Dataset, times: float, size: int, balance: float
) -> None:
    """Let a model's classifier of single frames learn from the data and from others, in place.

    Args:
        model: its embedder, in evaluation, is what the features come from.
        data: stills, learnt as `Dataset.targets` says.
        others: clips of the same emotions, in the same order; every frame has its clip's label.
        times: how much a frame of theirs counts, where a still that all voted on counts 1.
        size: pixels to which the served graph brings a face.
        balance: how much of the emotions' shares is kept apart, as in `run.log_prior`.
    """
    told = join(
        tell(model, data, size, 1.0, smoothing=0.0),
        tell(model, others, size, times, smoothing=SMOOTHING),
    )
    shares = (told.weights[:, None] * told.targets).sum(0) / told.weights.sum()
    shift = balance * shares.clamp(min=1 / (10 * len(data))).log()
    before = fit(model.fc, told, shift)
    logger.info("classifier: loss %.4f, %.4f before it learnt anew", *before)
    model.begin_heads()


def tell(
    model: ClipClassifier, data: Dataset, size: int, times: float, *, smoothing: float
) -> Told:
    """Embed every frame of some data and say what is learnt of it."""
    targets, weights = map(data.per_frame, data.targets())
    targets = (1 - smoothing) * targets + smoothing / targets.shape[1]
    features = embed(model, data.frames, size)
    return Told(features=features, targets=targets, weights=times * weights)


@torch.no_grad()
def embed(model: ClipClassifier, frames: Tensor, size: int) -> Tensor:
    """Embed (M, C, h, w) uint8 faces as they are: (M, 512) float32."""
    model.eval()
    features = []
    for chunk in tqdm(frames.split(EMBED_BATCH), desc="embed stills", unit="batch", mininterval=5):
        faces = F.interpolate(chunk.float() / 255, (size, size), mode="bilinear", antialias=True)
        with autocast(frames.device):
            features.append(model.embed(faces))
    return torch.cat(features)


def join(*told: Told) -> Told:
    """Put faces of several data sets together."""
    return Told(
        features=torch.cat([t.features for t in told]),
        targets=torch.cat([t.targets for t in told]),
        weights=torch.cat([t.weights for t in told]),
    )


def fit(fc: nn.Linear, told: Told, shift: Tensor) -> tuple[float, float]:
    """Minimise the loss of a linear classifier, held near where it begins.

    Args:
        shift: (C,), added to the logits while it learns.

    Returns:
        the loss after and before.
    """
    fc.requires_grad_(True)
    first = [p.detach().clone() for p in fc.parameters()]
    wanted = told.targets * told.weights[:, None]
    optimiser = torch.optim.LBFGS(
        fc.parameters(), max_iter=STEPS, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss_of() -> Tensor:
        loss = weighed_loss(fc(told.features) + shift, wanted, 0.0)
        ways = sum((p - q).square().sum() for p, q in zip(fc.parameters(), first, strict=True))
        return loss + ANCHOR * ways

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    before = loss_of().item()
    optimiser.step(step)
    fc.requires_grad_(False)
    return loss_of().item(), before
