"""Stage one: the frame embedder, trained on still pictures with a classifier on top.

    Stills  ->  train  ->  embedder.pth.tar {'state_dict': ResNet-18's and fc's}

The file has the form of the authors' backbones (`Resnet18_FER+_pytorch.pth.tar`), and either kind
can start this stage or the next. For DAN, RAN and Deep-Emotion, which look at single frames, this
is the whole of training.
"""

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from base.files import write_whole
from networks.checkpoint import Embedder, embedder_weights, is_counter, load_state
from networks.dan import Dan
from networks.deep_emotion import DeepEmotion
from networks.ran import Ran
from networks.resnet import NUM_FEATURES, BasicBlock, ResNet18
from training.augment import Variation, mix_up, vary
from training.loop import Fit, Recipe, autocast, epoch_of, generator, seed_dropout


@dataclass(frozen=True)
class Phase:
    """Some epochs with pictures of one size: small ones first, as they cost least.

    Args:
        size: pixels of a side.
    """

    size: int
    epochs: float


class StillClassifier(nn.Module):
    """The frame embedder and a classifier of single frames."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = ResNet18()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(NUM_FEATURES, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock):
                # Every block begins as its skip branch alone, which trains sooner.
                nn.init.zeros_(module.bn2.weight)

    def forward(self, faces: Tensor) -> Tensor:
        """Classify (B, 1 or 3, H, W) float faces, 0..1: (B, classes) logits."""
        faces = faces.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.fc(self.dropout(self.backbone(faces)))

    def load_embedder(self, embedder: Embedder, label_names: Sequence[str]) -> None:
        """Take an embedder's weights, and its classifier where it has one of these labels."""
        load_embedder(self.backbone, self.fc, embedder, label_names)


def load_embedder(
    backbone: ResNet18, fc: nn.Linear, embedder: Embedder, label_names: Sequence[str]
) -> bool:
    """Fill a backbone, and its classifier where it has one of these labels, in whatever order.

    Returns:
        whether it had.
    """
    load_state(backbone, embedder_weights(embedder.state))
    fits = "fc.weight" in embedder.state and sorted(embedder.labels) == sorted(label_names)
    if fits:
        order = [embedder.labels.index(name) for name in label_names]
        fc.load_state_dict({k: embedder.state[f"fc.{k}"][order] for k in ("weight", "bias")})
    return fits


class StillNetwork(nn.Module):
    """DAN, RAN or Deep-Emotion over pictures that vary, not over faces as they are served."""

    def __init__(self, network: Dan | Ran | DeepEmotion) -> None:
        super().__init__()
        self.network = network

    def forward(self, faces: Tensor) -> Tensor:
        """Classify (B, 1 or 3, H, W) float faces, 0..1, of the size served: (B, classes) logits."""
        pixels = faces.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        x = self.network.normaliser.standardise(pixels).permute(0, 3, 1, 2)
        return self.network.classify(x.contiguous(memory_format=torch.channels_last))


@dataclass(frozen=True, kw_only=True)
class StillsRecipe:
    """How stage one trains.

    Args:
        phases: in their order.
        batch: pictures a step.
        smoothing: of the labels.
        mix: strength of mixup.
        variation: of the pictures.
        adam: rather than SGD with momentum.
        weight_decay: of convolutions and linear layers.
        sam: how far uphill a step takes its gradient, as in loop.Recipe.
        shift: added to the logits while they learn, one value a class: see `run.log_prior`.
    """

    phases: tuple[Phase, ...]
    batch: int = 64
    learning_rate: float = 0.02
    smoothing: float = 0.1
    mix: float = 0.2
    variation: Variation = Variation()  # noqa: RUF009 (frozen)
    seed: int = 0
    adam: bool = False
    weight_decay: float = 5e-4
    sam: float = 0.0
    shift: tuple[float, ...] = ()

    def steps(self, num_pictures: int) -> list[int]:
        """The steps of each phase."""
        return [round(phase.epochs * num_pictures / self.batch) for phase in self.phases]

    def size_at(self, step: int, num_pictures: int) -> int:
        """The pictures' side at a step."""
        for phase, steps in zip(self.phases, self.steps(num_pictures), strict=True):
            if step < steps:
                return phase.size
            step -= steps
        return self.phases[-1].size


def batch_at(step: int, num: int, batch: int, seed: int) -> Tensor:
    """Choose a step's pictures: every one comes once before any comes again."""
    start = step * batch
    chosen = []
    for epoch in range(start // num, (start + batch - 1) // num + 1):
        order = torch.randperm(num, generator=generator(torch.device("cpu"), seed, 0, epoch))
        chosen.append(order[max(0, start - epoch * num) : start + batch - epoch * num])
    return torch.cat(chosen)


def train(
    model: nn.Module,
    images: Tensor,
    targets: Callable[[], tuple[Tensor, Tensor]],
    recipe: StillsRecipe,
    folder: Path,
    identity: dict[str, Any],
    validation: tuple[Tensor, Tensor, int] | None = None,
) -> dict[str, Tensor]:
    """Train to the end, from where an earlier run in `folder` stopped.

    Args:
        images: (N, 1 or 3, h, w) uint8 on the device to train on.
        targets: gives (N, classes) float32, there too, each row a distribution, one-hot for a
            label, and (N,) weights of the pictures. Called where a step is left to do.
        validation: images, labels, -1 where none is known, and size: measured once an epoch, and
            never used.

    Returns:
        the averaged weights, named as in `model`.
    """
    num, device = len(images), images.device
    shift = torch.tensor(recipe.shift or 0.0, device=device)
    fit = Fit(
        model,
        Recipe(
            steps=sum(recipe.steps(num)),
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            seed=recipe.seed,
            adam=recipe.adam,
            sam=recipe.sam,
        ),
        folder,
        identity,
    )

    def loss_at(step: int) -> Tensor:
        draws = generator(device, recipe.seed, 1, step)
        chosen = batch_at(step, num, recipe.batch, recipe.seed).to(device)
        faces = vary(images[chosen], recipe.size_at(step, num), recipe.variation, draws)
        every, weights = targets()
        # A row's sum is its weight from here on, so that mixed pictures are weighed by what they
        # are made of.
        weighed = every[chosen] * weights[chosen, None]
        faces, wanted = mix_up(faces, weighed, recipe.mix, draws)
        seed_dropout(recipe.seed, step)
        with autocast(device):
            logits = model(faces)
        return weighed_loss(logits.float() + shift, wanted, recipe.smoothing)

    def figures_at(step: int) -> dict[str, float]:
        if validation is None or (step % epoch_of(num, recipe.batch) and step != fit.recipe.steps):
            return {}
        averaged = copy.deepcopy(model)
        averaged.load_state_dict(fit.averaged())
        # As common as in the data: what `shift` kept from the weights comes back.
        logits = classify(averaged, validation[0], validation[2]) + shift
        known = validation[1] >= 0
        accuracy = (logits.argmax(1) == validation[1])[known].float().mean().item()
        return {"validation": round(accuracy, 5)}

    fit.run(loss_at, figures_at)
    return fit.averaged()


def weighed_loss(logits: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of (B, C) logits with targets whose rows' sums are the pictures' weights."""
    weights = wanted.sum(1, keepdim=True)
    smooth = (1 - smoothing) * wanted + smoothing * weights / wanted.shape[1]
    return -(smooth * logits.log_softmax(1)).sum() / weights.sum().clamp(min=1e-6)


@torch.no_grad()
def classify(model: nn.Module, images: Tensor, size: int, batch: int = 256) -> Tensor:
    """Classify pictures as they are, one crop: (N, classes) float32 logits."""
    model.eval()
    answers = []
    for chunk in images.split(batch):
        faces = F.interpolate(chunk.float() / 255, (size, size), mode="bilinear", antialias=True)
        with autocast(images.device):
            answers.append(model(faces).float())
    return torch.cat(answers)


def as_embedder(
    weights: Mapping[str, Tensor], label_names: Sequence[str], natural: tuple[float, ...] = ()
) -> Embedder:
    """Rename a StillClassifier's weights to those of a backbone with its classifier `fc`."""
    renamed = {k.removeprefix("backbone."): v.float().cpu() for k, v in weights.items()}
    state = {k: v for k, v in renamed.items() if not is_counter(k)}
    return Embedder(state, tuple(label_names), natural)


def write_embedder(embedder: Embedder, path: Path) -> None:
    """Write the authors' backbone format; the labels of its classifier and their shares, too."""
    buffer = io.BytesIO()
    beside = {"labels": list(embedder.labels), "natural": list(embedder.natural)}
    torch.save({"state_dict": dict(embedder.state), **beside}, buffer)
    write_whole(path, buffer.getvalue())
