"""Measure a checkpoint on labelled faces, for the three systems of the paper's table.

    checkpoint + stills  ->  one frame each; clips made of them, half of their frames spoilt
    checkpoint + clips   ->  the clips, whole
    ->  OUT/report.md, OUT/confusion.png

`python -m training.evaluate` (`make evaluate`). The network runs in float32 on faces as they are
served: no test-time augmentation, no second crop.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from export.checkpoint import (
    Checkpoint,
    Embedder,
    add_arguments,
    read_checkpoint,
    read_embedder,
    source_of,
)
from export.files import write_whole
from export.provenance import provenance
from training import TrainingError
from training.clips import ClipClassifier
from training.data import Dataset, read_dataset
from training.loop import choose_device, place
from training.measure import (
    NUM_FRAMES,
    NUM_SPOILT,
    SYSTEMS,
    Measured,
    Weighed,
    build,
    measure,
    percent,
    score_dataset,
    score_growing_clips,
    score_made_clips,
    systems_of,
    weigh,
)
from training.options import USAGES, add_device, run_command, whole
from training.spoil import KINDS
from training.stills import load_embedder

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot

STAGE_ONE = "score fusion, stage one's embedder"
NUM_FACES_BY_LENGTH = 300


@dataclass(frozen=True)
class Report:
    """All that `python -m training.evaluate` measured.

    Args:
        served: the system that the checkpoint's variant serves.
        plain: system -> measured on the data as they are: stills, or whole clips.
        spoilt: for each seed, system -> measured on clips made of stills; empty for real clips.
        weighed: for each seed, FAN's weights of those.
        lengths: number of frames -> the served system on so many of a clip, all of them clear.
    """

    served: str
    plain: Mapping[str, Measured]
    spoilt: Sequence[Mapping[str, Measured]]
    weighed: Sequence[Weighed]
    lengths: Mapping[int, Measured]


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
    labels = data.labels
    served = SYSTEMS[1] if checkpoint.variant == "self" else SYSTEMS[2]
    probabilities = score_dataset(checkpoint, data)
    plain = {name: measure(values, labels) for name, values in probabilities.items()}
    if checkpoint.network != "fan":
        if lengths or embedder is not None:
            raise TrainingError(
                "--lengths and --embedder are of FAN's clips; "
                f"{checkpoint.network} looks at single frames"
            )
        return Report(SYSTEMS[0], plain, (), (), {})  # it has score fusion and no other
    if not data.is_stills:
        return Report(served, plain, (), (), {})
    model = build(checkpoint, data.frames.device)
    stage_one = None if embedder is None else build_stage_one(checkpoint, embedder, data)
    spoilt, weighed = [], []
    for seed in seeds:
        scores, kinds = score_made_clips(model, data, checkpoint, seed)
        each = scores.probabilities()
        systems = {name: measure(each[name], labels) for name in systems_of(checkpoint)}
        if stage_one is not None:
            alone, _ = score_made_clips(stage_one, data, checkpoint, seed)
            systems = {STAGE_ONE: measure(alone.probabilities()[SYSTEMS[0]], labels), **systems}
        spoilt.append(systems)
        weights = scores.self_weights if served == SYSTEMS[1] else scores.weights
        weighed.append(weigh(weights, kinds))
    some = data.sample(NUM_FACES_BY_LENGTH)
    by_length = {
        length: measure(scores.probabilities()[served], some.labels)
        for length, scores in score_growing_clips(model, some, checkpoint, lengths).items()
    }
    return Report(served, plain, spoilt, weighed, by_length)


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


def write_report(report: Report, data: Dataset, checkpoint: Path, source: str, out: Path) -> str:
    """Write report.md and confusion.png into `out`; give the report's text.

    Args:
        checkpoint: its file.
        source: the data, in words.
    """
    kind = "stills, one frame each" if data.is_stills else "clips, all their frames"
    served = report.plain[report.served]
    lines = [
        f"# {checkpoint.name} on {source}",
        "",
        f"{len(data)} {kind}, one crop, no test-time augmentation, float32. "
        + provenance("torch", "numpy")
        + "."
        + (f" Without {len(data.left_out)} in which no face was found." if data.left_out else ""),
        "",
        "| system | top-1 | mean recall | calibration error |",
        "|---|---|---|---|",
    ]
    for name, figures in report.plain.items():
        lines.append(
            f"| {name} | {percent(figures.accuracy)} ({figures.correct} / {figures.total}) | "
            f"{percent(figures.balanced)} | {percent(figures.calibration_error)} |"
        )
    lines += ["", f"Recall of {report.served}:", "", "| " + " | ".join(data.label_names) + " |"]
    lines.append("|" + "---|" * len(data.label_names))
    lines.append("| " + " | ".join(percent(r) for r in served.recalls) + " |")
    if report.spoilt:
        lines += describe_spoilt(report)
    if report.lengths:
        lines += describe_lengths(report)
    text = "\n".join(lines) + "\n"
    write_whole(out / "report.md", text.encode())
    draw_confusion(served, data.label_names, out / "confusion.png")
    return text


def describe_spoilt(report: Report) -> list[str]:
    """Say how the systems fare on clips with spoilt frames, and what the weights see."""
    many = len(report.spoilt) > 1
    seeds = f"{len(report.spoilt)} seeds, mean and standard deviation" if many else "1 seed"
    lines = [
        "",
        f"Clips of {NUM_FRAMES} frames made of each still, {NUM_SPOILT} of them spoilt "
        f"({', '.join(KINDS)}: the kinds that training makes too), {seeds}:",
        "",
        f"| system | top-1 | {report.served}'s lead, points | mean recall | calibration error |",
        "|---|---|---|---|---|",
    ]
    best = [each[report.served].accuracy for each in report.spoilt]
    for name in report.spoilt[0]:
        figures = [each[name] for each in report.spoilt]
        lead = 100 * (np.mean(best) - np.mean([f.accuracy for f in figures]))
        led = "" if name == report.served else f"{lead:+.2f}"
        lines.append(
            f"| {name} | {mean_and_spread([f.accuracy for f in figures])} | {led} | "
            f"{mean_and_spread([f.balanced for f in figures])} | "
            f"{mean_and_spread([f.calibration_error for f in figures])} |"
        )
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
    """Say how the served system fares as clear frames are added."""
    total = next(iter(report.lengths.values())).total
    return [
        "",
        f"Clips of clear frames alone, {total} faces, the same clips with frames added:",
        "",
        "| frames | " + " | ".join(map(str, report.lengths)) + " |",
        "|---|" + "---|" * len(report.lengths),
        f"| {report.served} | "
        + " | ".join(percent(m.accuracy) for m in report.lengths.values())
        + " |",
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
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    pyplot.close(figure)
    write_whole(path, picture.getvalue())


def read(args: argparse.Namespace) -> tuple[Checkpoint, Dataset]:
    """Read the checkpoint, and the data numbered as its labels are.

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
    names = args.labels or checkpoint.labels
    data = read_dataset(args.data, names, args.usage, checkpoint.preprocessing.size)
    return checkpoint, data.renumber(checkpoint.labels).to(choose_device(args.device))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="labelled faces, in a form that README.md names")
    parser.add_argument(
        "--checkpoint", type=Path, help="weights to measure (default: the shipped ones)"
    )
    parser.add_argument(
        "--usage", default="PublicTest", choices=USAGES, help="rows of a CSV (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/evaluation"),
        help="folder for report and confusion matrix (default: %(default)s)",
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
        "--embedder", type=Path, help="also measure score fusion by stage one's embedder.pth.tar"
    )
    add_arguments(parser)
    add_device(parser)
    args = parser.parse_args(argv)

    def command() -> None:
        args.checkpoint = source_of(args).path
        checkpoint, data = read(args)
        num_clips = len(data)
        if args.num_clips:
            data = data.sample(args.num_clips)
        embedder = read_embedder(args.embedder) if args.embedder else None
        report = evaluate(checkpoint, data, range(args.seeds), args.lengths, embedder)
        source = data.name + (f", rows {args.usage}" if args.data.suffix == ".csv" else "")
        if len(data) < num_clips:
            source += f", {len(data)} of {num_clips} chosen at random"
        print(write_report(report, data, args.checkpoint, source, args.out))
        print(f"{args.out / 'report.md'}  {args.out / 'confusion.png'}")

    return run_command("evaluate", command, "stopped")


if __name__ == "__main__":
    sys.exit(main())
