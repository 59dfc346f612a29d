"""Turn a FAN checkpoint into what Triton serves.

    python -m export
    python -m export --checkpoint Resnet18_FAN.pth.tar --labels afew

Writes the graphs of every precision into build/, and from them model_repository/*/1/ and
labels.txt. INT8 needs ranges that were measured on the same weights (`export.calibrate`).
TensorRT's plans are built from build/fp16/ and build/int8/ (`export.to_plan`).
"""

import argparse
import sys
from pathlib import Path

from export.calibrate import Calibration, ranges_path, read_calibration
from export.checkpoint import (
    Checkpoint,
    add_arguments,
    build_attention,
    build_embedder,
    read_from_arguments,
)
from export.errors import ExportError
from export.profiles import ROOT
from export.repository import install_labels, install_model
from export.to_int8 import to_int8, to_int8_cpu
from export.to_onnx import Precision, attention_to_onnx, embedder_to_onnx

FLOATS: tuple[Precision, ...] = ("fp32", "fp16")
INT8_FILENAME = "model_int8.onnx"  # default_model_filename of fan_embedder's platform cpu
NUM_CLASSES = 7  # dims of `logits` in model_repository/fan/config.pbtxt and fan_attention's


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=ROOT / "weights" / "fan.safetensors",
        help="weights to export: ours (.safetensors) or the authors' (.pth.tar) "
        "(default: weights/fan.safetensors)",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=ROOT / "model_repository",
        help="model repository to fill (default: model_repository)",
    )
    parser.add_argument(
        "--build",
        type=Path,
        default=ROOT / "build",
        help="folder for the ONNX files (default: build)",
    )
    add_arguments(parser)
    return parser


def export(
    checkpoint: Checkpoint, calibration: Calibration | None, repository: Path, build: Path
) -> list[Path]:
    """Walk every arrow for one checkpoint.

    Args:
        calibration: the ranges of this checkpoint; without them there is no INT8, and what an
            earlier export left of it is removed.

    Returns:
        The files written into `repository`.

    Raises:
        ExportError: where the checkpoint does not fit the repository's configs.
    """
    if len(checkpoint.labels) != NUM_CLASSES:
        raise ExportError(
            f"the checkpoint has {len(checkpoint.labels)} classes; fan serves {NUM_CLASSES} "
            "(dims of logits in model_repository/fan/config.pbtxt and fan_attention/)"
        )
    embedder, attention = build_embedder(checkpoint), build_attention(checkpoint)
    graphs = {name: build / name / "fan_embedder.onnx" for name in (*FLOATS, "int8", "int8_cpu")}
    for precision in FLOATS:
        embedder_to_onnx(embedder, graphs[precision], precision)
        attention_to_onnx(attention, build / precision / "fan_attention.onnx", precision)
    installed = [
        install_model(graphs["fp32"], repository),
        install_model(build / "fp32" / "fan_attention.onnx", repository),
        *install_labels(checkpoint.labels, repository),
    ]
    folder = repository / "fan_embedder" / "1"
    stale = [graphs["int8"], graphs["int8_cpu"], folder / INT8_FILENAME]
    if not calibration:
        stale += folder.glob("model_int8.plan*")
    for path in stale:
        path.unlink(missing_ok=True)
    if calibration:
        to_int8(graphs["fp16"], calibration.ranges, graphs["int8"])
        to_int8_cpu(graphs["fp32"], calibration.ranges, graphs["int8_cpu"])
        installed.append(install_model(graphs["int8_cpu"], repository, INT8_FILENAME))
    return installed


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        checkpoint = read_from_arguments(args.checkpoint, args)
        try:
            calibration = read_calibration(ranges_path(args.checkpoint), checkpoint)
        except ExportError as error:
            print(f"export: no INT8: {error}", file=sys.stderr)
            calibration = None
        for path in export(checkpoint, calibration, args.repository, args.build):
            print(path)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
