"""Measure a checkpoint on labelled faces, for the three systems of the paper's table.

    checkpoint + stills  ->  one frame each; clips made of them, half of their frames spoilt
    checkpoint + clips   ->  the clips, whole
    ->  OUT/report.md, OUT/confusion.png

`python -m training.evaluate` (`make evaluate`). The embedder runs as it is served: no test-time
augmentation, no second crop.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from tqdm import tqdm

from export.checkpoint import Checkpoint, add_arguments, read_embedder, read_from_arguments
from export.errors import ExportError
from export.fan import FRAME_SIZE, LUMA
from export.files import write_whole
from export.provenance import provenance
from training.clips import ClipClassifier, Scores
from training.data import Dataset, read_dataset
from training.loop import autocast, choose_device, generator, place
from training.spoil import CLEAR, KINDS, make_clips

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot

logger = logging.getLogger(__name__)

SYSTEMS = ("score fusion", "self-attention", "FAN")
STAGE_ONE = "score fusion, stage one's embedder"
NUM_FACES_BY_LENGTH = 300
NUM_FRAMES = 8  # of a clip made from a still,
NUM_SPOILT = 4  # and how many of them are spoilt
NUM_BINS = 15  # of the calibration error
BATCH = 128  # frames


@dataclass(frozen=True)
class Measured:
    """How well one system names the emotions of labelled clips.

    Args:
        confusion: (C, C) int: rows are true emotions, columns named ones.
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
        totals = self.confusion.sum(1)
        return np.divide(
            np.diag(self.confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0
        )

    @property
    def balanced(self) -> float:
        """Mean recall of the emotions there were."""
        return float(np.nanmean(self.recalls))


def measure(probabilities: Tensor, labels: Tensor) -> Measured:
    """Compare (N, C) probabilities with (N,) labels."""
    num_classes = probabilities.shape[1]
    confidence, named = probabilities.max(1)
    pairs = labels * num_classes + named
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
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
    return adapt(F.avg_pool2d(faces, FRAME_SIZE // checkpoint.preprocessing.size), checkpoint)


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
    with autocast(faces.device):
        return model(faces)


def join(scores: Sequence[Scores]) -> Scores:
    """Put batches of clips of equal length together."""
    return Scores(*(torch.cat(parts) for parts in zip(*scores, strict=True)))


def score_stills(model: ClipClassifier, data: Dataset, checkpoint: Checkpoint) -> Scores:
    """Score every picture as a clip of one frame."""
    batches = tqdm(data.frames.split(BATCH), desc="stills", leave=False)
    return join([score(model, prepare(b, checkpoint)[:, None]) for b in batches])


def score_made_clips(
    model: ClipClassifier,
    data: Dataset,
    checkpoint: Checkpoint,
    seed: int,
    num_frames: int = NUM_FRAMES,
    num_spoilt: int = NUM_SPOILT,
) -> tuple[Scores, Tensor]:
    """Make a clip of every still and score it.

    Returns:
        the scores, and (N, K) what each frame was spoilt with.
    """
    device = data.frames.device
    scores, kinds = [], []
    batches = torch.arange(len(data)).split(max(1, BATCH // num_frames))
    for i, chosen in enumerate(tqdm(batches, desc=f"clips, seed {seed}", leave=False)):
        clips = make_clips(
            data.frames,
            data.labels,
            chosen.to(device),
            num_frames,
            torch.full((len(chosen),), num_spoilt, device=device),
            checkpoint.preprocessing.size,
            data.neutral,
            generator(device, seed, 3, i),
        )
        scores.append(score(model, adapt(clips.faces, checkpoint)))
        kinds.append(clips.kinds)
    return join(scores), torch.cat(kinds)


def score_clips(model: ClipClassifier, data: Dataset, checkpoint: Checkpoint) -> Iterator[Scores]:
    """Score clips of any lengths, each with all its frames."""
    for i in tqdm(range(len(data)), desc="clips", leave=False):
        yield score(model, prepare(data.clip(i), checkpoint)[None])


def score_dataset(
    model: ClipClassifier, data: Dataset, checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], Tensor]:
    """Score stills as clips of one frame, and clips whole.

    Returns:
        each system's (N, C) probabilities, and the (N,) labels.
    """
    if data.is_stills:
        return score_stills(model, data, checkpoint).probabilities(), data.labels
    each = [scores.probabilities() for scores in score_clips(model, data, checkpoint)]
    return {name: torch.cat([p[name] for p in each]) for name in SYSTEMS}, data.labels


@dataclass(frozen=True)
class Report:
    """All that `python -m training.evaluate` measured.

    Args:
        plain: system -> measured on the data as they are: stills, or whole clips.
        spoilt: for each seed, system -> measured on clips made of stills; empty for real clips.
        weighed: for each seed, FAN's weights of those.
        lengths: number of frames -> FAN measured on clips of so many, all of them clear.
    """

    plain: Mapping[str, Measured]
    spoilt: Sequence[Mapping[str, Measured]]
    weighed: Sequence[Weighed]
    lengths: Mapping[int, Measured]


def evaluate(
    checkpoint: Checkpoint,
    data: Dataset,
    seeds: Sequence[int],
    lengths: Sequence[int] = (),
    embedder: Mapping[str, Tensor] | None = None,
) -> Report:
    """Measure the three systems; on stills also on clips made of them, once a seed.

    Args:
        data: on the device to compute on.
        lengths: of clips of clear frames to measure FAN on, with some of the faces.
        embedder: stage one's weights: its score fusion is measured beside, on the same clips.
    """
    device = data.frames.device
    model = build(checkpoint, device)
    stage_one = None
    if embedder is not None:
        state = {**checkpoint.state, **embedder}
        stage_one = build(replace(checkpoint, state=state), device)
    probabilities, labels = score_dataset(model, data, checkpoint)
    plain = {name: measure(probabilities[name], labels) for name in systems_of(checkpoint)}
    spoilt, weighed = [], []
    for seed in seeds if data.is_stills else ():
        scores, kinds = score_made_clips(model, data, checkpoint, seed)
        each = scores.probabilities()
        systems = {name: measure(each[name], labels) for name in systems_of(checkpoint)}
        if stage_one is not None:
            alone, _ = score_made_clips(stage_one, data, checkpoint, seed)
            systems = {STAGE_ONE: measure(alone.probabilities()[SYSTEMS[0]], labels), **systems}
        spoilt.append(systems)
        weighed.append(weigh(scores.weights, kinds))
    some = data.choose(np.random.default_rng(0).permutation(len(data))[:NUM_FACES_BY_LENGTH])
    by_length = {}
    for length in lengths if data.is_stills else ():
        scores, _ = score_made_clips(model, some, checkpoint, 0, length, 0)
        by_length[length] = measure(scores.probabilities()[SYSTEMS[-1]], some.labels)
    return Report(plain, spoilt, weighed, by_length)


def systems_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Name the systems a checkpoint has the heads of; a frame classifier may be missing."""
    return SYSTEMS if "fc.weight" in checkpoint.state else SYSTEMS[1:]


def percent(value: float) -> str:
    """Write a share."""
    return f"{100 * value:.2f} %"


def mean_and_spread(values: Sequence[float]) -> str:
    """Write shares' mean, and how far the seeds lie apart (standard deviation)."""
    if len(values) < 2:
        return percent(values[0])
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f} %"


def write_report(
    report: Report, checkpoint: Checkpoint, data: Dataset, source: Path, out: Path
) -> str:
    """Write report.md and confusion.png into `out`; give the report's text."""
    kind = "stills, one frame each" if data.is_stills else "clips, all their frames"
    lines = [
        f"# {source.name} on {data.name}",
        "",
        f"{len(data)} {kind}, one crop, no test-time augmentation. "
        + provenance("torch", "numpy")
        + ".",
        "",
        "| system | top-1 | mean recall | calibration error |",
        "|---|---|---|---|",
    ]
    for name, figures in report.plain.items():
        lines.append(
            f"| {name} | {percent(figures.accuracy)} ({figures.correct} / {figures.total}) | "
            f"{percent(figures.balanced)} | {percent(figures.calibration_error)} |"
        )
    lines += ["", f"Recall of {SYSTEMS[-1]}:", "", "| " + " | ".join(data.label_names) + " |"]
    lines.append("|" + "---|" * len(data.label_names))
    recalls = report.plain[SYSTEMS[-1]].recalls
    lines.append("| " + " | ".join(percent(r) for r in recalls) + " |")
    if report.spoilt:
        lines += describe_spoilt(report)
    if report.lengths:
        lines += describe_lengths(report)
    text = "\n".join(lines) + "\n"
    write_whole(out / "report.md", text.encode())
    draw_confusion(report.plain[SYSTEMS[-1]], data.label_names, out / "confusion.png")
    return text


def describe_spoilt(report: Report) -> list[str]:
    """Say how the systems fare on clips with spoilt frames, and what FAN's weights see."""
    seeds = len(report.spoilt)
    lines = [
        "",
        f"Clips of {NUM_FRAMES} frames made of each still, {NUM_SPOILT} of them spoilt "
        f"({', '.join(KINDS)}); {seeds} seeds, mean and standard deviation:",
        "",
        "| system | top-1 | FAN's lead, points |",
        "|---|---|---|",
    ]
    for name in report.spoilt[0]:
        accuracies = [each[name].accuracy for each in report.spoilt]
        lead = np.mean(
            [100 * (each[SYSTEMS[-1]].accuracy - each[name].accuracy) for each in report.spoilt]
        )
        lines.append(f"| {name} | {mean_and_spread(accuracies)} | {lead:+.2f} |")
    clear, spoilt, area = (
        float(np.mean([getattr(w, name) for w in report.weighed]))
        for name in ("clear", "spoilt", "auc")
    )
    kinds = ", ".join(
        f"{name} {np.mean([w.by_kind[name] for w in report.weighed]):.3f}" for name in KINDS
    )
    return [
        *lines,
        "",
        f"Mean weight of a frame (an even share is {1 / NUM_FRAMES:.3f}): clear {clear:.3f}, "
        f"spoilt {spoilt:.3f} ({spoilt / clear:.2f} of it); {kinds}. "
        f"AUC of the weight as a detector of clear frames: {area:.3f}.",
    ]


def describe_lengths(report: Report) -> list[str]:
    """Say how FAN fares as clear frames are added."""
    total = next(iter(report.lengths.values())).total
    return [
        "",
        f"Clips of clear frames alone, {total} faces:",
        "",
        "| frames | " + " | ".join(map(str, report.lengths)) + " |",
        "|---|" + "---|" * len(report.lengths),
        "| FAN | " + " | ".join(percent(m.accuracy) for m in report.lengths.values()) + " |",
    ]


def draw_confusion(measured: Measured, label_names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix as a PNG, each row as shares of a true emotion."""
    totals = measured.confusion.sum(1, keepdims=True)
    shares = measured.confusion / np.maximum(totals, 1)
    figure, axes = pyplot.subplots(figsize=(6.4, 5.6), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(label_names))
    axes.set(xlabel="named", ylabel="true", title=f"top-1 {percent(measured.accuracy)}")
    axes.set_xticks(ticks, label_names, rotation=45, ha="right")
    axes.set_yticks(ticks, [f"{n} ({t})" for n, t in zip(label_names, totals[:, 0], strict=True)])
    for row in ticks:
        for column in ticks:
            share = shares[row, column]
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="labelled faces: see training/data.py")
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/fan.safetensors"))
    parser.add_argument("--usage", default="PublicTest", help="rows of a CSV (default: PublicTest)")
    parser.add_argument("--out", type=Path, default=Path("build/evaluation"))
    parser.add_argument("--seeds", type=int, default=3, help="of the clips made of stills")
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="frames of clear clips")
    parser.add_argument("--embedder", type=Path, help="stage one's file, to compare with")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    add_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        checkpoint = read_from_arguments(args.checkpoint, args)
        data = read_dataset(args.data, checkpoint.labels, args.usage)
        embedder = read_embedder(args.embedder) if args.embedder else None
        device = choose_device(args.device)
        report = evaluate(checkpoint, data.to(device), range(args.seeds), args.lengths, embedder)
        print(write_report(report, checkpoint, data, args.checkpoint, args.out))
    except ExportError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(f"{args.out / 'report.md'}  {args.out / 'confusion.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
