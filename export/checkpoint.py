"""Read and write FAN's weights.

    <name>.safetensors  our own: FP16 weights with labels, variant and preprocessing inside
    <name>.pth.tar      the authors': {'epoch', 'state_dict', 'accuracy'}, keys begin with "module."

    ->  Checkpoint  ->  build_embedder(), build_attention()  ->  export.to_onnx

The authors' files name neither their labels nor their preprocessing, so the caller does.
Convert one once, and the file carries what it needs from then on:

    python -m export.checkpoint fan.pth.tar weights/fan.safetensors --labels fer2013 --color gray
"""

import argparse
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from export.errors import CheckpointError, ExportError
from export.fan import (
    NUM_FEATURES,
    Color,
    FrameAttention,
    FrameEmbedder,
    Preprocessing,
    Variant,
)
from export.resnet import ResNet18

ARCHITECTURE = "fan"

# The order in which each data set's authors number their emotions.
LABELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fer2013": ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
        "afew": ("happy", "angry", "disgust", "fear", "sad", "neutral", "surprise"),
        "ckplus": ("happy", "angry", "disgust", "fear", "sad", "contempt", "surprise"),
    }
)
FRAME_CLASSIFIER = ("fc.weight", "fc.bias")  # of single frames; a checkpoint may lack it
HEAD_KEYS = ("alpha.", "beta.", "pred_fc1.", "pred_fc2.", "fc.")
NUM_KEYS_NAMED = 12  # of missing or unexpected keys in one error; a wrong network has hundreds


@dataclass(frozen=True)
class Checkpoint:
    """FAN's weights and all that is needed to serve them.

    Args:
        state: parameter name, without "module.", to float32 tensor; no batch counters. `fc.*`, a
            classifier of single frames, may be among them.
        labels: the classes' emotions, in the order of the logits.
        preprocessing: what the weights expect of their pixels.
        variant: "relation" (full FAN) or "self" (self-attention alone).
        notes: free text about the weights' origin, name to text.
    """

    state: Mapping[str, Tensor]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    variant: Variant = "relation"
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.variant not in ("relation", "self"):
            raise CheckpointError(f"variant is {self.variant!r}; expected 'relation' or 'self'")
        check_state(self.state)
        num_classes = len(self.state["pred_fc2.bias"])
        if len(self.labels) != num_classes:
            raise CheckpointError(
                f"{len(self.labels)} labels ({', '.join(self.labels)}) for {num_classes} classes "
                f"(pred_fc2 in the checkpoint); name the labels with --labels"
            )


def build_embedder(checkpoint: Checkpoint) -> FrameEmbedder:
    """Build the embedder with the checkpoint's weights, in evaluation mode."""
    backbone = ResNet18()
    load_state(backbone, embedder_weights(checkpoint.state))
    return FrameEmbedder(backbone, checkpoint.preprocessing).eval().requires_grad_(False)


def build_attention(checkpoint: Checkpoint) -> FrameAttention:
    """Build the attention model with the checkpoint's weights, in evaluation mode."""
    attention = FrameAttention(len(checkpoint.labels), checkpoint.variant)
    load_state(attention, {k: checkpoint.state[k] for k in attention.state_dict()})
    return attention.eval().requires_grad_(False)


def embedder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the embedder's weights out of all of FAN's."""
    return {k: v for k, v in state.items() if not k.startswith(HEAD_KEYS)}


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill `module` with `state`; only BatchNorm's batch counters, unused here, may be absent."""
    counters = {k: v for k, v in module.state_dict().items() if is_counter(k)}
    module.load_state_dict({**counters, **state}, strict=True)


def is_counter(key: str) -> bool:
    """Tell BatchNorm's training-time batch counters from weights."""
    return key.endswith("num_batches_tracked")


def expected_shapes(num_classes: int, *, classifies_frames: bool) -> dict[str, tuple[int, ...]]:
    """Name every parameter of FAN and its shape."""
    with torch.device("meta"):
        state = {**ResNet18().state_dict(), **FrameAttention(num_classes).state_dict()}
    shapes = {k: tuple(v.shape) for k, v in state.items() if not is_counter(k)}
    if classifies_frames:
        shapes |= zip(FRAME_CLASSIFIER, ((num_classes, NUM_FEATURES), (num_classes,)), strict=True)
    return shapes


@dataclass(frozen=True)
class Embedder:
    """The embedder's weights alone, to start a training from.

    Args:
        state: ResNet-18's weights, and `fc.*` where the file has a classifier of single frames.
        labels: of that classifier; empty where there is none or the file does not say.
    """

    state: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()


def read_embedder(path: Path) -> Embedder:
    """Read the embedder of a backbone without attention heads, or of FAN.

    Raises:
        CheckpointError: for a file that is missing, unreadable or no ResNet-18.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state, metadata = read_safetensors(path)
            labels = tuple(map(str, json.loads(metadata.get("labels", "[]"))))
        else:
            state, labels = read_torch(path), read_torch_labels(path)
        return Embedder(check_embedder(state), labels)
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_embedder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ResNet-18's weights and, where it is whole, its classifier; refuse another network."""
    with torch.device("meta"):
        expected = {k: v.shape for k, v in ResNet18().state_dict().items() if not is_counter(k)}
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected and not k.startswith(HEAD_KEYS)]
    misshapen = [k for k in expected if k in state and state[k].shape != expected[k]]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"the weights are not a ResNet-18's: missing {name_keys(missing)}; unexpected "
            f"{name_keys(unexpected)}; of another shape {name_keys(misshapen)}"
        )
    taken = list(expected)
    if all(k in state for k in FRAME_CLASSIFIER):
        taken += FRAME_CLASSIFIER
    for key in taken:
        if not state[key].isfinite().all():
            raise CheckpointError(f"{key} has values that are NaN or infinite")
    return {k: state[k] for k in taken}


def check_state(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly FAN's.

    Raises:
        CheckpointError: naming the missing, unexpected or misshapen parameters.
    """
    bias = state.get("pred_fc2.bias")
    expected = expected_shapes(
        len(bias) if bias is not None else 7,
        classifies_frames=any(k in state for k in FRAME_CLASSIFIER),
    )
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    if missing or unexpected:
        backbone = missing and all(k.startswith(HEAD_KEYS) for k in missing)
        hint = "; a backbone alone can start a training: `make train INIT=...`" if backbone else ""
        raise CheckpointError(
            "the weights are not FAN's (ResNet-18, alpha, beta, pred_fc1, pred_fc2): "
            f"missing {name_keys(missing)}; unexpected {name_keys(unexpected)}{hint}"
        )
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            got = list(state[key].shape)
            raise CheckpointError(f"{key} has shape {got}; FAN's has {list(shape)}")
        if not state[key].isfinite().all():
            raise CheckpointError(f"{key} has values that are NaN or infinite")


def name_keys(keys: Sequence[str]) -> str:
    """List up to NUM_KEYS_NAMED keys and count the rest."""
    if not keys:
        return "none"
    rest = len(keys) - NUM_KEYS_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{len(keys)} ({', '.join(keys[:NUM_KEYS_NAMED])}{more})"


def read_checkpoint(
    path: Path,
    *,
    labels: tuple[str, ...] | None = None,
    color: Color | None = None,
    variant: Variant | None = None,
) -> Checkpoint:
    """Read either file format; what the caller names overrides what the file says.

    Args:
        path: a `.safetensors` file with our metadata, or a torch file as the authors save it.
        labels: emotions in the order of the logits; required where the file has none.
        color: default: the file's, else the authors' RGB.
        variant: default: the file's, else full FAN.

    Raises:
        CheckpointError: for a file that is missing, unreadable or not FAN's.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; CHECKPOINT=<file> or --checkpoint names it")
    try:
        if path.suffix == ".safetensors":
            state, metadata = read_safetensors(path)
        else:
            state, metadata = read_torch(path), {}
        labels = labels or tuple(map(str, json.loads(metadata.get("labels", "[]"))))
        if not labels:
            raise CheckpointError(
                f"the file does not say its labels; name them with --labels {'|'.join(LABELS)} "
                "or a text file of one label a line"
            )
        preprocessing = parse_preprocessing(metadata.get("preprocessing", "{}"))
        if color is not None:
            preprocessing = replace(preprocessing, color=color)
        variant = variant or cast(Variant, metadata.get("variant", "relation"))
        notes = json.loads(metadata.get("notes", "{}"))
        return Checkpoint(state, labels, preprocessing, variant, notes)
    except (CheckpointError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_preprocessing(text: str) -> Preprocessing:
    """Read the JSON that write_checkpoint wrote; what it leaves out is the authors'."""
    values: dict[str, Any] = json.loads(text)
    if not isinstance(values, dict):
        raise CheckpointError(f"its metadata's preprocessing is {text}; expected a JSON object")
    for name in values.keys() & {"mean", "std"}:
        values[name] = tuple(values[name])
    return Preprocessing(**values)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read weights as float32, and the metadata, of one of our own files."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            state = {name: file.get_tensor(name).float() for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"not a readable safetensors file ({error})") from error
    if metadata.get("architecture") != ARCHITECTURE:
        raise CheckpointError(
            f"its metadata says architecture {metadata.get('architecture')!r}; "
            f"expected {ARCHITECTURE!r}"
        )
    return state, metadata


def read_torch(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file saved as the authors do."""
    content = load_torch(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError("expected a dict with a 'state_dict' of tensors, as the authors save")
    named = {str(key).removeprefix("module."): value for key, value in state.items()}
    return {key: value.float() for key, value in named.items() if not is_counter(key)}


def read_torch_labels(path: Path) -> tuple[str, ...]:
    """Read the labels that our own backbone files name; the authors' name none."""
    content = load_torch(path)
    labels = content.get("labels", []) if isinstance(content, dict) else []
    return tuple(map(str, labels))


def load_torch(path: Path) -> object:
    """Read a torch file without running code from it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        # torch's own words propose to load it with weights_only=False: to run code from it.
        raise CheckpointError(
            "not a readable torch checkpoint: cut off, of another format, or more than weights"
        ) from error


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write our own format: FP16 weights, and JSON metadata that read_checkpoint understands."""
    metadata = {
        "architecture": ARCHITECTURE,
        "variant": checkpoint.variant,
        "labels": json.dumps(checkpoint.labels),
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
        "notes": json.dumps(dict(checkpoint.notes)),
    }
    state = {name: value.half().contiguous() for name, value in checkpoint.state.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{name} has values beyond 65,504, the greatest of FP16")
    try:
        save_file(state, path, metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written ({error})") from error


def parse_labels(text: str) -> tuple[str, ...]:
    """Turn a data set's name, or the path of a file with one label a line, into labels."""
    if text in LABELS:
        return LABELS[text]
    try:
        lines = (line.strip() for line in Path(text).read_text().splitlines())
        labels = tuple(line for line in lines if line)
    except (OSError, UnicodeDecodeError):
        labels = ()
    if not labels:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither one of {', '.join(LABELS)} nor a file of one label a line"
        )
    return labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a checkpoint's file does not."""
    parser.add_argument(
        "--labels",
        type=parse_labels,
        help=f"emotions in the order of the logits: {', '.join(LABELS)}, or a file of one label "
        "a line (default: the checkpoint's; the authors' files have none)",
    )
    parser.add_argument(
        "--color",
        choices=["rgb", "gray"],
        help="what the weights learnt from (default: the checkpoint's, else rgb)",
    )
    parser.add_argument(
        "--variant",
        choices=["relation", "self"],
        help="full FAN, or its first stage alone (default: the checkpoint's, else relation)",
    )


def read_from_arguments(path: Path, args: argparse.Namespace) -> Checkpoint:
    """Read `path` as the options of add_arguments say."""
    return read_checkpoint(path, labels=args.labels, color=args.color, variant=args.variant)


def parse_note(text: str) -> tuple[str, str]:
    """Split NAME=TEXT."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=TEXT")
    return name, value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="checkpoint to read, either format")
    parser.add_argument("target", type=Path, help="safetensors file to write")
    parser.add_argument(
        "--note", type=parse_note, action="append", default=[], help="NAME=TEXT kept in the file"
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        checkpoint = read_from_arguments(args.source, args)
        notes = {**checkpoint.notes, **dict(args.note)}
        write_checkpoint(replace(checkpoint, notes=notes), args.target)
    except ExportError as error:
        print(f"export.checkpoint: {error}", file=sys.stderr)
        return 1
    print(args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
