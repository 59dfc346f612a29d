"""Cross-validate by subject, as CK+ is measured: nobody is both learnt from and measured on.

    clips with subjects  ->  10 folds  ->  a FAN for each  ->  correct / total over all folds

`videofer crossval CK+ --labels ckplus --init embedder.pth.tar`. Every fold's figures are
those of its last epoch. `--best-epoch` takes each fold's best epoch on the held-out clips instead,
as the authors' code does: that chooses by the answers, so it is reported as such.
"""

import io
import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from base.command import make_parser
from base.files import write_whole
from base.provenance import provenance
from networks.checkpoint import Checkpoint
from networks.prior import with_prior
from training.data import Dataset, folds_by_subject
from training.evaluate import draw_confusion
from training.loop import choose_device
from training.measure import SYSTEMS, Measured, measure, percent, score_dataset
from training.options import add_training, read_options, read_training, run_command, whole
from training.run import Options, train

logger = logging.getLogger(__name__)

LAST_EPOCH = "last epoch of every fold"
BEST_EPOCH = (
    "best epoch of every fold and system, chosen on the held-out clips: the authors' habit, "
    "optimistic"
)


def cross_validate(
    data: Dataset, options: Options, num_folds: int, *, best_epoch: bool = False
) -> dict[str, Measured]:
    """Train and measure a FAN for each fold.

    Args:
        data: on the device to train on.
        best_epoch: report each fold's and system's best epoch on the fold's held-out clips.

    Returns:
        system -> measured over the clips of all folds.

    Raises:
        ExportError: for clips of nobody in particular, or fewer subjects than folds.
    """
    answers: dict[str, list[Tensor]] = {name: [] for name in SYSTEMS}
    truth = []
    for k, held_out in enumerate(folds_by_subject(data.subjects, num_folds)):
        rest = data.choose(np.setdiff1d(np.arange(len(data)), held_out))
        test = data.choose(held_out)
        fold = replace(options, out=options.out / f"fold{k}")
        epochs = train_fold(rest, test, fold, keep_epochs=best_epoch)
        for name in SYSTEMS:
            counts = [correct(epoch[name], test.labels) for epoch in epochs]
            chosen = int(np.argmax(counts)) if best_epoch else -1
            answers[name].append(epochs[chosen][name])
        truth.append(test.labels)
        count = correct(answers["FAN"][-1], test.labels)
        logger.info("fold %d: FAN %d / %d", k, count, len(test))
    labels = torch.cat(truth)
    return {name: measure(torch.cat(answers[name]), labels) for name in SYSTEMS}


def train_fold(
    rest: Dataset, test: Dataset, fold: Options, *, keep_epochs: bool
) -> list[dict[str, Tensor]]:
    """Train on the rest; give each system's probabilities of the held-out clips, last epoch last.

    Args:
        keep_epochs: give those of every epoch. They are kept as files, for a run that was killed.
    """

    def keep(number: int, checkpoint: Checkpoint) -> dict[str, float]:
        buffer = io.BytesIO()
        torch.save(score_dataset(with_prior(checkpoint), test), buffer)
        write_whole(fold.out / "epochs" / f"{number:04}.pt", buffer.getvalue())
        return {}

    checkpoint = train(rest, None, fold, keep if keep_epochs else None)
    files = sorted((fold.out / "epochs").glob("*.pt")) if keep_epochs else []
    kept = [torch.load(file, weights_only=True) for file in files]
    return [*kept, score_dataset(with_prior(checkpoint), test)]


def correct(probabilities: Tensor, labels: Tensor) -> int:
    """How many are named right."""
    return int((probabilities.argmax(1) == labels).sum())


def report(measured: dict[str, Measured], data: Dataset, num_folds: int, how: str) -> str:
    """Write the figures as Markdown."""
    lines = [
        f"# {data.name}, {num_folds} folds by subject",
        "",
        f"{len(data)} clips of {len(set(data.subjects))} subjects; {how}. {provenance('torch')}."
        + (f" Without {len(data.left_out)} in which no face was found." if data.left_out else ""),
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
    parser = make_parser("crossval", __doc__)
    add_training(parser, "build/crossval", "ckplus", "", 20.0)
    parser.add_argument("--folds", type=whole(2), default=10, help="default: %(default)s")
    parser.add_argument("--best-epoch", action="store_true", help="the authors' habit; optimistic")
    args = parser.parse_args(argv)

    def command() -> None:
        device = choose_device(args.device)
        options = read_options(args)
        data = read_training(args).to(device)
        measured = cross_validate(data, options, args.folds, best_epoch=args.best_epoch)
        text = report(measured, data, args.folds, BEST_EPOCH if args.best_epoch else LAST_EPOCH)
        write_whole(args.out / "report.md", text.encode())
        draw_confusion(measured["FAN"], data.label_names, args.out / "confusion.png")
        print(text)

    return run_command("crossval", command, "stopped; the same command goes on from here")
