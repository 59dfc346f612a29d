"""Stage two: FAN on clips, from an embedder of stage one.

    faces (B, K, C, H, W)  ->  ClipClassifier  ->  Scores of the paper's three systems
    train                  ->  a Checkpoint that `videofer export` takes

All of it learns, end to end; `attention.py` has what learns from clips made of known stills.
The three systems of the paper's table stand on one embedder and are trained together, so that they
differ in how they pool frames and in nothing else: score fusion (`fc`, every frame on its own),
self-attention (`alpha`, `pred_fc1`) and full FAN (`alpha`, `beta`, `pred_fc2`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn

from networks.checkpoint import Embedder, is_counter
from networks.fan import FrameAttention
from networks.resnet import NUM_FEATURES, ResNet18
from training.loop import Fit, Recipe, autocast, generator, seed_dropout
from training.spoil import CLEAR, Clips
from training.stills import load_embedder

# What counts towards the loss: FAN is what is served, the others are measured beside it.
RELATION_SHARE, SELF_SHARE, FUSION_SHARE = 1.0, 0.5, 0.5
# Where clips are made of stills, which frames are clear is known: both attentions are asked to lie
# on those. The paper, with real clips, has no such term, and neither have ours.
CLEAR_SHARE = 1.0
# Of the embedder's learning rate: it is trained already, and the heads behind it are not.
CLASSIFIER_FACTOR = 5.0
ATTENTION_FACTOR = 5.0
# Told which frames are clear, the attentions can learn as fast as they need to: on frozen features,
# 480 steps at a rate of 0.04 brought their AUC to 0.940, at 0.4 to 0.964.
TOLD_ATTENTION_FACTOR = 100.0


class Scores(NamedTuple):
    """What the three systems say of B clips of K frames.

    Args:
        frame_logits: (B, K, C) of score fusion: every frame on its own.
        self_logits: (B, C) of self-attention.
        logits: (B, C) of full FAN.
        self_weights: (B, K), frames' shares in self-attention; sum to 1.
        weights: (B, K), frames' shares in full FAN; sum to 1.
        evidence: (B, K, C), what each frame speaks for in full FAN, beside its clip; their mean,
            weighted by `weights`, is `logits`.
    """

    frame_logits: Tensor
    self_logits: Tensor
    logits: Tensor
    self_weights: Tensor
    weights: Tensor
    evidence: Tensor

    def probabilities(self) -> dict[str, Tensor]:
        """Each system's (B, C) probabilities; score fusion averages the frames'."""
        return {
            "score fusion": self.frame_logits.softmax(2).mean(1),
            "self-attention": self.self_logits.softmax(1),
            "FAN": self.logits.softmax(1),
        }


class ClipClassifier(nn.Module):
    """FAN over batches of clips, with the paper's dropout.

    `pool` is networks.fan's formula for many clips at once; tests hold the two equal.

    Args:
        keep_statistics: BatchNorm's, of the embedder it starts from. Half of the frames of clips
            made of stills are spoilt: in their statistics a clear face would look odd.
    """

    def __init__(self, num_classes: int, *, keep_statistics: bool = False) -> None:
        super().__init__()
        self.keep_statistics = keep_statistics
        self.backbone = ResNet18()
        self.attention = FrameAttention(num_classes)
        self.fc = nn.Linear(NUM_FEATURES, num_classes)
        self.dropout = nn.Dropout(0.5)  # before alpha, beta, fc1 and fc
        self.dropout_fc2 = nn.Dropout(0.6)  # before fc2

    def train(self, mode: bool = True) -> Self:
        """Turn training on or off."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d) and self.keep_statistics:
                module.eval()
        return self

    def forward(self, faces: Tensor) -> Scores:
        """Score clips of (B, K, 1 or 3, H, W) float faces, 0..1."""
        return self.pool(self.embed(faces.flatten(0, 1)).unflatten(0, faces.shape[:2]))

    def embed(self, faces: Tensor) -> Tensor:
        """Embed (M, 1 or 3, H, W) float faces, 0..1: (M, 512) float32."""
        faces = faces.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        # Trained in half the bits, measured in float32.
        with autocast(faces.device) if self.training else nullcontext():
            return self.backbone(faces).float()

    def pool(self, features: Tensor) -> Scores:
        """Score clips of (B, K, 512) float32 features."""
        heads = self.attention
        alphas = heads.alpha(self.dropout(features))  # (B, K, 1)
        shares = alphas / alphas.sum(1, keepdim=True)
        clip = (shares * features).sum(1, keepdim=True)  # (B, 1, 512)
        relations = torch.cat([features, clip.expand_as(features)], 2)  # (B, K, 1024)
        weights = alphas * heads.beta(self.dropout(relations))
        weights = weights / weights.sum(1, keepdim=True)
        return Scores(
            # It learns behind the embedder and does not pull at it: with the clip's label for
            # every frame, other people's faces among them, it would blur what stage one learnt.
            self.fc(self.dropout(features.detach())),
            heads.pred_fc1(self.dropout(clip.squeeze(1))),
            heads.pred_fc2(self.dropout_fc2((weights * relations).sum(1))),
            shares.squeeze(2),
            weights.squeeze(2),
            heads.pred_fc2(relations),
        )

    def load_embedder(self, embedder: Embedder, label_names: Sequence[str]) -> bool:
        """Take an embedder's weights, and its classifier where it has one of these labels.

        Returns:
            whether it had.
        """
        if not load_embedder(self.backbone, self.fc, embedder, label_names):
            return False
        self.begin_heads()
        return True

    @torch.no_grad()
    def begin_heads(self) -> None:
        """Let all three begin as the classifier of single frames, to learn to pool from there."""
        self.attention.pred_fc1.load_state_dict(self.fc.state_dict())
        # FAN's sees [frame ; clip]: it begins with the frames, as it weighs them.
        self.attention.pred_fc2.weight.copy_(F.pad(self.fc.weight, (0, NUM_FEATURES)))
        self.attention.pred_fc2.bias.copy_(self.fc.bias)


@dataclass(frozen=True, kw_only=True)
class ClipsRecipe:
    """How stage two trains.

    Args:
        steps: of the optimiser.
        epoch: steps of an epoch.
        batch: clips a step.
        smoothing: of the labels.
        heads_first: share of the steps in which the heads alone learn. Until they see something,
            what they ask of a trained embedder is noise.
        attention_factor: of the learning rate, for alpha and beta.
        shift: added to the logits while they learn, as in stills.StillsRecipe.
    """

    steps: int
    epoch: int
    batch: int = 24
    learning_rate: float = 0.003
    smoothing: float = 0.1
    seed: int = 0
    heads_first: float = 0.0
    attention_factor: float = ATTENTION_FACTOR
    shift: tuple[float, ...] = ()


def loss_of(
    scores: Scores, labels: Tensor, kinds: Tensor, smoothing: float, shift: Tensor
) -> Tensor:
    """Weigh the three systems' cross-entropies; every frame of a clip has the clip's label.

    Args:
        labels: (B,), and kinds (B, K), as in Clips.
        shift: (C,) or a number, added to the logits.
    """
    frames = scores.frame_logits.flatten(0, 1) + shift
    each = labels.repeat_interleave(scores.frame_logits.shape[1])
    together, alone = scores.logits + shift, scores.self_logits + shift
    loss = RELATION_SHARE * F.cross_entropy(together, labels, label_smoothing=smoothing)
    loss += SELF_SHARE * F.cross_entropy(alone, labels, label_smoothing=smoothing)
    loss += FUSION_SHARE * F.cross_entropy(frames, each, label_smoothing=smoothing)
    clear = kinds == CLEAR
    if not clear.all():
        for weights in (scores.weights, scores.self_weights):
            loss -= CLEAR_SHARE * (weights * clear).sum(1).clamp(min=1e-6).log().mean()
    return loss


def train(
    model: ClipClassifier,
    clips_at: Callable[[int, Generator], Clips],
    recipe: ClipsRecipe,
    folder: Path,
    identity: dict[str, Any],
    each_epoch: Callable[[int, Fit], dict[str, float]] | None = None,
) -> Fit:
    """Train to the end, from where an earlier run in `folder` stopped.

    Args:
        clips_at: gives a step's clips, drawing from the generator alone.
        each_epoch: given the number of epochs done, gives figures for the log, or none.

    Returns:
        the run: `averaged()` are its weights, named as in `model`.
    """
    device = next(model.parameters()).device
    settings = Recipe(
        steps=recipe.steps, learning_rate=recipe.learning_rate, seed=recipe.seed, ema=0.995
    )
    attention = recipe.attention_factor
    factors = {"alpha": attention, "beta": attention, "fc": CLASSIFIER_FACTOR}
    fit = Fit(model, settings, folder, identity, factors)
    shift = torch.tensor(recipe.shift or 0.0, device=device)

    def loss_at(step: int) -> Tensor:
        clips = clips_at(step, generator(device, recipe.seed, 2, step))
        seed_dropout(recipe.seed, step)
        with torch.set_grad_enabled(step >= recipe.heads_first * recipe.steps):
            features = model.embed(clips.faces.flatten(0, 1))
        scores = model.pool(features.unflatten(0, clips.faces.shape[:2]))
        return loss_of(scores, clips.labels, clips.kinds, recipe.smoothing, shift)

    def figures_at(step: int) -> dict[str, float]:
        if each_epoch and step % recipe.epoch == 0:
            return each_epoch(step // recipe.epoch, fit)
        return {}

    fit.run(loss_at, figures_at)
    return fit


def fan_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ClipClassifier's weights to the authors' names."""
    renamed = {
        k.removeprefix("backbone.").removeprefix("attention."): v for k, v in weights.items()
    }
    return {k: v.float().cpu() for k, v in renamed.items() if not is_counter(k)}
