"""Measure the ranges that INT8 needs: an arrow of its own, walked once for each checkpoint.

    videofer calibrate faces.npz
    videofer calibrate crops/ --checkpoint mine.safetensors

    checkpoint + faces  ->  least and greatest value of every activation  ->  <name>.ranges.json

Only the ranges are kept, no picture. They lie beside the checkpoint and name it by its
fingerprint; `export.to_int8` builds both INT8 graphs from them.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from tqdm import tqdm

from base.command import make_parser, run_command
from base.errors import ExportError
from base.files import write_whole
from export.faces import read_faces
from export.to_int8 import quantisable_tensors
from export.to_onnx import to_onnx
from networks.checkpoint import (
    Checkpoint,
    add_arguments,
    build,
    parameters,
    source_of,
)
from networks.entries import NETWORKS, Part

GRAPH_VERSION = 2  # changes with any code that gives a graph's tensors other names or values
NUM_FACES = 512
PERCENTILE = 99.999  # docs/measured/quantisation.md has others
BATCH = 8
NUM_BINS = 8192


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The ranges of one checkpoint's activations, and where they come from.

    Args:
        fingerprint: of the checkpoint they were measured on.
        faces: what they were measured with, in words.
        num_faces: how many those were.
        percentile: of the absolute values, within which the ranges lie; 100 is min-max.
        ranges: tensor of the FP32 graph -> [least, greatest] value.
    """

    fingerprint: str
    faces: str
    num_faces: int
    percentile: float
    ranges: dict[str, tuple[float, float]]


def quantised_part(checkpoint: Checkpoint) -> Part:
    """Find the one model of a network that INT8 changes: the one that looks at frames."""
    (part,) = (part for part in build(checkpoint).values() if part.quantised)
    return part


def fingerprint(checkpoint: Checkpoint) -> str:
    """Name what is quantised by a hash: graph, weights, and what is done to pixels."""
    digest = hashlib.sha256(f"{GRAPH_VERSION} {checkpoint.preprocessing}".encode())
    if not NETWORKS[checkpoint.network].pools:  # else variants differ behind the embedder
        digest.update(checkpoint.variant.encode())
    # No classifier's bias moves an activation that is quantised, and a prior moves the biases.
    biases = NETWORKS[checkpoint.network].classifiers
    for name in sorted(set(parameters(quantised_part(checkpoint))) - set(biases)):
        digest.update(name.encode())
        digest.update(checkpoint.state[name].numpy().tobytes())
    return digest.hexdigest()


def ranges_path(checkpoint: Path) -> Path:
    """Where a checkpoint's ranges lie: weights/fan.safetensors -> weights/fan.ranges.json."""
    name = checkpoint.name
    for suffix in (".safetensors", ".tar", ".pth", ".pt"):
        name = name.removesuffix(suffix)
    return checkpoint.with_name(f"{name}.ranges.json")


def read_calibration(path: Path, checkpoint: Checkpoint) -> Calibration:
    """Read the ranges of this checkpoint, and of no other.

    Raises:
        ExportError: where there are none, or none for these weights.
    """
    try:
        content = Calibration(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ExportError(f"{path} is not there") from error
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"{path} cannot be read ({error})") from error
    if content.fingerprint != fingerprint(checkpoint):
        raise ExportError(f"{path} was measured on other weights or preprocessing")
    return content


def calibrate(
    checkpoint: Checkpoint, images: np.ndarray, faces: str, percentile: float = PERCENTILE
) -> Calibration:
    """Measure every activation that is quantised.

    Args:
        images: (N, 224, 224, 3) uint8 faces, framed as the checkpoint's own.
        faces: what they are, in words.
        percentile: see Calibration.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(quantised_part(checkpoint), path)
        names = quantisable_tensors(path)
        session = open_at(path, names)
    least, greatest = np.zeros(len(names)), np.zeros(len(names))
    for i, values in activations(session, names, images, "ranges"):
        least[i] = min(least[i], values.min())
        greatest[i] = max(greatest[i], values.max())
    if percentile < 100:
        limits = np.maximum(np.maximum(-least, greatest), np.finfo(np.float32).tiny)
        bins = np.zeros((len(names), NUM_BINS), np.int64)
        for i, values in activations(session, names, images, "histograms"):
            places = (np.abs(values) * ((NUM_BINS - 1) / limits[i])).astype(np.int64)
            bins[i] += np.bincount(places.ravel(), minlength=NUM_BINS)
        shares = bins.cumsum(axis=1) / bins.sum(axis=1, keepdims=True)
        within = limits * ((shares < percentile / 100).sum(axis=1) + 1) / NUM_BINS
        least, greatest = np.maximum(least, -within), np.minimum(greatest, within)
    spans = {
        name: (float(f"{low:.6g}"), float(f"{high:.6g}"))
        for name, low, high in zip(names, least, greatest, strict=True)
    }
    return Calibration(
        fingerprint=fingerprint(checkpoint),
        faces=faces,
        num_faces=len(images),
        percentile=percentile,
        ranges=spans,
    )


def open_at(path: Path, names: list[str]) -> onnxruntime.InferenceSession:
    """Open a graph so that the named inner tensors can be read."""
    model = onnx.load(path)
    for name in names:
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def activations(
    session: onnxruntime.InferenceSession, names: list[str], images: np.ndarray, what: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Run the faces in batches; yield each named tensor's number and values, batch by batch."""
    starts = range(0, len(images), BATCH)
    for start in tqdm(starts, desc=what, unit="batch", disable=not sys.stderr.isatty()):
        yield from enumerate(session.run(names, {"frames": images[start : start + BATCH]}))


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("calibrate", __doc__)
    parser.add_argument("faces", type=Path, help="aligned faces: an .npz or a folder of pictures")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="weights to measure (default: the shipped ones)",
    )
    parser.add_argument(
        "--num-faces", type=int, default=NUM_FACES, help="chosen at random (default: %(default)s)"
    )
    parser.add_argument(
        "--percentile",
        type=float,
        default=PERCENTILE,
        help="of the values that the ranges cover; 100 is min-max (default: %(default)s)",
    )
    parser.add_argument("--note", help="what the faces are, in words (default: the path's name)")
    add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure the ranges of a checkpoint, write them beside it."""
    source = source_of(args)
    checkpoint = source.read()
    faces = read_faces(args.faces, checkpoint.labels, args.num_faces)
    words = args.note or args.faces.name
    calibration = calibrate(checkpoint, faces.images, words, args.percentile)
    target = ranges_path(source.path)
    replaced = target.exists()
    write_whole(target, (json.dumps(asdict(calibration), indent=1) + "\n").encode())
    print(f"{target}: of {len(faces.images)} faces{', in place of what was there' * replaced}")
    print(f"`{source.to_command('export')}` builds INT8 from it")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if not 0 < args.percentile <= 100 or args.num_faces < 1:
        build_parser().error("expected --percentile in (0, 100] and --num-faces of at least 1")
    return run_command("calibrate", lambda: run(args))
