"""Cross-validate by subject, as CK+ is measured: nobody is both learnt from and measured on.

    clips with subjects  ->  10 folds  ->  a FAN for each  ->  correct / total over all folds

`python -m training.crossval CK+ --labels ckplus --init embedder.pth.tar`. Every fold's figures are
those of its last epoch. `--best-epoch` takes each fold's best epoch on the held-out clips instead,
as the authors' code does: that chooses by the answers, so it is reported as such.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.checkpoint import Checkpoint, parse_labels, read_embedder
from export.errors import ExportError
from export.fan import SIZES
from export.files import write_whole
from export.provenance import provenance
from training.__main__ import Options, parse_phases, train
from training.data import Dataset, folds_by_subject, read_dataset
from training.evaluate import (
    SYSTEMS,
    Measured,
    build,
    draw_confusion,
    measure,
    percent,
    score_dataset,
)
from training.loop import choose_device

logger = logging.getLogger(__name__)

LAST_EPOCH = "last epoch of every fold"
BEST_EPOCH = (
    "best epoch of every fold, chosen on its held-out clips (the authors' habit; optimistic)"
)


def cross_validate(
    data: Dataset, options: Options, num_folds: int, *, best_epoch: bool = False
) -> dict[str, Measured]:
    """Train and measure a FAN for each fold.

    Args:
        data: on the device to train on.
        best_epoch: report each fold's best epoch on its held-out clips.

    Returns:
        system -> measured over the clips of all folds.
    """
    answers: dict[str, list[Tensor]] = {name: [] for name in SYSTEMS}
    truth = []
    for k, held_out in enumerate(folds_by_subject(data.subjects, num_folds)):
        rest = np.setdiff1d(np.arange(len(data)), held_out)
        test = data.choose(held_out)
        epochs: list[dict[str, Tensor]] = []

        def note(
            checkpoint: Checkpoint, test: Dataset = test, epochs: list[dict[str, Tensor]] = epochs
        ) -> None:
            model = build(checkpoint, test.frames.device)
            epochs.append(score_dataset(model, test, checkpoint)[0])

        fold = replace(options, out=options.out / f"fold{k}")
        checkpoint = train(data.choose(rest), None, fold, note if best_epoch else None)
        note(checkpoint)
        truth.append(test.labels)
        for name in SYSTEMS:
            counts = [correct(epoch[name], test.labels) for epoch in epochs]
            chosen = int(np.argmax(counts)) if best_epoch else -1
            answers[name].append(epochs[chosen][name])
        count = correct(answers["FAN"][-1], test.labels)
        logger.info("fold %d: FAN %d / %d", k, count, len(test))
    labels = torch.cat(truth)
    return {name: measure(torch.cat(answers[name]), labels) for name in SYSTEMS}


def correct(probabilities: Tensor, labels: Tensor) -> int:
    """How many are named right."""
    return int((probabilities.argmax(1) == labels).sum())


def report(measured: dict[str, Measured], data: Dataset, num_folds: int, how: str) -> str:
    """Write the figures as Markdown."""
    lines = [
        f"# {data.name}, {num_folds} folds by subject",
        "",
        f"{len(data)} clips of {len(set(data.subjects))} subjects; {how}. {provenance('torch')}.",
        "",
        "| system | correct / total | top-1 | mean recall |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {m.correct} / {m.total} | {percent(m.accuracy)} | {percent(m.balanced)} |"
        for name, m in measured.items()
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="labelled clips: see training/data.py")
    parser.add_argument("--labels", type=parse_labels, default=parse_labels("ckplus"))
    parser.add_argument("--init", type=Path, help="backbone or FAN checkpoint to start from")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--phases", type=parse_phases, default="", help="default: no stage one")
    parser.add_argument("--clip-epochs", type=float, default=20.0)
    parser.add_argument("--size", type=int, default=112, choices=sorted(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--best-epoch", action="store_true", help="the authors' habit; optimistic")
    parser.add_argument("--out", type=Path, default=Path("build/crossval"))
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        data = read_dataset(args.data, args.labels).to(choose_device(args.device))
        initial = read_embedder(args.init) if args.init else None
        options = Options(args.out, args.size, args.phases, args.clip_epochs, args.seed, initial)
        measured = cross_validate(data, options, args.folds, best_epoch=args.best_epoch)
        how = BEST_EPOCH if args.best_epoch else LAST_EPOCH
        text = report(measured, data, args.folds, how)
        write_whole(args.out / "report.md", text.encode())
        draw_confusion(measured["FAN"], data.label_names, args.out / "confusion.png")
    except ExportError as error:
        print(f"crossval: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
