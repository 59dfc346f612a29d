"""How well the three systems name emotions: the figures, and what they are taken of.

    Checkpoint + Dataset  ->  score_dataset     ->  each system's probabilities  ->  measure
    Checkpoint + stills   ->  score_made_clips  ->  Scores, kinds                ->  measure, weigh
    Checkpoint + stills   ->  score_mixed_clips ->  Scores, whose frames are the fewer  -> weigh
    Checkpoint + stills   ->  score_growing_clips  ->  Scores for each length    ->  measure

The network runs in float32 on faces as they are served.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor
from tqdm import tqdm

from networks.checkpoint import Checkpoint
from networks.checkpoint import build as build_served
from networks.entries import NETWORKS
from networks.preprocessing import FRAME_SIZE, LUMA, cells_of
from training.clips import ClipClassifier, Scores
from training.data import Dataset
from training.loop import generator, place
from training.spoil import CLEAR, KINDS, draw_kinds, make_clips, mixed_sources
from training.votes import NAMES, column_of, majority

SYSTEMS = ("score fusion", "self-attention", "FAN")
NUM_FRAMES = 8  # of a clip made from a still,
NUM_SPOILT = 4  # and how many of them are spoilt,
NUM_OTHERS = 3  # or, in others, show another emotion
NUM_BINS = 15  # of the calibration error
BATCH = 128  # frames
UNKNOWN = -1  # a label that is not known

# Of a batch's stills: which picture each frame of their clips shows, and how it is spoilt.
Draw = Callable[[Tensor, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Measured:
    """How well one system names the emotions of labelled clips.

    Args:
        confusion: (R, C) int: rows are true emotions, columns named ones; rows beyond the columns
            are emotions that the network does not have.
        calibration_error: mean distance of confidence and accuracy, over equally wide bins.
    """

    confusion: np.ndarray
    calibration_error: float

    @property
    def correct(self) -> int:
        """How many were named right."""
        return int(np.trace(self.confusion))

    @property
    def total(self) -> int:
        """How many there were."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Top-1, 0..1."""
        return self.correct / self.total

    @property
    def recalls(self) -> np.ndarray:
        """(C,): share of each emotion that was named right; NaN where there was none."""
        right = np.diag(self.confusion)
        totals = self.confusion.sum(1)[: len(right)]
        return np.divide(right, totals, out=np.full(len(right), np.nan), where=totals > 0)

    @property
    def balanced(self) -> float:
        """Mean recall of the emotions there were."""
        return float(np.nanmean(self.recalls))


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is taken to be right of each clip.

    Args:
        name: by whose word.
        labels: (N,) int64; UNKNOWN where it is not known.
        label_names: the network's emotions; then those that it does not have, which it cannot
            name right.
    """

    name: str
    labels: Tensor
    label_names: tuple[str, ...]

    @property
    def total(self) -> int:
        """Of how many it is known."""
        return int((self.labels != UNKNOWN).sum())


def truths_of(data: Dataset) -> tuple[Truth, ...]:
    """List the truths that the data have: FER+'s majority where people agree, and the label."""
    names = data.label_names
    own = Truth(name="label", labels=data.labels, label_names=names)
    if data.votes is None:
        return (own,)
    columns = [column_of(name) for name in names]
    others = [i for i in range(len(NAMES)) if i not in columns]
    place = {column: i for i, column in enumerate(columns) if column is not None}
    place |= {column: len(names) + i for i, column in enumerate(others)}
    agreed = majority(data.votes)
    labels = torch.full_like(data.labels, UNKNOWN)
    for column, label in place.items():
        labels[agreed == column] = label
    if not ((labels != UNKNOWN) & (labels < len(names))).any():
        return (own,)  # nothing can be named right
    voted = Truth(
        name="FER+ majority", labels=labels, label_names=(*names, *(NAMES[i] for i in others))
    )
    return voted, own


def measure(probabilities: Tensor, labels: Tensor) -> Measured:
    """Compare (N, C) probabilities with (N,) labels, but for those that are UNKNOWN.

    Labels of C and above are of emotions that the network does not have.
    """
    known = labels != UNKNOWN
    probabilities, labels = probabilities[known], labels[known]
    num_classes = probabilities.shape[1]
    num_rows = max(num_classes, int(labels.max()) + 1)
    confidence, named = probabilities.max(1)
    pairs = labels * num_classes + named
    confusion = torch.bincount(pairs, minlength=num_rows * num_classes)
    confusion = confusion.view(num_rows, num_classes)
    right = (named == labels).double()
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gaps = torch.zeros(NUM_BINS, dtype=torch.double).index_add_(
        0, bins.cpu(), (right - confidence.double()).cpu()
    )
    return Measured(confusion.cpu().numpy(), float(gaps.abs().sum() / len(labels)))


@dataclass(frozen=True)
class Weighed:
    """How well FAN's weights tell clear frames from spoilt ones.

    Args:
        clear: mean weight of a clear frame, where an even share is 1 / K.
        spoilt: mean weight of a spoilt one.
        auc: chance that, of one clear and one spoilt frame of any clips, the clear weighs more.
        by_kind: kind of spoiling -> its frames' mean weight.
    """

    clear: float
    spoilt: float
    auc: float
    by_kind: Mapping[str, float]


def weigh(weights: Tensor, kinds: Tensor) -> Weighed:
    """Compare (N, K) weights with (N, K) kinds."""
    clear = kinds == CLEAR
    return Weighed(
        weights[clear].mean().item(),
        weights[~clear].mean().item(),
        auc(weights[clear], weights[~clear]),
        {name: weights[kinds == i].mean().item() for i, name in enumerate(KINDS)},
    )


def auc(above: Tensor, below: Tensor) -> float:
    """Chance that a value of `above` exceeds one of `below`; ties count half."""
    below = below.sort().values
    less = torch.searchsorted(below, above).double()
    as_much = torch.searchsorted(below, above, right=True).double()
    return float(((less + as_much) / 2).mean() / len(below))


def build(checkpoint: Checkpoint, device: torch.device) -> ClipClassifier:
    """Fill a ClipClassifier with a checkpoint's weights, in evaluation mode."""
    model = ClipClassifier(len(checkpoint.labels))
    weights = {}
    for name in model.state_dict():
        source = name.removeprefix("backbone.").removeprefix("attention.")
        if source in checkpoint.state:
            weights[name] = checkpoint.state[source]
    model.load_state_dict(weights, strict=False)
    return place(model, device).eval()


def prepare(frames: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Bring (M, C, h, w) uint8 frames to what the network sees when they are served.

    The face is brought to the wire's size first, as a client does, and then to the network's.
    """
    faces = frames.float() / 255
    faces = F.interpolate(faces, (FRAME_SIZE, FRAME_SIZE), mode="bilinear", antialias=True)
    cells = cells_of(checkpoint.preprocessing.size).to(faces.device)
    return adapt(cells @ faces @ cells.T, checkpoint)


def adapt(faces: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Colour and standardise (..., C, S, S) float faces as the checkpoint says."""
    preprocessing = checkpoint.preprocessing
    if preprocessing.color == "gray" and faces.shape[-3] == 3:
        luma = torch.tensor(LUMA, device=faces.device).view(3, 1, 1)
        faces = (faces * luma).sum(-3, keepdim=True)
    if preprocessing.standardises:
        mean, std = (
            torch.tensor(v, device=faces.device).view(3, 1, 1)
            for v in (preprocessing.mean, preprocessing.std)
        )
        faces = (faces - mean) / std
    return faces


@torch.no_grad()
def score(model: ClipClassifier, faces: Tensor) -> Scores:
    """Score (B, K, C, S, S) prepared faces."""
    return model(faces)


def join(scores: Sequence[Scores]) -> Scores:
    """Put batches of clips of equal length together."""
    return Scores(*(torch.cat(parts) for parts in zip(*scores, strict=True)))


def score_stills(model: ClipClassifier, data: Dataset, checkpoint: Checkpoint) -> Scores:
    """Score every picture as a clip of one frame."""
    batches = tqdm(data.frames.split(BATCH), desc="stills", leave=False)
    return join([score(model, prepare(b, checkpoint)[:, None]) for b in batches])


@torch.no_grad()
def score_clips(model: ClipClassifier, data: Dataset, checkpoint: Checkpoint) -> Iterator[Scores]:
    """Score clips of any lengths, each with all its frames, in bounded memory."""
    for i in tqdm(range(len(data)), desc="clips", leave=False):
        chunks = [model.embed(prepare(c, checkpoint)) for c in data.clip(i).split(BATCH)]
        yield model.pool(torch.cat(chunks)[None])


@torch.no_grad()
def score_made_clips(
    model: ClipClassifier, data: Dataset, checkpoint: Checkpoint, seed: int
) -> tuple[Scores, Tensor]:
    """Make a clip of every still, spoil half of its frames and score it.

    Returns:
        the scores, and (N, K) what each frame was spoilt with.
    """
    scores, kinds = [], []
    for features, spoilt in embed_made_clips(model, data, checkpoint, seed, half_spoilt):
        scores.append(model.pool(features))
        kinds.append(spoilt)
    return join(scores), torch.cat(kinds)


@torch.no_grad()
def score_growing_clips(
    model: ClipClassifier, data: Dataset, checkpoint: Checkpoint, lengths: Sequence[int]
) -> dict[int, Scores]:
    """Make a clip of clear frames of every still; score its first frames, for each number asked."""
    if not lengths:
        return {}
    scores: dict[int, list[Scores]] = {length: [] for length in lengths}

    def clear(chosen: Tensor, _: Generator) -> tuple[Tensor, Tensor]:
        sources = chosen[:, None].repeat(1, max(lengths))
        return sources, torch.full_like(sources, CLEAR)

    for features, _ in embed_made_clips(model, data, checkpoint, 0, clear):
        for length, found in scores.items():
            found.append(model.pool(features[:, :length]))
    return {length: join(found) for length, found in scores.items()}


def half_spoilt(chosen: Tensor, draws: Generator) -> tuple[Tensor, Tensor]:
    """Clips of one face each, half of their frames spoilt: what the frames show, and how."""
    num_spoilt = torch.full_like(chosen, NUM_SPOILT)
    kinds = draw_kinds(len(chosen), NUM_FRAMES, num_spoilt, draws)
    return chosen[:, None].repeat(1, NUM_FRAMES), kinds


@torch.no_grad()
def score_mixed_clips(
    model: ClipClassifier, data: Dataset, checkpoint: Checkpoint, seed: int
) -> tuple[Scores, Tensor]:
    """Make a clip of every still: most frames of its emotion, some of another, all of them clear.

    Returns:
        the scores, and (N, K) bool: whether a frame is one of those few.
    """
    emotions = data.emotions()
    others = []

    def mixed(chosen: Tensor, draws: Generator) -> tuple[Tensor, Tensor]:
        num_others = torch.full_like(chosen, NUM_OTHERS)
        sources = mixed_sources(emotions, chosen, num_others, NUM_FRAMES, draws)
        others.append(emotions[sources] != emotions[chosen, None])
        return sources, torch.full_like(sources, CLEAR)

    embedded = embed_made_clips(model, data, checkpoint, seed, mixed)
    scores = join([model.pool(features) for features, _ in embedded])
    return scores, torch.cat(others)


@dataclass(frozen=True, kw_only=True)
class Minority:
    """What clear frames of a clip's rarer emotion weigh, beside those of its commoner one.

    Args:
        mean: of their weight to the mean weight of the commoner one's frames in their clip; NaN
            where there is no such frame.
        fifth: the 5th percentile of it.
    """

    mean: float
    fifth: float


def weigh_minority(weights: Tensor, others: Tensor) -> Minority:
    """Compare (N, K) weights with (N, K): whether a frame is of the rarer emotion."""
    common = (weights * ~others).sum(1, keepdim=True) / (~others).sum(1, keepdim=True)
    ratios = (weights / common)[others]
    if not len(ratios):  # the data have one emotion alone
        return Minority(mean=math.nan, fifth=math.nan)
    return Minority(mean=ratios.mean().item(), fifth=ratios.quantile(0.05).item())


@torch.no_grad()
def embed_made_clips(
    model: ClipClassifier, data: Dataset, checkpoint: Checkpoint, seed: int, draw: Draw
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make a clip of every still and embed its frames.

    Args:
        draw: given the stills that a batch's clips are made of, says what their frames show.

    Yields:
        (B, K, 512) features, and (B, K) what each frame was spoilt with.
    """
    device = data.frames.device
    for i, chosen in enumerate(
        tqdm(torch.arange(len(data)).split(BATCH // NUM_FRAMES), desc="clips", leave=False)
    ):
        draws = generator(device, seed, 3, i)
        chosen = chosen.to(device)
        sources, kinds = draw(chosen, draws)
        size = checkpoint.preprocessing.size
        clips = make_clips(data.frames, data.labels[chosen], sources, kinds, size, draws)
        faces = adapt(clips.faces, checkpoint).flatten(0, 1)
        features = torch.cat([model.embed(part) for part in faces.split(BATCH)])
        yield features.unflatten(0, clips.kinds.shape), clips.kinds


@torch.no_grad()
def score_frames(checkpoint: Checkpoint, data: Dataset) -> Tensor:
    """Score clips by a network that looks at single frames: (N, C) probabilities, averaged.

    The module is the one that is served, and sees what it is served.
    """
    (part,) = (p for p in build_served(checkpoint).values() if p.tensor == "frames")
    module = place(part.module, data.frames.device)
    frames = []
    for batch in tqdm(data.frames.split(BATCH), desc="frames", leave=False):
        frames.append(module(to_wire(batch)).frame_logits.softmax(1))
    every = torch.cat(frames)
    lengths = data.starts.diff().to(every.device)
    owners = torch.arange(len(data), device=every.device).repeat_interleave(lengths)
    sums = torch.zeros(len(data), every.shape[1], device=every.device)
    return sums.index_add_(0, owners, every) / lengths[:, None]


def to_wire(frames: Tensor) -> Tensor:
    """Bring (M, 1 or 3, h, w) uint8 frames to (M, 224, 224, 3) uint8, as a client sends them."""
    faces = F.interpolate(frames.float(), (FRAME_SIZE, FRAME_SIZE), mode="bilinear", antialias=True)
    return faces.round().clamp(0, 255).byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def score_dataset(checkpoint: Checkpoint, data: Dataset) -> dict[str, Tensor]:
    """Score stills as clips of one frame, and clips whole: each system's (N, C) probabilities."""
    if not NETWORKS[checkpoint.network].pools:
        return {SYSTEMS[0]: score_frames(checkpoint, data)}
    model = build(checkpoint, data.frames.device)
    if data.is_stills:
        each = [score_stills(model, data, checkpoint).probabilities()]
    else:
        each = [scores.probabilities() for scores in score_clips(model, data, checkpoint)]
    return {name: torch.cat([p[name] for p in each]) for name in systems_of(checkpoint)}


def systems_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Name the systems a checkpoint has the heads of; a frame classifier may be missing."""
    return SYSTEMS if "fc.weight" in checkpoint.state else SYSTEMS[1:]


def percent(value: float) -> str:
    """Write a share; a dash where nothing was there to take it of."""
    return "–" if np.isnan(value) else f"{100 * value:.2f} %"
