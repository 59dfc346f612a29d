"""What the commands of training have in common: their options, and how they end."""

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from base.command import run_command as end_command
from networks.checkpoint import parse_labels, read_embedder
from networks.preprocessing import SIZES
from training import TrainingError
from training.data import CKPLUS_EMOTIONS, Dataset, read_dataset
from training.run import Options
from training.stills import Phase

logger = logging.getLogger(__name__)

MAX_SIDE = 448  # pixels of training pictures; beyond it nothing is gained
MIN_SIDE = 32  # ResNet-18 halves a side five times
# FER2013's label finds anger and disgust where most people see no emotion, as posed faces have it.
LABEL_SHARE = 0.3
USAGES = ("Training", "PublicTest", "PrivateTest")


def whole(least: int, most: int = 2**31) -> Callable[[str], int]:
    """Make a parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a whole number from {least} to {most}"
            )
        return int(text)

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """Make a parser of numbers within bounds."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a number from {least:g} to {most:g}"
            )
        return value

    return parse


EPOCHS = number(0.001, 100_000)


def phases(text: str) -> tuple[Phase, ...]:
    """Read "96x12,112x4": twelve epochs at 96 pixels, four at 112; "" is none."""
    found = []
    for part in filter(None, text.split(",")):
        size, separator, epochs = part.partition("x")
        if not separator:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected <pixels>x<epochs>,..., such as 96x12,112x4"
            )
        found.append(Phase(whole(MIN_SIDE, MAX_SIDE)(size), EPOCHS(epochs)))
    return tuple(found)


def add_training(
    parser: argparse.ArgumentParser,
    out: str,
    labels: str,
    default_phases: str | None,
    clip_epochs: float,
) -> None:
    """Add what decides a training; the arguments are the defaults."""
    parser.add_argument("data", type=Path, help="labelled faces: docs/training.md has the forms")
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--labels",
        type=parse_labels,
        default=parse_labels(labels),
        help=f"the data's emotions by number: a data set's name, or a file (default: {labels})",
    )
    parser.add_argument(
        "--init",
        type=Path,
        help="FAN checkpoint or backbone whose embedder to start from (default: random weights)",
    )
    parser.add_argument(
        "--phases",
        type=phases,
        default=default_phases,
        help="stage one: <pixels>x<epochs>,...; empty for none (default: "
        f"{'what suits the network' if default_phases is None else repr(default_phases)})",
    )
    parser.add_argument(
        "--vary",
        type=number(0, 2),
        default=1.0,
        help="how far stage one's pictures, and real clips' frames, vary; less suits a short run "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--mix", type=number(0, 2), default=0.2, help="strength of its mixup (default: %(default)s)"
    )
    parser.add_argument(
        "--learning-rate",
        type=number(1e-6, 10),
        help="stage one's, at the top of its schedule (default: what suits the network)",
    )
    parser.add_argument(
        "--sam",
        type=number(0, 2),
        default=0.0,
        help="stage one minimises the loss this far uphill of its weights, for a flat minimum, in "
        "twice the time; 0.05 to 0.1 are usual (default: %(default)s, no)",
    )
    parser.add_argument(
        "--balance",
        type=number(0, 1),
        default=1.0,
        help="how much of the emotions' shares is kept apart from the weights, so that rare ones "
        "are learnt as well; export --prior adds any shares (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        choices=["votes", "labels"],
        help="what to learn of data that have both (default: votes where there are any)",
    )
    parser.add_argument(
        "--label-share",
        type=number(0, 1),
        default=LABEL_SHARE,
        help="how much the data's own label counts beside their votes (default: %(default)s)",
    )
    parser.add_argument(
        "--also",
        type=Path,
        help="faces of another kind, such as CK+'s folders: the classifier of single frames "
        "learns them beside stills, behind an embedder that stays (default: none)",
    )
    parser.add_argument(
        "--also-times",
        type=number(0.01, 1000),
        default=30.0,
        help="how much each of their frames counts (default: %(default)g)",
    )
    parser.add_argument(
        "--clip-epochs", type=EPOCHS, default=clip_epochs, help="stage two (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=112,
        choices=sorted(SIZES),
        help="pixels to which the served graph brings a face (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="of all that is drawn (default: %(default)s)"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")


def read_options(args: argparse.Namespace) -> Options:
    """Turn what add_training added into Options."""
    initial = read_embedder(args.init) if args.init else None
    return Options(
        out=args.out,
        size=args.size,
        phases=args.phases,
        clip_epochs=args.clip_epochs,
        seed=args.seed,
        initial=initial,
        vary=args.vary,
        mix=args.mix,
        learning_rate=args.learning_rate,
        sam=args.sam,
        balance=args.balance,
        others=read_others(args) if args.also else None,
        others_times=args.also_times,
    )


def read_others(args: argparse.Namespace) -> Dataset:
    """Read --also: what it has of the emotions that are learnt, in their order."""
    strangers = tuple(name for name in CKPLUS_EMOTIONS.values() if name not in args.labels)
    data = read_dataset(args.also, args.labels + strangers, with_votes=False)
    known = (data.labels < len(args.labels)).nonzero()[:, 0].numpy()
    if left := len(data) - len(known):
        logger.info("%s: %d of %s left out", data.name, left, ", ".join(strangers))
    if not len(known):
        raise TrainingError(f"--also {args.also}: none of {', '.join(args.labels)} in it")
    return replace(data.choose(known), label_names=args.labels)


def read_training(args: argparse.Namespace) -> Dataset:
    """Read what is learnt from, told by votes or by labels as asked."""
    data = read_dataset(args.data, args.labels, with_votes=args.target != "labels")
    if args.target == "votes" and data.votes is None:
        raise TrainingError(f"{args.data}: nobody voted on it; --target votes wants `votes`")
    return replace(data, label_share=args.label_share).named()


def run_command(name: str, command: Callable[[], None], stopped: str) -> int:
    """Run a command to its end, or to one plain line that says why it has none.

    Args:
        stopped: what to say after Ctrl-C.

    Returns:
        the exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def work() -> None:
        try:
            command()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingError(
                "out of memory; smaller pictures (--size, --phases) or --device cpu may fit"
            ) from error

    return end_command(name, work, stopped=stopped)
