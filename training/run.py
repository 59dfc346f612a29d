"""Both stages of training, one after the other.

Dataset  ->  stills.train  ->  Embedder  ->  clips.train  ->  Checkpoint
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from export.checkpoint import Checkpoint, Embedder
from export.fan import Preprocessing
from training import clips, stills
from training.augment import Variation, vary
from training.clips import ClipClassifier, ClipsRecipe
from training.data import Dataset
from training.loop import Fit, epoch_of, place
from training.measure import measure, percent, score_dataset
from training.spoil import CLEAR, Clips, make_clips
from training.stills import Phase, StillClassifier, StillsRecipe, batch_at

logger = logging.getLogger(__name__)

FRAMES_PER_CLIP = 3  # one of each third of a clip, as the paper trains

EachEpoch = Callable[[int, Checkpoint], dict[str, float]]


@dataclass(frozen=True)
class Options:
    """What a user chooses.

    Args:
        out: folder of the run.
        size: pixels to which the graph brings a face before the first convolution.
        phases: stage one's; without any, stage two starts from `initial`.
        clip_epochs: stage two's.
        vary: how far stage one's pictures vary, 1 as Variation says.
        mix: strength of stage one's mixup.
        seed: of all that is drawn.
        initial: weights to start from, if any.
    """

    out: Path
    size: int
    phases: tuple[Phase, ...]
    clip_epochs: float
    seed: int
    initial: Embedder | None
    vary: float = 1.0
    mix: float = 0.2


def train(
    data: Dataset,
    validation: Dataset | None,
    options: Options,
    each_epoch: EachEpoch | None = None,
) -> Checkpoint:
    """Run both stages.

    Args:
        data: on the device to train on.
        validation: measured on as training goes, never learnt from or chosen by.
        each_epoch: given the number and what stage two has after each of its epochs; the figures
            it gives go into the log.
    """
    embedder = options.initial
    if options.phases:
        embedder = train_stills(data, validation, options)
    checkpoint = train_clips(data, validation, embedder, options, each_epoch)
    if validation is None:
        return checkpoint
    figures = ", ".join(f"{k} {percent(v)}" for k, v in accuracies(checkpoint, validation).items())
    found = f"top-1 on {validation.name} ({len(validation)}): {figures}"
    return replace(checkpoint, notes={**checkpoint.notes, "measured": found})


def accuracies(checkpoint: Checkpoint, validation: Dataset) -> dict[str, float]:
    """Top-1 of each system, 0..1."""
    probabilities = score_dataset(checkpoint, validation)
    return {name: measure(p, validation.labels).accuracy for name, p in probabilities.items()}


def train_stills(data: Dataset, validation: Dataset | None, options: Options) -> Embedder:
    """Stage one; every frame of a clip is a still of its clip's label."""
    torch.manual_seed(options.seed)
    model = StillClassifier(len(data.label_names))
    if options.initial is not None:
        model.load_embedder(options.initial, data.label_names)
    variation = Variation().scaled(options.vary)
    recipe = StillsRecipe(options.phases, mix=options.mix, variation=variation, seed=options.seed)
    held_out = None
    if validation is not None:
        held_out = (validation.frames, validation.frame_labels(), options.size)
    weights = stills.train(
        place(model, data.frames.device),
        data.frames,
        data.frame_labels(),
        recipe,
        options.out / "stills",
        identity(data, options, options.initial, recipe),
        held_out,
    )
    embedder = stills.as_embedder(weights, data.label_names)
    path = options.out / "stills" / "embedder.pth.tar"
    stills.write_embedder(embedder, path)
    logger.info("stage one: %s", path)
    return embedder


def train_clips(
    data: Dataset,
    validation: Dataset | None,
    embedder: Embedder | None,
    options: Options,
    each_epoch: EachEpoch | None = None,
) -> Checkpoint:
    """Stage two."""
    torch.manual_seed(options.seed)
    model = ClipClassifier(len(data.label_names))
    if embedder is not None:
        model.load_embedder(embedder, data.label_names)
    epoch = epoch_of(len(data), ClipsRecipe.batch)
    recipe = ClipsRecipe(round(options.clip_epochs * epoch), epoch, seed=options.seed)
    notes = notes_on(data, options)

    def checkpoint_of(fit: Fit) -> Checkpoint:
        preprocessing = Preprocessing("gray" if data.is_gray else "rgb", size=options.size)
        made = {**notes, "made": "; ".join(fit.made)}
        return Checkpoint(
            clips.fan_state(fit.averaged()), data.label_names, preprocessing, notes=made
        )

    def figures_of(number: int, fit: Fit) -> dict[str, float]:
        checkpoint = checkpoint_of(fit)
        figures = each_epoch(number, checkpoint) if each_epoch else {}
        if validation is not None:
            figures["validation"] = round(accuracies(checkpoint, validation)["FAN"], 5)
        return figures

    fit = clips.train(
        place(model, data.frames.device),
        clip_source(data, recipe, options.size),
        recipe,
        options.out / "clips",
        identity(data, options, embedder, recipe),
        figures_of,
    )
    return checkpoint_of(fit)


def identity(
    data: Dataset, options: Options, initial: Embedder | None, recipe: object
) -> dict[str, str]:
    """What decides a stage's result beside its code: a saved state of another is not continued."""
    return {
        "data": fingerprint(data),
        "labels": " ".join(data.label_names),
        "size": str(options.size),
        "recipe": repr(recipe),
        "first weights": digest(initial),
    }


def notes_on(data: Dataset, options: Options) -> dict[str, str]:
    """What a checkpoint's file says of its origin."""
    phases = ",".join(f"{p.size}x{p.epochs:g}" for p in options.phases)
    return {
        "source": "trained by `python -m training`",
        "data": f"{data.name}: {len(data)} clips, {len(data.frames)} frames, {fingerprint(data)}",
        "recipe": f"phases {phases or 'none'}, clip epochs {options.clip_epochs:g}, "
        f"vary {options.vary:g}, mix {options.mix:g}, size {options.size}, seed {options.seed}, "
        f"from weights {digest(options.initial)}",
    }


def clip_source(data: Dataset, recipe: ClipsRecipe, size: int) -> Callable[[int, Generator], Clips]:
    """Say where a step's clips come from: made of stills, or taken from real clips."""

    def choose(step: int) -> Tensor:
        return batch_at(step, len(data), recipe.batch, recipe.seed)

    def made(step: int, draws: Generator) -> Clips:
        chosen = choose(step).to(data.frames.device)
        num_spoilt = torch.randint(
            FRAMES_PER_CLIP, (len(chosen),), generator=draws, device=chosen.device
        )
        return make_clips(
            data.frames, data.labels, chosen, FRAMES_PER_CLIP, num_spoilt, size, data.neutral, draws
        )

    def taken(step: int, draws: Generator) -> Clips:
        return take_clips(data, choose(step), size, draws)

    return made if data.is_stills else taken


def take_clips(
    data: Dataset,
    chosen: Tensor,
    size: int,
    draws: Generator,
    variation: Variation = Variation(),  # noqa: B008 (frozen)
) -> Clips:
    """Take one random frame of each third of each chosen clip, each varied on its own.

    Args:
        chosen: (B,) int64 indices of clips.
    """
    first, last = data.starts[chosen], data.starts[chosen + 1]
    thirds = torch.arange(FRAMES_PER_CLIP)
    within = torch.rand(len(chosen), FRAMES_PER_CLIP, generator=draws, device=draws.device).cpu()
    index = first[:, None] + ((thirds + within) / FRAMES_PER_CLIP * (last - first)[:, None]).long()
    index = torch.minimum(index, last[:, None] - 1)
    device = data.frames.device
    faces = vary(data.frames[index.flatten().to(device)], size, variation, draws)
    kinds = torch.full(index.shape, CLEAR, device=device)
    return Clips(faces.unflatten(0, index.shape), data.labels[chosen.to(device)], kinds)


def fingerprint(data: Dataset) -> str:
    """Name data by a hash of their pixels and labels."""
    content = hashlib.sha256()
    for tensor in (data.frames, data.starts, data.labels):
        content.update(tensor.cpu().numpy().data)
    return content.hexdigest()[:16]


def digest(embedder: Embedder | None) -> str:
    """Name weights by a hash."""
    if embedder is None:
        return "none"
    content = hashlib.sha256(" ".join(embedder.labels).encode())
    for name in sorted(embedder.state):
        content.update(embedder.state[name].contiguous().numpy().data)
    return content.hexdigest()[:16]
