"""Stage two on clips made of stills: FAN's heads, behind an embedder that stays.

    clips (N, K, faces)  -embed, once->  features (N, K, 512), shares (N, K), votes (N, classes)
                         -many passes->  alpha, beta and both classifiers

Nothing in clips made of stills is new to an embedder that learnt from the stills: trained end to
end, they lost half a point on stills and more on clips. What is to be learnt is to pool: which
frames to weigh, and how a mean of features comes to what the clear frames say one by one. So the
heads learn from what the classifier of single frames says of a clip's clear frames, not from its
label, which a trained embedder knows by heart; and as the embedder stays, every clip is embedded
only once.

What a frame's share should be is known, and asked for: nothing for one that is spoilt, and for
clear ones as much each, whatever emotion they show, but somewhat less for a neutral face (the
paper's figure: peak frames over onset).

It stays but for one thing, done first: its weights are rounded to those that INT8 can say
(`round_weights`), so that what the heads learn behind is what every precision serves.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn
from tqdm import tqdm

from export.to_int8 import FEW_STEPS
from networks.resnet import ResNet18
from training.clips import RELATION_SHARE, SELF_SHARE, ClipClassifier
from training.loop import Fit, Recipe, autocast, generator
from training.spoil import CLEAR, Clips
from training.stills import batch_at

BATCH = 128  # clips a step
PASSES = 24  # how often a clip is seen
EMBED_BATCH = 16  # clips
LEARNING_RATE = 0.003
# What the distance of the weights from the shares asked for counts, beside that of the answers.
TOLD_SHARE = 1.0
# What each clear frame's evidence counts, held against what it says alone: else the clip's part of
# FAN's classifier may say it all, and every frame of a smile that begins late is "happy".
EVIDENCE_SHARE = 2.0
EXPRESSION = 0.5  # by which part of a clear face's share a neutral one's is less
DEAD = 1e-6  # a step of weights, below which a channel is dead


@torch.no_grad()
def round_weights(backbone: ResNet18, *, is_gray: bool) -> None:
    """Round each convolution's weights to 64 steps either way, a step for each output channel.

    BatchNorm's factors, folded in when it is exported, scale whole channels: INT8's weights then
    are these weights, and only activations are left to round. With 127 steps those would get 7
    bits on a CPU, for a pair of products must not leave 16 (`export.to_int8_cpu`). The heads, which
    learn behind, see the rounded weights; no one sees rounded activations before they are served.

    Args:
        is_gray: whether it sees one channel, for which conv1's three are summed.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            sums = is_gray and module is backbone.conv1
            weight = backbone.narrow_weight() if sums else module.weight
            step = weight.abs().amax((1, 2, 3), keepdim=True) / FEW_STEPS
            # A dead channel is all but zero: made so, as FP16 could not hold its steps.
            rounded = torch.where(step > DEAD, (weight / step).round() * step, 0.0)
            module.weight.copy_(rounded / module.in_channels if sums else rounded)


class Embedded(NamedTuple):
    """Clips whose frames were embedded.

    Args:
        features: (N, K, 512) float32.
        frame_logits: (N, K, C) float32, of the classifier of single frames.
        shares: (N, K) float32, what each frame's share should be; rows sum to 1.
    """

    features: Tensor
    frame_logits: Tensor
    shares: Tensor

    def votes(self) -> Tensor:
        """What each clip's frames say, weighed by those shares: (N, C), rows are distributions."""
        return (self.shares[..., None] * self.frame_logits.softmax(2)).sum(1)


def train_attention(
    model: ClipClassifier,
    clips_at: Callable[[int, Generator], Clips],
    num_clips: int,
    neutral: int | None,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
) -> Fit:
    """Train alpha, beta and their classifiers to the end, from where a run in `folder` stopped.

    Clips are embedded anew after a kill, to the same features.

    Args:
        model: its heads learn in place; its embedder and `fc` stay as they are.
        clips_at: gives the clips of a batch of EMBED_BATCH, each with a clear frame at least,
            drawing from the generator alone.
        num_clips: how many to embed, EMBED_BATCH at least.
        neutral: the label of neutral faces, if there is one.

    Returns:
        the run.
    """
    clips = embed(model, clips_at, num_clips // EMBED_BATCH, neutral, seed)
    votes = clips.votes()
    steps = max(1, PASSES * len(votes) // BATCH)
    model.requires_grad_(False)
    heads = model.attention.requires_grad_(True)
    # Features' scales differ a hundredfold: Adam found in 800 steps what SGD did not.
    recipe = Recipe(
        steps=steps, learning_rate=LEARNING_RATE, weight_decay=0.0, ema=0.995, seed=seed, adam=True
    )
    fit = Fit(heads, recipe, folder, {**identity, "clips": len(votes)})

    def loss_at(step: int) -> Tensor:
        chosen = batch_at(step, len(votes), BATCH, seed).to(votes.device)
        said = clips.frame_logits[chosen].softmax(2)
        return loss_of(model, clips.features[chosen], votes[chosen], clips.shares[chosen], said)

    model.eval()  # no dropout: of what they are taught nothing can be learnt by heart
    fit.run(loss_at)
    heads.load_state_dict(fit.averaged())
    return fit


def loss_of(
    model: ClipClassifier, features: Tensor, votes: Tensor, shares: Tensor, said: Tensor
) -> Tensor:
    """Hold what the heads say of clips against what is told of them.

    Args:
        features: (B, K, 512).
        votes: (B, C), of the clips; rows are distributions.
        shares: (B, K), what each frame's should be; rows sum to 1.
        said: (B, K, C), what each frame says alone; rows are distributions.
    """
    scores = model.pool(features)
    loss = RELATION_SHARE * F.cross_entropy(scores.logits, votes)
    loss += SELF_SHARE * F.cross_entropy(scores.self_logits, votes)
    alone = -(said * scores.evidence.log_softmax(2)).sum(2)
    loss += EVIDENCE_SHARE * (shares * alone).sum(1).mean()
    for weights in (scores.weights, scores.self_weights):
        loss -= TOLD_SHARE * (shares * weights.clamp(min=1e-6).log()).sum(1).mean()
    return loss


def shares_of(kinds: Tensor, frame_logits: Tensor, neutral: int | None) -> Tensor:
    """Say what each frame's share should be: (N, K), rows sum to 1."""
    wanted = (kinds == CLEAR).float()
    if neutral is not None:
        wanted *= 1 - EXPRESSION * frame_logits.softmax(2)[..., neutral]
    return wanted / wanted.sum(1, keepdim=True)


@torch.no_grad()
def embed(
    model: ClipClassifier,
    clips_at: Callable[[int, Generator], Clips],
    batches: int,
    neutral: int | None,
    seed: int,
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
        logits = model.fc(features)
        done.append(Embedded(features, logits, shares_of(clips.kinds, logits, neutral)))
    return Embedded(*map(torch.cat, zip(*done, strict=True)))
