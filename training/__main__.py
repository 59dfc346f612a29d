"""Train FAN on labelled faces: the frame embedder on stills, then all of it on clips.

    DATA  ->  OUT/stills/embedder.pth.tar  ->  OUT/fan.safetensors

A run that was killed goes on where it stopped when it is started again with the same options.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from export.checkpoint import Checkpoint, parse_labels, read_embedder, write_checkpoint
from export.errors import ExportError
from export.fan import SIZES, Color, Preprocessing
from export.provenance import provenance
from training import clips, stills
from training.augment import Variation, vary
from training.clips import ClipClassifier, ClipsRecipe
from training.data import Dataset, read_dataset
from training.loop import choose_device, place
from training.spoil import CLEAR, Clips, make_clips
from training.stills import Phase, StillClassifier, StillsRecipe, batch_at

logger = logging.getLogger(__name__)

FRAMES_PER_CLIP = 3  # one of each third of a clip, as the paper trains


@dataclass(frozen=True)
class Options:
    """What a user chooses.

    Args:
        out: folder of the run.
        size: pixels to which the graph brings a face before the first convolution.
        phases: stage one's.
        clip_epochs: stage two's, in clips.
        seed: of all that is drawn.
        initial: a backbone's weights to start stage one, or two where there are no phases.
    """

    out: Path
    size: int
    phases: tuple[Phase, ...]
    clip_epochs: float
    seed: int
    initial: dict[str, Tensor] | None


def train(
    data: Dataset,
    validation: Dataset | None,
    options: Options,
    each_epoch: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Run both stages.

    Args:
        data: on the device to train on.
        validation: measured on as training goes, never learnt from or chosen by.
        each_epoch: given what stage two has after each of its epochs.
    """
    embedder = options.initial
    if options.phases:
        embedder = train_stills(data, validation, options)
    return train_clips(data, embedder, options, each_epoch)


def train_stills(data: Dataset, validation: Dataset | None, options: Options) -> dict[str, Tensor]:
    """Stage one; every frame of a clip is a still of its clip's label."""
    torch.manual_seed(options.seed)
    model = StillClassifier(len(data.label_names))
    if options.initial is not None:
        model.load_embedder(options.initial)
    recipe = StillsRecipe(options.phases, seed=options.seed)
    held_out = None
    if validation is not None:
        held_out = (validation.frames, validation.frame_labels(), options.size)
    weights = stills.train(
        place(model, data.frames.device),
        data.frames,
        data.frame_labels(),
        recipe,
        options.out / "stills",
        {"data": fingerprint(data), "recipe": repr(recipe), "initial": digest(options.initial)},
        held_out,
    )
    path = stills.write_embedder(weights, options.out / "stills" / "embedder.pth.tar")
    logger.info("stage one: %s", path)
    return stills.embedder_state(weights)


def train_clips(
    data: Dataset,
    embedder: dict[str, Tensor] | None,
    options: Options,
    each_epoch: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Stage two."""
    torch.manual_seed(options.seed)
    model = ClipClassifier(len(data.label_names))
    if embedder is not None:
        model.load_embedder(embedder)
    batch = ClipsRecipe.batch
    recipe = ClipsRecipe(round(options.clip_epochs * len(data) / batch), seed=options.seed)

    def checkpoint_of(weights: Mapping[str, Tensor]) -> Checkpoint:
        color: Color = "gray" if data.frames.shape[1] == 1 else "rgb"
        preprocessing = Preprocessing(color, size=options.size)
        state = clips.fan_state(weights)
        return Checkpoint(state, data.label_names, preprocessing, notes=notes_on(data, options))

    def measure(step: int, weights: Mapping[str, Tensor]) -> dict[str, float]:
        if each_epoch and step % max(1, len(data) // batch) == 0:
            each_epoch(checkpoint_of(weights))
        return {}

    weights = clips.train(
        place(model, data.frames.device),
        clip_source(data, recipe, options.size),
        recipe,
        options.out / "clips",
        {"data": fingerprint(data), "recipe": repr(recipe), "embedder": digest(embedder)},
        measure,
    )
    return checkpoint_of(weights)


def notes_on(data: Dataset, options: Options) -> dict[str, str]:
    """What a checkpoint's file says of its origin."""
    phases = ",".join(f"{p.size}x{p.epochs:g}" for p in options.phases)
    return {
        "source": "trained by `python -m training`",
        "data": f"{data.name}: {len(data)} clips, {len(data.frames)} frames, {fingerprint(data)}",
        "recipe": f"phases {phases or 'none'}, clip epochs {options.clip_epochs:g}, "
        f"size {options.size}, seed {options.seed}, from {digest(options.initial)}",
        "made": provenance("torch"),
    }


def clip_source(data: Dataset, recipe: ClipsRecipe, size: int) -> Callable[[int, Generator], Clips]:
    """Say where a step's clips come from: made of stills, or taken from real clips."""

    def choose(step: int) -> Tensor:
        return batch_at(step, len(data), recipe.batch, recipe.seed)

    def made(step: int, draws: Generator) -> Clips:
        chosen = choose(step).to(data.frames.device)
        num_spoilt = torch.randint(
            FRAMES_PER_CLIP, (len(chosen),), generator=draws, device=chosen.device
        )
        return make_clips(
            data.frames, data.labels, chosen, FRAMES_PER_CLIP, num_spoilt, size, data.neutral, draws
        )

    def taken(step: int, draws: Generator) -> Clips:
        chosen = choose(step)
        return take_clips(data, chosen, size, draws)

    return made if data.is_stills else taken


def take_clips(
    data: Dataset,
    chosen: Tensor,
    size: int,
    draws: Generator,
    variation: Variation = Variation(),  # noqa: B008 (frozen)
) -> Clips:
    """Take one random frame of each third of each chosen clip, all varied alike in kind."""
    first, last = data.starts[chosen], data.starts[chosen + 1]
    thirds = torch.arange(FRAMES_PER_CLIP)
    place = torch.rand(len(chosen), FRAMES_PER_CLIP, generator=draws, device=draws.device).cpu()
    index = first[:, None] + ((thirds + place) / FRAMES_PER_CLIP * (last - first)[:, None]).long()
    index = torch.minimum(index, last[:, None] - 1)
    faces = vary(data.frames[index.flatten()], size, variation, draws)
    kinds = torch.full(index.shape, CLEAR, device=faces.device)
    labels = data.labels[chosen.to(data.labels.device)]
    return Clips(faces.unflatten(0, index.shape), labels, kinds)


def fingerprint(data: Dataset) -> str:
    """Name data by a hash of their pixels and labels."""
    parts = (data.frames, data.starts, data.labels)
    return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in parts)).hexdigest()[:16]


def digest(weights: dict[str, Tensor] | None) -> str:
    """Name weights by a hash."""
    if weights is None:
        return "none"
    content = b"".join(weights[k].cpu().numpy().tobytes() for k in sorted(weights))
    return hashlib.sha256(content).hexdigest()[:16]


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Read "96x12,112x4"; "" is no stage one."""
    try:
        return tuple(Phase.parse(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected <pixels>x<epochs>,..., such as 96x12,112x4"
        ) from error


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="labelled faces: see training/data.py")
    parser.add_argument("--validation", type=Path, help="measured on once an epoch, never used")
    parser.add_argument("--out", type=Path, default=Path("build/training"))
    parser.add_argument(
        "--labels", type=parse_labels, default=parse_labels("fer2013"), help="default: fer2013"
    )
    parser.add_argument("--init", type=Path, help="backbone or FAN checkpoint to start from")
    parser.add_argument("--phases", type=parse_phases, default="64x10,96x14,112x6")
    parser.add_argument("--clip-epochs", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=112, choices=sorted(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_flush_denormal(True)
    try:
        device = choose_device(args.device)
        data = read_dataset(args.data, args.labels).to(device)
        validation = None
        if args.validation:
            validation = read_dataset(args.validation, args.labels, "PublicTest").to(device)
        initial = read_embedder(args.init) if args.init else None
        options = Options(args.out, args.size, args.phases, args.clip_epochs, args.seed, initial)
        checkpoint = train(data, validation, options)
        path = args.out / "fan.safetensors"
        write_checkpoint(checkpoint, path)
    except ExportError as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntraining: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{path}: `make evaluate CHECKPOINT={path} DATA=...` measures it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
