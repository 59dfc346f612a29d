"""Read and write the networks' weights.

    <name>.safetensors    our own: FP16 weights with network, labels, variant, preprocessing inside
    <name>.pth[.tar]      the authors': weights, perhaps beneath `state_dict` or `model_state_dict`

    ->  Checkpoint  ->  build()  ->  export.to_onnx

The authors' files name neither their labels nor their preprocessing, so the caller does.
Convert one once, and the file carries what it needs from then on:

    python -m networks.checkpoint fan.pth.tar weights/fan.safetensors --labels fer2013 --color gray
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from base import ROOT
from base.errors import CheckpointError, FerError
from networks.entries import NETWORKS, Network, Part
from networks.preprocessing import Color, Preprocessing
from networks.resnet import NUM_FEATURES, ResNet18

# The order in which each data set's authors, or those of its networks, number their emotions.
LABELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fer2013": ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
        # FER2013's own numbers, for networks that learn FER+'s votes for contempt, too.
        "fer2013+contempt": (
            *("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
            "contempt",
        ),
        "afew": ("happy", "angry", "disgust", "fear", "sad", "neutral", "surprise"),
        "ckplus": ("happy", "angry", "disgust", "fear", "sad", "contempt", "surprise"),
        "affectnet7": ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"),
        "affectnet8": (
            *("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"),
            "contempt",
        ),
        "ferplus": (
            *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear"),
            "contempt",
        ),
        "rafdb": ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"),
    }
)
PRIORS = ("even", "natural")  # how common the emotions are; or a file of shares
WEIGHTS = ROOT / "weights"
FRAME_CLASSIFIER = ("fc.weight", "fc.bias")  # of single frames, in an embedder's file
HEAD_KEYS = ("alpha.", "beta.", "pred_fc1.", "pred_fc2.", "fc.")  # what is FAN's, not ResNet's
STATE_KEYS = ("state_dict", "model_state_dict")  # where torch files keep the weights
NUM_KEYS_NAMED = 12  # of missing or unexpected keys in one error; a wrong network has hundreds


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network's weights and all that is needed to serve them.

    Args:
        state: parameter name, as the authors' files have it, to float32 tensor; no batch counters.
        labels: the classes' emotions, in the order of the logits.
        preprocessing: what the weights expect of their pixels.
        variant: of the network; by default its first ("relation", full FAN).
        notes: free text about the weights' origin, name to text.
        network: a name in NETWORKS.
        natural: the labels' shares in what the weights learnt from, where they are kept apart from
            them (`networks.prior`); empty where the weights know them.
        prior: what `networks.prior` adds by default: "even" or "natural".
    """

    state: Mapping[str, Tensor]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    variant: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    network: str = "fan"
    natural: tuple[float, ...] = ()
    prior: str = "natural"

    def __post_init__(self) -> None:
        network = NETWORKS[self.network]
        if not self.variant:
            object.__setattr__(self, "variant", network.variants[0])
        if self.variant not in network.variants:
            expected = " or ".join(map(repr, network.variants)) if network.variants[0] else "none"
            raise CheckpointError(
                f"variant is {self.variant!r}; {network.title} has {expected} (--variant)"
            )
        size, color = self.preprocessing.size, self.preprocessing.color
        if size not in network.sizes or color not in network.colors:
            raise CheckpointError(
                f"its preprocessing is of size {size} and color {color!r}; {network.title} takes "
                f"size {' or '.join(map(str, network.sizes))}, color {' or '.join(network.colors)}"
            )
        check_state(self.state, network, self.variant)
        num_classes = len(self.state[network.classifiers[0]])
        if len(self.labels) != num_classes:
            raise CheckpointError(
                f"{len(self.labels)} labels ({', '.join(self.labels)}) for {num_classes} classes "
                f"({network.classifiers[0]} in the checkpoint); name the labels with "
                "--labels"
            )
        if self.natural and (
            len(self.natural) != num_classes or not all(0 < s <= 1 for s in self.natural)
        ):
            raise CheckpointError(
                f"its natural shares are {self.natural}; expected {num_classes}, each above 0"
            )
        if self.prior not in PRIORS:
            raise CheckpointError(f"its prior is {self.prior!r}; expected 'even' or 'natural'")


def build(checkpoint: Checkpoint) -> dict[str, Part]:
    """Build the network's models, by their names, with the checkpoint's weights.

    They are in evaluation mode; an optional one whose weights the checkpoint lacks is left out.
    """
    network = NETWORKS[checkpoint.network]
    num_classes = len(checkpoint.labels)
    parts = {}
    for part in network.parts(num_classes, checkpoint.variant, checkpoint.preprocessing):
        names = parameters(part)
        if all(name in checkpoint.state for name in names):
            load_state(part.module, {names[k]: checkpoint.state[k] for k in names})
            part.module.eval().requires_grad_(False)
            parts[part.model] = part
    return parts


def parameters(part: Part) -> dict[str, str]:
    """Map the names of a model's parameters in a checkpoint to those in its module."""
    own = (name for name in part.module.state_dict() if not is_counter(name))
    return {name.removeprefix("backbone."): name for name in own}


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


@dataclass(frozen=True)
class Embedder:
    """The embedder's weights alone, to start a training from.

    Args:
        state: ResNet-18's weights, and `fc.*` where the file has a classifier of single frames.
        labels: of that classifier; empty where there is none or the file does not say.
        natural: their shares in what it learnt from, where they are kept apart from it.
    """

    state: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()
    natural: tuple[float, ...] = ()


def read_embedder(path: Path) -> Embedder:
    """Read the embedder of FAN, of a backbone without attention heads, or of another ResNet-18.

    The last is a torch file with torchvision's names, perhaps all behind one prefix.

    Raises:
        CheckpointError: for a file that is missing, unreadable or no ResNet-18.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state, metadata = read_safetensors(path)
            labels, natural = (json.loads(metadata.get(k, "[]")) for k in ("labels", "natural"))
        else:
            state = unwrapped(read_torch(path))
            labels, natural = read_torch_list(path, "labels"), read_torch_list(path, "natural")
        return Embedder(check_embedder(state), tuple(map(str, labels)), tuple(map(float, natural)))
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a ResNet-18 out of what it was trained in: `layers.conv1.weight` is conv1's weight."""
    last = "layer4.1.conv2.weight"
    prefixes = {k.removesuffix(last) for k in state if k == last or k.endswith(f".{last}")}
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{len(prefixes)} ResNet-18s, behind {', '.join(sorted(map(repr, prefixes)))}; "
            "expected a file with one of them"
        )
    prefix = prefixes.pop() if prefixes else ""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


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
    if all(k in state for k in FRAME_CLASSIFIER) and state["fc.weight"].shape[1:] == (
        NUM_FEATURES,
    ):
        taken += FRAME_CLASSIFIER  # RAN's, of the same name, sees 1024
    for key in taken:
        if not state[key].isfinite().all():
            raise CheckpointError(f"{key} has values that are NaN or infinite")
    return {k: state[k] for k in taken}


def refuse_others(state: Mapping[str, Tensor], network: Network) -> None:
    """Refuse an authors' file whose names are all of another network, and say of which."""

    def fits(other: Network) -> bool:
        renamed = {other.rename(key): value for key, value in state.items()}
        return any(
            renamed.keys() == expected_shapes(renamed, other, variant).keys()
            for variant in other.variants
        )

    if fits(network):
        return
    other = next((other for other in NETWORKS.values() if fits(other)), None)
    if other:
        raise CheckpointError(
            f"the weights are {other.title}'s, not {network.title}'s: to export, convert or "
            f"measure them, say --model {other.name}"
        )


def expected_shapes(
    state: Mapping[str, Tensor], network: Network, variant: str
) -> dict[str, Sequence[int]]:
    """List the parameters that a network has, with as many classes and parts as the weights do."""
    classifier = state.get(network.classifiers[0])
    num_classes = len(classifier) if classifier is not None and classifier.ndim == 1 else 7
    shapes: dict[str, Sequence[int]] = {}
    with torch.device("meta"):
        parts = network.parts(num_classes, variant, network.preprocessing)
    for part in parts:
        names = parameters(part)
        if not part.optional or any(name in state for name in names):
            own = part.module.state_dict()
            shapes |= {name: own[names[name]].shape for name in names}
    return shapes


def check_state(state: Mapping[str, Tensor], network: Network, variant: str) -> None:
    """Refuse weights that are not exactly a network's.

    Raises:
        CheckpointError: naming the missing, unexpected or misshapen parameters.
    """
    shapes = expected_shapes(state, network, variant)
    missing = [k for k in shapes if k not in state]
    unexpected = [k for k in state if k not in shapes]
    if missing or unexpected:
        backbone = missing and all(k.startswith(HEAD_KEYS) for k in missing)
        hint = (
            "; a backbone alone can start a training: `videofer train --init`" if backbone else ""
        )
        raise CheckpointError(
            f"the weights are not {network.title}'s: "
            f"missing {name_keys(missing)}; unexpected {name_keys(unexpected)}{hint}"
        )
    for key, shape in shapes.items():
        if state[key].shape != shape:
            raise CheckpointError(
                f"{key} has shape {list(state[key].shape)}; {network.title}'s has {list(shape)}"
            )
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
    network: str | None = None,
    labels: tuple[str, ...] | None = None,
    color: Color | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """Read either file format; what the caller names overrides what the file says.

    Args:
        path: a `.safetensors` file with our metadata, or a torch file as the authors save it.
        network: a name in NETWORKS; default: the file's, else FAN. A file that says another is
            refused.
        labels: emotions in the order of the logits; required where the file has none.
        color: default: the file's, else the network's.
        variant: default: the file's, else the network's first.

    Raises:
        CheckpointError: for a file that is missing, unreadable or not the network's.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; --checkpoint names it")
    try:
        if path.suffix == ".safetensors":
            state, metadata = read_safetensors(path, network)
            chosen = NETWORKS[metadata["architecture"]]
        else:
            chosen = NETWORKS[network or "fan"]
            state, metadata = read_torch(path), {}
            refuse_others(state, chosen)
            state = {chosen.rename(key): value for key, value in state.items()}
        labels = labels or tuple(map(str, json.loads(metadata.get("labels", "[]"))))
        if not labels:
            raise CheckpointError(
                "the file does not say its labels; name them with --labels "
                f"{'|'.join(LABELS)} or a text file of one label a line"
            )
        preprocessing = chosen.preprocessing
        if "preprocessing" in metadata:
            preprocessing = parse_preprocessing(metadata["preprocessing"])
        if color is not None:
            preprocessing = replace(preprocessing, color=color)
        variant = variant or metadata.get("variant", "")
        notes = json.loads(metadata.get("notes", "{}"))
        natural = tuple(map(float, json.loads(metadata.get("natural", "[]"))))
        prior = metadata.get("prior", "natural")
        return Checkpoint(
            state=state,
            labels=labels,
            preprocessing=preprocessing,
            variant=variant,
            notes=notes,
            network=chosen.name,
            natural=natural,
            prior=prior,
        )
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


def read_safetensors(
    path: Path, network: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read weights as float32, and the metadata, of one of our own files.

    Args:
        network: that it must be of; None for any.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            state = {name: file.get_tensor(name).float() for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"not a readable safetensors file ({error})") from error
    expected = [network] if network else list(NETWORKS)
    if metadata.get("architecture") not in expected:
        raise CheckpointError(
            f"its metadata says architecture {metadata.get('architecture')!r}; "
            f"expected {' or '.join(map(repr, expected))} (--model)"
        )
    return state, metadata


def read_torch(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file saved as the authors do."""
    state = load_torch(path)
    for key in STATE_KEYS:
        if isinstance(state, dict) and key in state:
            state = state[key]
            break
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise CheckpointError(
            "expected a dict of tensors, or one with such a dict as 'state_dict' or "
            "'model_state_dict', as the authors save"
        )
    named = {str(key).removeprefix("module."): value for key, value in state.items()}
    return {key: value.float() for key, value in named.items() if not is_counter(key)}


def read_torch_list(path: Path, name: str) -> list[Any]:
    """Read a list that our own backbone files have beside the weights; the authors' have none."""
    content = load_torch(path)
    found = content.get(name, []) if isinstance(content, dict) else []
    return found if isinstance(found, list) else []


def load_torch(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read a torch file without running code from it.

    Raises:
        CheckpointError: for a file that cannot be read, whatever its bytes are.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise CheckpointError(f"not a readable torch checkpoint ({error})") from error
    except Exception as error:
        # No narrower: the unpickler raises whatever a file's bytes provoke (KeyError, IndexError,
        # struct.error, ...). Its words are left out, as they propose weights_only=False: to run
        # code from the file.
        raise CheckpointError(
            "not a readable torch checkpoint: cut off, of another format, or more than weights "
            f"({type(error).__name__})"
        ) from error


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write our own format: FP16 weights, and JSON metadata that read_checkpoint understands.

    What FP16 cannot hold, such as the variance of DAN's last layer, stays in FP32.
    """
    metadata = {
        "architecture": checkpoint.network,
        "variant": checkpoint.variant,
        "labels": json.dumps(checkpoint.labels),
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
        "notes": json.dumps(dict(checkpoint.notes)),
    }
    if checkpoint.natural:
        metadata |= {"natural": json.dumps(checkpoint.natural), "prior": checkpoint.prior}
    state = {}
    for name, value in checkpoint.state.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{name} has values that are NaN or infinite")
        half = value.half()
        state[name] = (half if half.isfinite().all() else value).contiguous()
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
        "--model",
        choices=list(NETWORKS),
        help="network that the weights are of (default: the checkpoint's, else fan)",
    )
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
        help="of FAN: relation (full FAN) or self (its first stage alone); of RAN: regions8 or "
        "regions6 (default: the checkpoint's, else the first of these)",
    )
    parser.add_argument(
        "--prior",
        type=parse_prior,
        help="how common each emotion is: even, natural (as in what the weights learnt from), or a "
        "JSON file of shares; for weights that were trained with it kept apart (default: the "
        "checkpoint's)",
    )


def shipped(network: str) -> Path:
    """Where a network's shipped weights are, if there are any."""
    return WEIGHTS / f"{network}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint's file, and what it does not say itself: see read_checkpoint."""

    path: Path
    network: str | None = None
    labels: tuple[str, ...] | None = None
    color: Color | None = None
    variant: str | None = None
    prior: str | None = None

    def to_command(self, verb: str) -> str:
        """Write the command that takes it: "videofer export --model ran --checkpoint ran.pth"."""
        known = (name for name, labels in LABELS.items() if labels == self.labels)
        values = {
            "--model": self.network,
            "--checkpoint": None if self.path == shipped(self.network or "fan") else self.path,
            "--labels": self.labels and next(known, "labels.txt"),
            "--color": self.color,
            "--variant": self.variant,
            "--prior": self.prior,
        }
        options = (f"{k} {quote(str(v))}" for k, v in values.items() if v)
        return " ".join(["videofer", verb, *options])

    def read(self) -> Checkpoint:
        """Read it.

        Raises:
            CheckpointError: as read_checkpoint does.
        """
        return read_checkpoint(
            self.path,
            network=self.network,
            labels=self.labels,
            color=self.color,
            variant=self.variant,
        )


def source_of(args: argparse.Namespace) -> Source:
    """Turn the options of add_arguments and --checkpoint into a Source; default: shipped weights.

    Raises:
        CheckpointError: where no checkpoint is named, and none is shipped.
    """
    name = args.model or "fan"
    path = args.checkpoint or shipped(name)
    if not args.checkpoint and not path.is_file():
        raise CheckpointError(
            f"no weights of {NETWORKS[name].title} are shipped; name a checkpoint of it with "
            "--checkpoint <file>, and its emotions with --labels where it does not say"
        )
    return Source(
        path=path,
        network=args.model,
        labels=args.labels,
        color=args.color,
        variant=args.variant,
        prior=args.prior,
    )


def parse_prior(text: str) -> str:
    """Take a prior's name, or a file's path, which holds from whatever folder it is read later."""
    return text if text in PRIORS else str(Path(text).resolve())


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
        args.checkpoint = args.source
        checkpoint = source_of(args).read()
        if args.prior:
            if not checkpoint.natural:
                raise CheckpointError("--prior: these weights know theirs, and have no other")
            checkpoint = replace(checkpoint, prior=args.prior)
        notes = {**checkpoint.notes, **dict(args.note)}
        write_checkpoint(replace(checkpoint, notes=notes), args.target)
    except FerError as error:
        print(f"networks.checkpoint: {error}", file=sys.stderr)
        return 1
    print(args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
