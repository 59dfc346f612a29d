"""How common each emotion is where a network serves: a bias of its classifiers.

    checkpoint, learnt with the emotions' shares kept apart  +  prior  ->  checkpoint to serve

The logits of such weights are those of a world in which all emotions are as common. The log of
their shares, added to them, makes them those of any other. In FAN this is exact through pooling:
the frames' shares sum to 1, so what is added to each frame's logits is added to the clip's.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

from base.errors import CheckpointError
from networks.checkpoint import PRIORS, Checkpoint
from networks.entries import NETWORKS

LEAST = (
    1e-9  # of a file of shares, each is so much at least: FP16 can still say the bias that it makes
)


def with_prior(checkpoint: Checkpoint, prior: str | None = None) -> Checkpoint:
    """Add a prior to a checkpoint's classifiers.

    Args:
        prior: "even": all emotions as common; "natural": as in what the weights learnt from; or
            the path of a JSON file, {"happy": 0.4, ...}, that has each label's share. Default: the
            checkpoint's own choice.

    Returns:
        a checkpoint that knows its prior; the one that was given, where its weights know theirs.

    Raises:
        CheckpointError: for a prior that such weights cannot be given, or a bad file of shares.
    """
    if not checkpoint.natural:
        if prior is None:
            return checkpoint
        raise CheckpointError(
            f"--prior {prior}: these weights know how common each emotion was in what they learnt "
            "from, and it cannot be taken out of them; --prior is for weights trained here with "
            "--balance 1"
        )
    shares = shares_of(checkpoint, prior or checkpoint.prior)
    state = dict(checkpoint.state)
    for name in NETWORKS[checkpoint.network].classifiers:
        if name in state:
            state[name] = state[name] + state[name].new_tensor([math.log(s) for s in shares])
    return replace(checkpoint, state=state, natural=())


def words_of(checkpoint: Checkpoint, prior: str | None) -> str:
    """Say which prior `with_prior` adds."""
    if not checkpoint.natural:
        return "of what the weights learnt from"
    chosen = prior or checkpoint.prior
    return chosen if chosen in PRIORS else f"of {Path(chosen).name}"


def shares_of(checkpoint: Checkpoint, prior: str) -> tuple[float, ...]:
    """Look up or read a prior: a share for each label, in their order; their sum is 1."""
    if prior == "even":
        return (1 / len(checkpoint.labels),) * len(checkpoint.labels)
    if prior == "natural":
        return checkpoint.natural
    return read_shares(Path(prior), checkpoint.labels)


def read_shares(path: Path, labels: tuple[str, ...]) -> tuple[float, ...]:
    """Read a JSON file of a share for each label.

    Raises:
        CheckpointError: for a file that is not there, or has not one share above 0 a label.
    """
    expected = f'expected {", ".join(PRIORS)} or a JSON file such as {{"{labels[0]}": 0.2, ...}}'
    try:
        shares = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"--prior {path}: cannot be read ({error}); {expected}") from error
    if not isinstance(shares, dict) or sorted(shares) != sorted(labels):
        raise CheckpointError(
            f"--prior {path}: its names are not the labels {', '.join(labels)}; {expected}"
        )
    for name, share in shares.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 < share < math.inf:
            raise CheckpointError(
                f"--prior {path}: the share of {name} is {share!r}; expected a number above 0"
            )
    try:
        given = [float(shares[label]) for label in labels]
        spread = tuple(share / sum(given) for share in given)
    except OverflowError:
        spread = ()
    if not spread or min(spread) < LEAST:
        raise CheckpointError(
            f"--prior {path}: its shares lie too far apart; expected each to be {LEAST:g} of their "
            "sum at least"
        )
    return spread
