"""Both stages of training, one after the other.

Dataset  ->  stills.train  ->  Embedder  (->  relearn)  ->  clips.train  ->  Checkpoint
"""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from networks.checkpoint import Checkpoint, Embedder, embedder_weights, is_counter, load_state
from networks.entries import NETWORKS
from networks.preprocessing import Preprocessing
from networks.prior import with_prior
from training import TrainingError, clips, stills
from training.attention import EMBED_BATCH, round_weights, train_attention
from training.augment import Variation, vary
from training.classifier import relearn
from training.clips import TOLD_ATTENTION_FACTOR, ClipClassifier, ClipsRecipe
from training.data import Dataset
from training.distill import softened
from training.loop import Fit, epoch_of, place
from training.measure import measure, percent, score_dataset, truths_of
from training.spoil import CLEAR, MIXED_SHARE, Clips, draw_kinds, make_clips, mixed_sources
from training.stills import Phase, StillClassifier, StillNetwork, StillsRecipe, batch_at

logger = logging.getLogger(__name__)

FRAMES_PER_CLIP = 3  # one of each third of a real clip, as the paper trains
# Of a clip made of a still there are as many as wanted. From three frames, beta hardly learns to
# tell a face by the others: on frozen features six brought its AUC from 0.94 to 0.97.
FRAMES_PER_MADE_CLIP = 6
COMMON = 0.1  # the share from which on stage one shows an emotion's pictures once an epoch
HEADS_FIRST = 0.25  # of the steps on real clips, behind an embedder that is trained already

EachEpoch = Callable[[int, Checkpoint], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user chooses.

    Args:
        out: folder of the run.
        size: pixels to which the graph brings a face before the first convolution.
        phases: stage one's; without any, stage two starts from `initial`.
        clip_epochs: stage two's.
        vary: how far stage one's pictures and real clips' frames vary, 1 as Variation says.
        mix: strength of stage one's mixup.
        learning_rate: stage one's, at the top of its schedule; without any, the network's own.
        teachers: networks from whose answers stage one learns beside the labels.
        sam: how far uphill stage one takes its gradients; 0 for where the weights stand.
        balance: how much of the emotions' shares the weights are spared to learn, 0 to 1.
        seed: of all that is drawn.
        initial: weights to start from, if any.
        others: faces of the same emotions; the classifier of single frames alone learns them.
        others_times: how much each of their frames counts, a still that all voted on being 1.
    """

    out: Path
    size: int
    phases: tuple[Phase, ...]
    clip_epochs: float
    seed: int
    initial: Embedder | None
    vary: float = 1.0
    mix: float = 0.2
    learning_rate: float | None = None
    teachers: tuple[Checkpoint, ...] = ()
    sam: float = 0.0
    balance: float = 1.0
    others: Dataset | None = None
    others_times: float = 30.0


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
    if options.teachers and not options.phases:
        raise TrainingError("--teachers: only stage one learns from them, and --phases is empty")
    if options.learning_rate is not None and not options.phases:
        raise TrainingError("--learning-rate: it is stage one's, and --phases is empty")
    if options.sam and not options.phases:
        raise TrainingError("--sam: it is stage one's, and --phases is empty")
    if options.others is not None and not data.is_stills:
        raise TrainingError(
            f"--also: {data.name} is of clips, and all of the network learns from those; expected "
            "stills, behind which the classifier learns alone (the clips may be --also's)"
        )
    if options.phases:
        embedder = train_stills(data, validation, options)
    return with_figures(train_clips(data, validation, embedder, options, each_epoch), validation)


def with_figures(checkpoint: Checkpoint, validation: Dataset | None) -> Checkpoint:
    """Note in a checkpoint what it reaches, with its prior."""
    if validation is None:
        return checkpoint
    truth = truths_of(validation)[0]
    figures = ", ".join(f"{k} {percent(v)}" for k, v in accuracies(checkpoint, validation).items())
    found = f"top-1 on {validation.name} ({truth.name}, {truth.total}): {figures}"
    return replace(checkpoint, notes={**checkpoint.notes, "measured": found})


def accuracies(checkpoint: Checkpoint, validation: Dataset) -> dict[str, float]:
    """Top-1 of each system by the data's first truth, 0..1; with the checkpoint's prior."""
    probabilities = score_dataset(with_prior(checkpoint), validation)
    truth = truths_of(validation)[0]
    return {name: measure(p, truth.labels).accuracy for name, p in probabilities.items()}


def train_stills(data: Dataset, validation: Dataset | None, options: Options) -> Embedder:
    """Stage one."""
    torch.manual_seed(options.seed)
    model = StillClassifier(len(data.label_names))
    if options.initial is not None:
        model.load_embedder(options.initial, data.label_names)
    weights = fit_stills(model, data, validation, options, "stills", recipe_of(data, options))
    embedder = stills.as_embedder(weights, data.label_names, natural_of(data, options))
    path = options.out / "stills" / "embedder.pth.tar"
    stills.write_embedder(embedder, path)
    logger.info("stage one: %s", path)
    return embedder


def train_network(
    name: str, data: Dataset, validation: Dataset | None, options: Options
) -> Checkpoint:
    """Train a network that looks at single frames; from the embedder in `options`, if it has one.

    Args:
        name: of a network whose trainer is "stills".

    Raises:
        TrainingError: for options that the network has no use for.
    """
    if not options.phases:
        raise TrainingError(f"--phases is empty: nothing would be trained of {name}")
    if options.others is not None:
        raise TrainingError(f"--also: expected --model fan; nothing of {name} learns from it")
    entry = NETWORKS[name]
    if len(entry.sizes) == 1:
        (size,) = entry.sizes
        if any(phase.size != size for phase in options.phases):
            raise TrainingError(
                f"--phases {', '.join(str(p.size) for p in options.phases)} pixels: {entry.title} "
                f"sees {size} and nothing else; expected {size}x<epochs>"
            )
        options = replace(options, size=size)
    rate = options.learning_rate or entry.recipe.learning_rate
    options = replace(options, learning_rate=rate)
    torch.manual_seed(options.seed)
    recipe = recipe_of(data, options)
    if entry.recipe.adam:
        recipe = replace(recipe, adam=True, weight_decay=0.0)
    preprocessing = preprocessing_of(data, options)
    if len(entry.sizes) == 1:
        preprocessing = entry.preprocessing
    parts = entry.parts(len(data.label_names), entry.variants[0], preprocessing)
    network: Any = parts[0].module
    if options.initial is not None:
        if not hasattr(network, "backbone"):
            raise TrainingError(f"--init is a ResNet-18; {entry.title} has none")
        load_state(network.backbone, embedder_weights(options.initial.state))
    weights = fit_stills(StillNetwork(network), data, validation, options, name, recipe)
    renamed = {
        k.removeprefix("network.").removeprefix("backbone."): v.float().cpu()
        for k, v in weights.items()
        if not is_counter(k)
    }
    notes = notes_on(data, options)
    checkpoint = Checkpoint(
        state=renamed,
        labels=data.label_names,
        preprocessing=preprocessing,
        notes=notes,
        network=name,
        natural=natural_of(data, options),
    )
    return with_figures(checkpoint, validation)


def recipe_of(data: Dataset, options: Options) -> StillsRecipe:
    """How stills are learnt from."""
    variation = Variation().scaled(options.vary)
    recipe = StillsRecipe(
        phases=options.phases,
        mix=options.mix,
        variation=variation,
        seed=options.seed,
        sam=options.sam,
        shift=log_prior(data.repeat_rare(COMMON), options.balance),
    )
    if options.learning_rate is not None:
        recipe = replace(recipe, learning_rate=options.learning_rate)
    # What teachers and voters say is smooth already.
    smooth = bool(options.teachers) or data.votes is not None
    return replace(recipe, smoothing=0.0) if smooth else recipe


def natural_of(data: Dataset, options: Options) -> tuple[float, ...]:
    """The shares that were kept apart from the weights: part of them, if so balanced.

    By votes, where there are any, whatever part the labels had in what was learnt.
    """
    kept = [math.exp(x) for x in log_prior(data.by_votes(), options.balance)]
    return tuple(share / sum(kept) for share in kept) if options.balance else ()


def log_prior(data: Dataset, balance: float) -> tuple[float, ...]:
    """What is added to the logits while they learn, so that rare emotions do not pay.

    The logits then need not say how common an emotion is in the data: they are those of a world
    in which all are as common, and `export --prior` adds any other's.

    Args:
        balance: 1 for all of the prior, 0 for none.

    Source: Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021.
    """
    rarest = 1 / (10 * len(data))  # of an emotion that the data do not have
    return tuple(balance * math.log(max(share, rarest)) for share in data.prior())


def fit_stills(
    model: nn.Module,
    data: Dataset,
    validation: Dataset | None,
    options: Options,
    folder: str,
    recipe: StillsRecipe,
) -> dict[str, Tensor]:
    """Train on stills; every frame of a clip is a still of its clip's label."""
    data = data.repeat_rare(COMMON)
    held_out = None
    if validation is not None:
        truth = validation.per_frame(truths_of(validation)[0].labels)
        held_out = (validation.frames, truth, options.size)

    @cache
    def targets() -> tuple[Tensor, Tensor]:
        wanted, weights = map(data.per_frame, data.targets())
        return softened(wanted, data, options.teachers) if options.teachers else wanted, weights

    return stills.train(
        place(model, data.frames.device),
        data.frames,
        targets,
        recipe,
        options.out / folder,
        identity(data, options, options.initial, vars(recipe)),
        held_out,
    )


def train_clips(
    data: Dataset,
    validation: Dataset | None,
    embedder: Embedder | None,
    options: Options,
    each_epoch: EachEpoch | None = None,
) -> Checkpoint:
    """Stage two."""
    torch.manual_seed(options.seed)
    known = embedder is not None
    model = ClipClassifier(len(data.label_names), keep_statistics=known and data.is_stills)
    classifies = embedder is not None and model.load_embedder(embedder, data.label_names)
    epoch = epoch_of(len(data), ClipsRecipe.batch)
    recipe = ClipsRecipe(
        steps=round(options.clip_epochs * epoch),
        epoch=epoch,
        seed=options.seed,
        shift=log_prior(data, options.balance),
    )
    natural = natural_of(data, options)
    if data.is_stills:
        recipe = replace(recipe, attention_factor=TOLD_ATTENTION_FACTOR)
    if known:
        recipe = replace(recipe, heads_first=HEADS_FIRST)
    notes = notes_on(data, options)

    def checkpoint_of(weights: Mapping[str, Tensor], fit: Fit) -> Checkpoint:
        made = {**notes, "made": "; ".join(fit.made)}
        state = clips.fan_state(weights)
        return Checkpoint(
            state=state,
            labels=data.label_names,
            preprocessing=preprocessing_of(data, options),
            notes=made,
            natural=natural,
        )

    def figures_of(number: int, fit: Fit) -> dict[str, float]:
        checkpoint = checkpoint_of(fit.averaged(), fit)
        figures = each_epoch(number, checkpoint) if each_epoch else {}
        if validation is not None:
            figures["validation"] = round(accuracies(checkpoint, validation)["FAN"], 5)
        return figures

    place(model, data.frames.device)
    folder = options.out / "clips"
    if data.is_stills and classifies and embedder is not None:
        # The heads learn from its classifier.
        shares = dict(zip(embedder.labels, embedder.natural, strict=False))
        natural = tuple(shares[name] for name in data.label_names) if shares else ()
        round_weights(model.backbone, is_gray=data.is_gray)
        if options.others is not None:
            others = options.others.gray() if data.is_gray else options.others
            relearn(model, data, others, options.others_times, options.size, options.balance)
        fit = train_attention(
            model,
            clip_source(data, EMBED_BATCH, options),
            max(EMBED_BATCH, round(options.clip_epochs * len(data))),
            data.neutral,
            options.seed,
            folder,
            identity(data, options, embedder, {"stage": "attention"}),
        )
        return checkpoint_of(model.state_dict(), fit)
    fit = clips.train(
        model,
        clip_source(data, recipe.batch, options),
        recipe,
        folder,
        identity(data, options, embedder, vars(recipe)),
        figures_of,
    )
    return checkpoint_of(fit.averaged(), fit)


def preprocessing_of(data: Dataset, options: Options) -> Preprocessing:
    """What weights that learn from these pictures, as they are, expect."""
    return Preprocessing("gray" if data.is_gray else "rgb", size=options.size)


def identity(
    data: Dataset, options: Options, initial: Embedder | None, settings: Mapping[str, object]
) -> dict[str, str]:
    """What decides a stage's result beside its code: a saved state of another is not continued."""
    return {
        "data": fingerprint(data),
        "labels": " ".join(data.label_names),
        "size": str(options.size),
        "vary": f"{options.vary:g}",
        "label share": f"{data.label_share:g}",
        "also": f"{options.others_times:g} x {fingerprint(options.others)}"
        if options.others
        else "none",
        **{f"recipe's {name}": repr(value) for name, value in settings.items()},
        "first weights": digest(initial),
        **{
            f"teacher {i}": f"{t.network} {t.variant} {t.preprocessing} {digest(t)}"
            for i, t in enumerate(options.teachers, 1)
        },
    }


def notes_on(data: Dataset, options: Options) -> dict[str, str]:
    """What a checkpoint's file says of its origin."""
    others = options.others
    phases = ",".join(f"{p.size}x{p.epochs:g}" for p in options.phases)
    return {
        "source": "trained by `videofer train`",
        "data": told_of(data),
        **({"also": f"{options.others_times:g} x {told_of(others)}"} if others else {}),
        "recipe": f"phases {phases or 'none'}, clip epochs {options.clip_epochs:g}, "
        f"vary {options.vary:g}, mix {options.mix:g}, size {options.size}, seed {options.seed}, "
        f"learning rate {options.learning_rate or 'usual'}, sam {options.sam:g}, "
        f"targets {'labels' if data.votes is None else 'votes'}, "
        f"label share {data.label_share:g}, balance {options.balance:g}, "
        f"from weights {digest(options.initial)}, "
        f"teachers {', '.join(map(digest, options.teachers)) or 'none'}",
    }


def told_of(data: Dataset) -> str:
    """Say what some data are."""
    return f"{data.name}: {len(data)} clips, {len(data.frames)} frames, {fingerprint(data)}"


def clip_source(data: Dataset, batch: int, options: Options) -> Callable[[int, Generator], Clips]:
    """Say where a step's clips come from: made of stills, or taken from real clips."""
    size = options.size

    def choose(step: int) -> Tensor:
        return batch_at(step, len(data), batch, options.seed)

    emotions = data.emotions()

    def made(step: int, draws: Generator) -> Clips:
        chosen = choose(step).to(data.frames.device)
        sources, kinds = draw_clips(emotions, chosen, draws)
        return make_clips(data.frames, emotions[chosen], sources, kinds, size, draws)

    def taken(step: int, draws: Generator) -> Clips:
        return take_clips(data, choose(step), size, draws, Variation().scaled(options.vary))

    return made if data.is_stills else taken


def draw_clips(emotions: Tensor, chosen: Tensor, draws: Generator) -> tuple[Tensor, Tensor]:
    """Draw what clips made of stills show, to learn from.

    Args:
        emotions: (N,) of all pictures.
        chosen: (B,) indices of the faces that they are made of.

    Returns:
        sources (B, K), the picture of each frame; kinds (B, K), what it is spoilt with. Up to half
        of a clip's frames show another emotion; two are clear at least.
    """
    num, frames, device = len(chosen), FRAMES_PER_MADE_CLIP, chosen.device
    num_spoilt = torch.randint(frames - 1, (num,), generator=draws, device=device)
    num_others = 1 + torch.randint(frames // 2, (num,), generator=draws, device=device)
    num_others *= torch.rand(num, generator=draws, device=device) < MIXED_SHARE
    sources = mixed_sources(emotions, chosen, num_others, frames, draws)
    return sources, draw_kinds(num, frames, num_spoilt, draws)


def take_clips(
    data: Dataset,
    chosen: Tensor,
    size: int,
    draws: Generator,
    variation: Variation,
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
    said = [data.labels] if data.votes is None else [data.labels, data.votes]
    for tensor in (data.frames, data.starts, *said):
        content.update(tensor.cpu().numpy().data)
    return content.hexdigest()[:16]


def digest(weights: Embedder | Checkpoint | None) -> str:
    """Name weights by a hash."""
    if weights is None:
        return "none"
    content = hashlib.sha256(" ".join(weights.labels).encode())
    for name in sorted(weights.state):
        content.update(weights.state[name].contiguous().numpy().data)
    return content.hexdigest()[:16]
