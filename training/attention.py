"""Stage two on clips made of stills: FAN's two attentions, behind an embedder that stays.

    clips (N, K, faces)  -embed, once->  features (N, K, 512)  -many passes->  alpha, beta

Nothing in clips made of stills is new to an embedder and a classifier that learnt from the stills:
trained end to end, they lost half a point on stills and more on clips. What is to be learnt is to
weigh, and as the embedder stays, every clip need be embedded only once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from training.clips import ClipClassifier, loss_of
from training.loop import Fit, Recipe, autocast, generator, seed_dropout
from training.spoil import Clips
from training.stills import batch_at

BATCH = 128  # clips a step
# How often a clip is seen. 1,500 steps on 8,000 clips brought the weight's AUC on other faces to
# 0.968, twice as many to no more.
PASSES = 24
EMBED_BATCH = 16  # clips
LEARNING_RATE = 0.02
SMOOTHING = 0.1


class Embedded(NamedTuple):
    """Clips whose frames were embedded.

    Args:
        features: (N, K, 512) float32.
        labels: (N,) int64.
        kinds: (N, K) int64, as in Clips.
    """

    features: Tensor
    labels: Tensor
    kinds: Tensor


def train_attention(
    model: ClipClassifier,
    clips_at: Callable[[int, Generator], Clips],
    num_clips: int,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
) -> Fit:
    """Train alpha and beta to the end, from where an earlier run in `folder` stopped.

    Clips are embedded anew after a kill, to the same features.

    Args:
        model: learns in place; its embedder and classifiers stay as they are.
        clips_at: gives the clips of a batch of EMBED_BATCH, drawing from the generator alone.
        num_clips: how many to embed, EMBED_BATCH at least.

    Returns:
        the run.
    """
    clips = embed(model, clips_at, num_clips // EMBED_BATCH, seed)
    steps = max(1, PASSES * len(clips.labels) // BATCH)
    model.requires_grad_(False)
    attention = torch.nn.ModuleDict({"alpha": model.attention.alpha, "beta": model.attention.beta})
    attention.requires_grad_(True)
    # Features' scales differ a hundredfold: Adam found in 800 steps what SGD did not.
    recipe = Recipe(steps, LEARNING_RATE, weight_decay=0.0, ema=0.995, seed=seed, adam=True)
    fit = Fit(attention, recipe, folder, {**identity, "clips": len(clips.labels)})

    def loss_at(step: int) -> Tensor:
        chosen = batch_at(step, len(clips.labels), BATCH, seed).to(clips.labels.device)
        seed_dropout(seed, step)
        scores = model.pool(clips.features[chosen])
        return loss_of(scores, clips.labels[chosen], clips.kinds[chosen], SMOOTHING)

    model.train()
    fit.run(loss_at)
    attention.load_state_dict(fit.averaged())
    return fit


@torch.no_grad()
def embed(
    model: ClipClassifier, clips_at: Callable[[int, Generator], Clips], batches: int, seed: int
) -> Embedded:
    """Embed as many batches of clips."""
    device = next(model.parameters()).device
    model.eval()
    done = []
    for i in tqdm(range(batches), desc="embed", unit="batch", mininterval=5):
        clips = clips_at(i, generator(device, seed, 2, i))
        with autocast(device):  # as in training end to end
            features = model.embed(clips.faces.flatten(0, 1))
        features = features.unflatten(0, clips.kinds.shape)
        done.append(Embedded(features, clips.labels, clips.kinds))
    return Embedded(*map(torch.cat, zip(*done, strict=True)))
