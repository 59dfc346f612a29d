"""Turn checkpoints into what Triton serves.

    python -m export
    python -m export --checkpoint Resnet18_FAN.pth.tar --labels afew
    python -m export --model dan --checkpoint affecnet8.pth --labels affectnet8
    python -m export --model all

Writes the graphs of every precision into build/, and from them model_repository/*/1/ and
labels.txt. INT8 needs ranges that were measured on the same weights (`export.calibrate`).
TensorRT's plans are built from build/fp16/ and build/int8/ (`export.to_plan`).
"""

import argparse
import sys
from pathlib import Path

from export.calibrate import Calibration, ranges_path, read_calibration
from export.checkpoint import Checkpoint, Source, add_arguments, build, shipped, source_of
from export.errors import ExportError
from export.networks import NETWORKS, Part
from export.prior import with_prior
from export.profiles import ROOT
from export.remembered import forget, recall_all, remember
from export.repository import LABELS_FILE, install_labels, install_model
from export.to_int8 import to_int8
from export.to_int8_cpu import to_int8_cpu
from export.to_onnx import Precision, to_onnx

FLOATS: tuple[Precision, ...] = ("fp32", "fp16")
INT8_FILENAME = "model_int8.onnx"  # default_model_filename of platforms cpu and cpu_openvino
ALL = "all"
SHARED = "score_fusion"  # of several networks


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="weights to export: ours (.safetensors) or the authors' (.pth, .pth.tar) "
        "(default: the shipped ones, weights/<model>.safetensors)",
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
    parser.add_argument(
        "--again",
        action="store_true",
        help="export every network as it was last exported, else from its shipped weights",
    )
    add_arguments(parser, ALL)
    return parser


def export(
    checkpoint: Checkpoint, calibration: Calibration | None, repository: Path, build_folder: Path
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
    network = NETWORKS[checkpoint.network]
    if network.num_classes not in (None, len(checkpoint.labels)):
        raise ExportError(
            f"the checkpoint has {len(checkpoint.labels)} classes; {network.name} serves "
            f"{network.num_classes} (dims of logits in model_repository/{network.name}/"
            "config.pbtxt and those of its models)"
        )
    parts = build(checkpoint)
    installed = []
    for part in parts.values():
        installed += export_part(part, calibration, repository, build_folder)
    for ensemble, models in network.ensembles.items():
        if parts.keys() >= set(models):
            installed += install_labels(checkpoint.labels, (ensemble, *models), repository)
        else:
            (repository / ensemble / LABELS_FILE).unlink(missing_ok=True)
    return installed


def export_part(
    part: Part, calibration: Calibration | None, repository: Path, build_folder: Path
) -> list[Path]:
    """Walk every arrow for one model; return the files written into `repository`."""
    kinds = (*FLOATS, "int8", "int8_cpu")
    graphs = {kind: build_folder / kind / f"{part.model}.onnx" for kind in kinds}
    for precision in FLOATS:
        to_onnx(part, graphs[precision], precision)
    installed = [install_model(graphs["fp32"], repository)]
    if not part.quantised:
        return installed
    folder = repository / part.model / "1"
    stale = [graphs["int8"], graphs["int8_cpu"], folder / INT8_FILENAME]
    if not calibration:
        stale += folder.glob("model_int8.plan*")
    for path in stale:
        path.unlink(missing_ok=True)
    if calibration:
        spared = (*part.spared, *part.spared_by_tensorrt)
        to_int8(graphs["fp16"], calibration.ranges, graphs["int8"], spared)
        to_int8_cpu(graphs["fp32"], calibration.ranges, graphs["int8_cpu"], part.spared)
        installed.append(install_model(graphs["int8_cpu"], repository, INT8_FILENAME))
    return installed


def choose(args: argparse.Namespace) -> list[Source]:
    """List the checkpoints to export."""
    if args.model != ALL and not args.again:
        return [source_of(args)]
    if args.checkpoint or args.labels or args.color or args.variant or args.prior:
        raise ExportError(
            "--model all and --again export each network as it is; a checkpoint, labels, color, "
            "variant or prior goes with the name of one (MODEL=, --model)"
        )
    if args.again:
        return recall_all(args.build)
    return [Source(shipped(name), name) for name in NETWORKS if shipped(name).is_file()]


def take_off(name: str, repository: Path, build_folder: Path) -> None:
    """Undo the export of a network: nothing of it is left to serve, or to build plans of."""
    network = NETWORKS[name]
    forget(name, build_folder)
    for ensemble, models in network.ensembles.items():
        (repository / ensemble / LABELS_FILE).unlink(missing_ok=True)
        for model in set(models) - {SHARED}:
            built = [
                *(repository / model / "1").glob("model*"),
                *build_folder.glob(f"*/{model}.onnx"),
            ]
            for path in built:
                path.unlink(missing_ok=True)


def export_source(source: Source, repository: Path, build_folder: Path) -> None:
    """Export one checkpoint, list what was written, and remember it."""
    checkpoint = with_prior(source.read(), source.prior)
    try:
        calibration = read_calibration(ranges_path(source.path), checkpoint)
    except ExportError as error:
        print(
            f"export: no INT8: {error}; `{source.to_make('calibrate')} DATA=<faces>` measures it, "
            "then export again",
            file=sys.stderr,
        )
        calibration = None
    for written in export(checkpoint, calibration, repository, build_folder):
        print(written)
    remember(source, checkpoint.network, build_folder)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        for source in choose(args):
            if args.again and not source.path.is_file():
                # What was exported of it is still there, and other networks do not depend on it.
                print(
                    f"export: {source.path} is gone, from which {source.network} was last "
                    "exported: left as it is; `make export MODEL=all` goes back to the shipped "
                    "weights alone",
                    file=sys.stderr,
                )
                continue
            if args.again:
                print(f"export: {source.network} from {source.path}", flush=True)
            export_source(source, args.repository, args.build)
        if args.model == ALL:
            for name in NETWORKS:
                if not shipped(name).is_file():
                    take_off(name, args.repository, args.build)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
