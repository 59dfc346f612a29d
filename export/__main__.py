"""Turn a FAN checkpoint into what Triton serves.

    python -m export
    python -m export --checkpoint Resnet18_FAN.pth.tar --labels afew

Writes build/fp32/*.onnx, and model_repository/*/1/ and labels.txt from them.
"""

import argparse
import sys
from pathlib import Path

from export.checkpoint import (
    Checkpoint,
    add_arguments,
    build_attention,
    build_embedder,
    read_from_arguments,
)
from export.errors import ExportError
from export.repository import install_labels, install_model
from export.to_onnx import attention_to_onnx, embedder_to_onnx

ROOT = Path(__file__).resolve().parents[1]
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


def export(checkpoint: Checkpoint, repository: Path, build: Path) -> list[Path]:
    """Walk every arrow for one checkpoint.

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
    embedder = build / "fp32" / "fan_embedder.onnx"
    attention = build / "fp32" / "fan_attention.onnx"
    embedder_to_onnx(build_embedder(checkpoint), embedder)
    attention_to_onnx(build_attention(checkpoint), attention)
    installed = [install_model(path, repository) for path in (embedder, attention)]
    return installed + install_labels(checkpoint.labels, repository)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        checkpoint = read_from_arguments(args.checkpoint, args)
        for path in export(checkpoint, args.repository, args.build):
            print(path)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
