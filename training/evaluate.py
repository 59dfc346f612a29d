"""Measure a checkpoint on labelled faces, for the three systems of the paper's table.

    checkpoint + stills  ->  one frame each; clips made of them, half of their frames spoilt
    checkpoint + clips   ->  the clips, whole
    ->  OUT/report.md, OUT/confusion.png

`videofer evaluate`. The network runs in float32 on faces as they are
served: no test-time augmentation, no second crop.
"""

import argparse
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from base.command import make_parser
from base.files import write_whole
from base.provenance import provenance
from networks.checkpoint import (
    Checkpoint,
    Embedder,
    add_arguments,
    read_checkpoint,
    read_embedder,
    source_of,
)
from networks.entries import NETWORKS
from networks.prior import with_prior, words_of
from training import TrainingError
from training.clips import ClipClassifier, Scores
from training.data import Dataset, read_dataset
from training.hard import HARD, harden
from training.loop import choose_device, place
from training.measure import (
    NUM_FRAMES,
    NUM_OTHERS,
    NUM_SPOILT,
    SYSTEMS,
    UNKNOWN,
    Measured,
    Minority,
    Truth,
    Weighed,
    build,
    measure,
    percent,
    score_dataset,
    score_growing_clips,
    score_made_clips,
    score_mixed_clips,
    systems_of,
    truths_of,
    weigh,
    weigh_minority,
)
from training.options import USAGES, add_device, run_command, whole
from training.spoil import KINDS
from training.stills import load_embedder

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot

STAGE_ONE = "score fusion, stage one's embedder"
NUM_FACES_BY_LENGTH = 300


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Every system held against one truth.

    Args:
        truth: what is taken to be right.
        systems: name -> measured on the data as they are: stills, or whole clips.
    """

    truth: Truth
    systems: Mapping[str, Measured]


@dataclass(frozen=True, kw_only=True)
class MadeClips:
    """What was measured on clips made of stills, by the data's first truth.

    Args:
        spoilt: for each seed, system -> measured where half of the frames are spoilt.
        weighed: for each seed, the served system's weights of those.
        minority: for each seed, its weights where some clear frames show another emotion.
        lengths: number of frames -> the served system on so many of a clip, all of them clear.
    """

    spoilt: Sequence[Mapping[str, Measured]]
    weighed: Sequence[Weighed]
    minority: Sequence[Minority]
    lengths: Mapping[int, Measured]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that `videofer evaluate` measured.

    Args:
        served: the system that the checkpoint's variant serves.
        judged: by each truth that the data have.
        made: on clips made of stills; None for real clips, and for networks of single frames.
    """

    served: str
    judged: Sequence[Judged]
    made: MadeClips | None = None


def evaluate(
    checkpoint: Checkpoint,
    data: Dataset,
    seeds: Sequence[int],
    lengths: Sequence[int] = (),
    embedder: Embedder | None = None,
) -> Report:
    """Measure the three systems; on stills also on clips made of them, once a seed.

    Args:
        data: on the device to compute on, numbered as the checkpoint's labels are.
        lengths: how many frames of clips of clear ones to measure on, with some of the faces.
        embedder: of stage one: its score fusion is measured beside, on the same clips.

    Raises:
        ExportError: for an embedder without a classifier of these labels.
    """
    served = SYSTEMS[1] if checkpoint.variant == "self" else SYSTEMS[2]
    probabilities = score_dataset(checkpoint, data)
    judged = [
        Judged(
            truth=truth,
            systems={name: measure(p, truth.labels) for name, p in probabilities.items()},
        )
        for truth in truths_of(data)
    ]
    if not NETWORKS[checkpoint.network].pools:
        if lengths or embedder is not None:
            raise TrainingError(
                "--lengths and --embedder are of FAN's clips; "
                f"{checkpoint.network} looks at single frames"
            )
        return Report(served=SYSTEMS[0], judged=judged)  # it has score fusion and no other
    if not data.is_stills:
        return Report(served=served, judged=judged)
    made = measure_made_clips(checkpoint, data, served, seeds, lengths, embedder)
    return Report(served=served, judged=judged, made=made)


def measure_made_clips(
    checkpoint: Checkpoint,
    data: Dataset,
    served: str,
    seeds: Sequence[int],
    lengths: Sequence[int],
    embedder: Embedder | None,
) -> MadeClips:
    """Measure on clips made of the stills whose emotion is known, once a seed."""
    first = truths_of(data)[0]
    known = (first.labels != UNKNOWN) & (first.labels < len(data.label_names))
    data = data.choose(known.nonzero()[:, 0].cpu().numpy())
    labels = first.labels[known]
    model = build(checkpoint, data.frames.device)
    stage_one = None if embedder is None else build_stage_one(checkpoint, embedder, data)

    def weights_of(scores: Scores) -> Tensor:
        return scores.self_weights if served == SYSTEMS[1] else scores.weights

    spoilt, weighed, minority = [], [], []
    for seed in seeds:
        scores, kinds = score_made_clips(model, data, checkpoint, seed)
        each = scores.probabilities()
        systems = {name: measure(each[name], labels) for name in systems_of(checkpoint)}
        if stage_one is not None:
            alone, _ = score_made_clips(stage_one, data, checkpoint, seed)
            systems = {STAGE_ONE: measure(alone.probabilities()[SYSTEMS[0]], labels), **systems}
        spoilt.append(systems)
        weighed.append(weigh(weights_of(scores), kinds))
        mixed, others = score_mixed_clips(model, data, checkpoint, seed)
        minority.append(weigh_minority(weights_of(mixed), others))
    chosen = np.random.default_rng(0).permutation(len(data))[:NUM_FACES_BY_LENGTH]
    some, known_labels = data.choose(chosen), labels[torch.from_numpy(chosen)]
    by_length = {
        length: measure(scores.probabilities()[served], known_labels)
        for length, scores in score_growing_clips(model, some, checkpoint, lengths).items()
    }
    return MadeClips(spoilt=spoilt, weighed=weighed, minority=minority, lengths=by_length)


def build_stage_one(checkpoint: Checkpoint, embedder: Embedder, data: Dataset) -> ClipClassifier:
    """Build stage one's network: of a ClipClassifier's three systems only score fusion means it."""
    model = ClipClassifier(len(checkpoint.labels))
    if not load_embedder(model.backbone, model.fc, embedder, checkpoint.labels):
        raise TrainingError(
            "--embedder has no classifier (fc.*) of the labels "
            f"{', '.join(checkpoint.labels)}; expected stage one's embedder.pth.tar"
        )
    return place(model, data.frames.device).eval()


def mean_and_spread(values: Sequence[float]) -> str:
    """Write shares' mean, and how far the seeds lie apart (standard deviation)."""
    if len(values) < 2:
        return percent(values[0])
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f} %"


def write_report(
    report: Report, data: Dataset, checkpoint: Path, source: str, prior: str, out: Path
) -> str:
    """Write report.md and confusion.png into `out`; give the report's text.

    Args:
        checkpoint: its file.
        source: the data, in words.
        prior: the checkpoint's, in words.
    """
    kind = "stills, one frame each" if data.is_stills else "clips, all their frames"
    lines = [
        f"# {checkpoint.name} on {source}",
        "",
        f"{len(data)} {kind}, one crop, no test-time augmentation, float32, prior {prior}. "
        + provenance("torch", "numpy")
        + "."
        + (f" Without {len(data.left_out)} in which no face was found." if data.left_out else ""),
    ]
    for judged in report.judged:
        lines += describe_judged(judged, report.served)
    if report.made:
        lines += describe_spoilt(report.made, report.served)
        lines += describe_minority(report.made)
        if report.made.lengths:
            lines += describe_lengths(report.made, report.served)
    text = "\n".join(lines) + "\n"
    write_whole(out / "report.md", text.encode())
    first = report.judged[0]
    draw_confusion(first.systems[report.served], first.truth.label_names, out / "confusion.png")
    return text


def describe_judged(judged: Judged, served: str) -> list[str]:
    """Say how every system fares by one truth, and the served one for each emotion."""
    truth = judged.truth
    lines = [
        "",
        f"By {truth.name} ({truth.total}):",
        "",
        "| system | top-1 | mean recall | calibration error |",
        "|---|---|---|---|",
    ]
    for name, figures in judged.systems.items():
        lines.append(
            f"| {name} | {percent(figures.accuracy)} ({figures.correct} / {figures.total}) | "
            f"{percent(figures.balanced)} | {percent(figures.calibration_error)} |"
        )
    recalls = judged.systems[served].recalls
    known = truth.label_names[: len(recalls)]
    lines += ["", f"Recall of {served}:", "", "| " + " | ".join(known) + " |"]
    lines.append("|" + "---|" * len(known))
    lines.append("| " + " | ".join(percent(r) for r in recalls) + " |")
    others = judged.systems[served].confusion[len(recalls) :].sum()
    if others:
        names = ", ".join(truth.label_names[len(recalls) :])
        lines += ["", f"{others} of {names}, which the network does not have, count as wrong."]
    return lines


def describe_spoilt(made: MadeClips, served: str) -> list[str]:
    """Say how the systems fare on clips with spoilt frames, and what the weights see."""
    many = len(made.spoilt) > 1
    seeds = f"{len(made.spoilt)} seeds, mean and standard deviation" if many else "1 seed"
    total = made.spoilt[0][served].total
    lines = [
        "",
        f"Clips of {NUM_FRAMES} frames made of each of {total} stills, {NUM_SPOILT} of them spoilt "
        f"({', '.join(KINDS)}: the kinds that training makes too), {seeds}:",
        "",
        f"| system | top-1 | {served}'s lead, points | mean recall | calibration error |",
        "|---|---|---|---|---|",
    ]
    best = [each[served].accuracy for each in made.spoilt]
    for name in made.spoilt[0]:
        figures = [each[name] for each in made.spoilt]
        lead = 100 * (np.mean(best) - np.mean([f.accuracy for f in figures]))
        led = "" if name == served else f"{lead:+.2f}"
        lines.append(
            f"| {name} | {mean_and_spread([f.accuracy for f in figures])} | {led} | "
            f"{mean_and_spread([f.balanced for f in figures])} | "
            f"{mean_and_spread([f.calibration_error for f in figures])} |"
        )
    clear, spoilt, area = (
        float(np.mean([getattr(w, name) for w in made.weighed]))
        for name in ("clear", "spoilt", "auc")
    )
    kinds = ", ".join(
        f"{name} {np.mean([w.by_kind[name] for w in made.weighed]):.3f}" for name in KINDS
    )
    return [
        *lines,
        "",
        f"Mean weight of a frame (an even share is {1 / NUM_FRAMES:.3f}): clear {clear:.3f}, "
        f"spoilt {spoilt:.3f} ({spoilt / clear:.2f} of it); {kinds}. "
        f"AUC of the weight as a detector of clear frames: {area:.3f}.",
    ]


def describe_minority(made: MadeClips) -> list[str]:
    """Say what clear frames of another emotion weigh, where the data have another."""
    mean, fifth = (np.mean([getattr(m, name) for m in made.minority]) for name in ("mean", "fifth"))
    if np.isnan(mean):
        return []
    return [
        "",
        f"Clips of {NUM_FRAMES} clear frames, {NUM_OTHERS} of them of another emotion: each of "
        f"those weighs {mean:.2f} of one of the others on average, and {fifth:.2f} at the 5th "
        "percentile.",
    ]


def describe_lengths(made: MadeClips, served: str) -> list[str]:
    """Say how the served system fares as clear frames are added."""
    total = next(iter(made.lengths.values())).total
    return [
        "",
        f"Clips of clear frames alone, {total} faces, the same clips with frames added:",
        "",
        "| frames | " + " | ".join(map(str, made.lengths)) + " |",
        "|---|" + "---|" * len(made.lengths),
        f"| {served} | " + " | ".join(percent(m.accuracy) for m in made.lengths.values()) + " |",
    ]


def draw_confusion(measured: Measured, label_names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix as a PNG, each row as shares of a true emotion."""
    num_classes = measured.confusion.shape[1]
    label_names = label_names[:num_classes]
    confusion = measured.confusion[:num_classes]
    totals = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
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
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    pyplot.close(figure)
    write_whole(path, picture.getvalue())


def read(args: argparse.Namespace) -> tuple[Checkpoint, Dataset, str]:
    """Read the checkpoint, the data numbered as its labels are, and the prior in words.

    --labels numbers the data; a checkpoint that does not name its own labels has the same.
    """
    own = args.checkpoint.suffix == ".safetensors"
    checkpoint = read_checkpoint(
        args.checkpoint,
        network=args.model,
        labels=None if own else args.labels,
        color=args.color,
        variant=args.variant,
    )
    prior = words_of(checkpoint, args.prior)
    checkpoint = with_prior(checkpoint, args.prior)
    names = args.labels or checkpoint.labels
    data = read_dataset(args.data, names, args.usage, checkpoint.preprocessing.size)
    return checkpoint, data.renumber(checkpoint.labels).to(choose_device(args.device)), prior


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("evaluate", __doc__)
    parser.add_argument("data", type=Path, help="labelled faces: docs/training.md has the forms")
    parser.add_argument(
        "--checkpoint", type=Path, help="weights to measure (default: the shipped ones)"
    )
    parser.add_argument(
        "--usage", default="PublicTest", choices=USAGES, help="rows of a CSV (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for report and confusion matrix (default: build/evaluation/<date-time>)",
    )
    parser.add_argument(
        "--num-clips",
        type=whole(1),
        help="measure on so many alone, chosen at random: a first look (default: all)",
    )
    parser.add_argument(
        "--seeds",
        type=whole(1, 100),
        default=3,
        help="how many times clips are made of stills (default: %(default)s)",
    )
    parser.add_argument(
        "--lengths",
        type=whole(1, 10_000),
        nargs="*",
        default=[],
        help="also measure clips of clear frames, made of stills, by their first so many; "
        "the longest decides which frames there are",
    )
    parser.add_argument(
        "--hard",
        choices=list(HARD),
        help="make every still harder to read first: eyes, mouth or a half of the face hidden, or "
        "the face tilted and turned (default: as they are)",
    )
    parser.add_argument(
        "--embedder", type=Path, help="also measure score fusion by stage one's embedder.pth.tar"
    )
    add_arguments(parser)
    add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def command() -> None:
        args.checkpoint = source_of(args).path
        checkpoint, data, prior = read(args)
        num_clips = len(data)
        if args.num_clips:
            data = data.sample(args.num_clips)
        if args.hard:
            data = harden(data, args.hard)
        embedder = read_embedder(args.embedder) if args.embedder else None
        report = evaluate(checkpoint, data, range(args.seeds), args.lengths, embedder)
        source = data.name + (f", rows {args.usage}" if args.data.suffix == ".csv" else "")
        if len(data) < num_clips:
            source += f", {len(data)} of {num_clips} chosen at random"
        # A folder of its own: no run writes over an earlier one's report.
        out = args.out or Path("build/evaluation") / time.strftime("%Y-%m-%d-%H%M%S")
        print(write_report(report, data, args.checkpoint, source, prior, out))
        print(f"{out / 'report.md'}  {out / 'confusion.png'}")

    return run_command("evaluate", command, "stopped")
