"""What ten people said of each picture, and what is learnt and measured by it.

    votes (N, 10)  ->  distribution  ->  targets (N, C), a weight a picture    to learn from
    votes (N, 10)  ->  majority      ->  an emotion a picture, or none         to measure by

Source: Barsoum et al., "Training Deep Networks for Facial Expression Recognition with
Crowd-Sourced Label Distribution", ICMI 2016 (FER+), and its published code for `majority`.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training import TrainingError

# FER+'s columns, in their order.
COLUMNS = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "no face"),
)
NAMES = COLUMNS[:8]  # what can be named; "unknown" and "no face" are no names
FERPLUS_CSV = "fer2013new.csv"  # FER+'s own file: a row for each of the challenge's
CSV_COLUMNS = (*COLUMNS[:9], "NF")
# What other data sets call FER+'s emotions.
SYNONYMS = {"happy": "happiness", "sad": "sadness", "angry": "anger"}


def column_of(label: str) -> int | None:
    """Find the column of an emotion, whatever its data set calls it; None where FER+ has none."""
    name = SYNONYMS.get(label.lower(), label.lower())
    return NAMES.index(name) if name in NAMES else None


def check_votes(
    votes: np.ndarray, num_pictures: int, path: Path, row_name: str = "picture", first: int = 0
) -> np.ndarray:
    """Refuse what is not ten people's votes for each picture.

    Args:
        row_name: what a row is called, and `first` the number of the first one.

    Returns:
        (N, 10) uint8.

    Raises:
        TrainingError: naming the array or its first bad row.
    """
    expected = f"whole numbers ({num_pictures}, {len(COLUMNS)}), for each picture how many named "
    if votes.shape != (num_pictures, len(COLUMNS)) or not np.issubdtype(votes.dtype, np.integer):
        raise TrainingError(
            f"{path}: `votes` is {votes.dtype} {votes.shape}; expected {expected}"
            f"{', '.join(COLUMNS)}"
        )
    outside = ((votes < 0) | (votes > 255)).any(1)
    if outside.any():
        row = int(outside.argmax())
        raise TrainingError(
            f"{path}: votes of {row_name} {first + row} are {votes[row].tolist()}; expected 0 to "
            "255 each"
        )
    empty = ~votes.any(1)
    if empty.any():
        row = int(empty.argmax())
        raise TrainingError(
            f"{path}: votes of {row_name} {first + row} are all 0, and of {int(empty.sum())} "
            f"{row_name}s in all; expected a vote at least for each (leave such {row_name}s out)"
        )
    return votes.astype(np.uint8)


def counted(votes: Tensor) -> Tensor:
    """Drop single votes, as FER+ does: (N, 10) float32."""
    return votes.float() * (votes > 1)


def distribution(votes: Tensor, label_names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Turn votes into what is learnt.

    Single votes are dropped. A target is how the votes for the network's emotions are spread. A
    picture's weight is their share among all votes left: half of the people said "unknown",
    "no face" or an emotion that the network does not have, and it counts half.

    Args:
        votes: (N, 10) uint8.

    Returns:
        targets (N, C) float32, each row a distribution or all 0; weights (N,) float32, 0..1: 0
        for what nobody names with one of the emotions.
    """
    left = counted(votes)
    columns = [column_of(name) for name in label_names]
    named = torch.stack(
        [left.new_zeros(len(left)) if c is None else left[:, c] for c in columns], 1
    )
    sums = named.sum(1)
    return named / sums.clamp(min=1)[:, None], sums / left.sum(1).clamp(min=1)


def majority(votes: Tensor) -> Tensor:
    """Say on which emotion people agree, by FER+'s rule.

    Single votes are dropped; a name needs more than half of the rest; "unknown" and "no face"
    are no names.

    Returns:
        (N,) int64, an index into NAMES, or -1 where they agree on none.
    """
    left = counted(votes)
    most, named = left.max(1)
    agreed = (2 * most > left.sum(1)) & (named < len(NAMES))
    return torch.where(agreed, named, -1)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Turn (N,) labels into (N, C) float32 targets."""
    return F.one_hot(labels, num_classes).float()


@dataclass(frozen=True, kw_only=True)
class FerPlus:
    """FER+'s own file: the challenge's rows in their order, without its pictures.

    Args:
        path: the file.
        votes: (N, 10) uint8.
        usages: of each row, as in the challenge's file.
        kept: of each row, whether FER+ names a picture: it removed those without a face.
    """

    path: Path
    votes: np.ndarray
    usages: tuple[str, ...]
    kept: tuple[bool, ...]

    def of(self, row: int, usage: str, faces: Path) -> np.ndarray | None:
        """Give a row's (10,) votes; None for a picture that FER+ removed.

        Raises:
            TrainingError: where the files' rows do not match.
        """
        if row < len(self.votes) and self.usages[row] != usage:
            raise TrainingError(
                f"{self.path}: row {row + 1} is of Usage {self.usages[row]}, and that of "
                f"{faces.name} of {usage}; expected the same rows in the same order"
            )
        return self.votes[row] if row < len(self.votes) and self.kept[row] else None

    def check_length(self, num_rows: int, faces: Path) -> None:
        """Refuse another number of rows than the challenge's file has."""
        if num_rows != len(self.votes):
            raise TrainingError(
                f"{self.path}: {len(self.votes)} rows, and {faces.name} has {num_rows}; expected "
                "the same rows in the same order"
            )


def read_ferplus(path: Path) -> FerPlus:
    """Read FER+'s fer2013new.csv.

    Raises:
        TrainingError: naming the first row that cannot be read.
    """
    votes, usages, kept = [], [], []
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                votes.append(np.array([int(row[name]) for name in CSV_COLUMNS], np.int64))
                usages.append(row["Usage"])
                kept.append(bool(row["Image name"].strip()))
    except (
        OSError,
        ArithmeticError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        csv.Error,
    ) as error:
        raise TrainingError(
            f"{path}: row {len(kept) + 1}: expected columns Usage, Image name, "
            f"{', '.join(CSV_COLUMNS)} as FER+ has them, whole numbers of votes "
            f"({type(error).__name__}: {error})"
        ) from error
    array = np.array(votes, np.int64).reshape(-1, len(COLUMNS))
    # What FER+ removed may have no votes.
    seen = np.where(np.array(kept)[:, None] if kept else False, array, 1)
    check_votes(seen, len(array), path, "row", 1)
    return FerPlus(path=path, votes=array.astype(np.uint8), usages=tuple(usages), kept=tuple(kept))
