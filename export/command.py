"""Turn checkpoints into what Triton serves.

    videofer export                                   what is not current, as it was last exported
    videofer export --model fan                       FAN from its shipped weights
    videofer export --checkpoint Resnet18_FAN.pth.tar --labels afew
    videofer export --model dan --checkpoint affecnet8.pth --labels affectnet8
    videofer export --remove dan

Writes the graphs of every precision into build/, and from them model_repository/*/1/ and
labels.txt. INT8 needs ranges that were measured on the same weights (`videofer calibrate`).
TensorRT's plans are built from build/fp16/ and build/int8/ (`videofer engines`). What a network was
exported from is recorded in model_repository/<network>/1/exported.json. Other networks stay as they
are, whichever is exported.
"""

import argparse
import sys
from pathlib import Path

from base import ROOT
from base.command import make_parser, run_command
from base.errors import ExportError
from base.exported import record_path, write_record
from export.calibrate import Calibration, ranges_path, read_calibration
from export.exported import is_current, recall_or_shipped, record_of, relative
from export.repository import install_labels, install_model
from export.to_int8 import to_int8
from export.to_int8_cpu import to_int8_cpu
from export.to_onnx import Precision, to_onnx
from networks.checkpoint import Checkpoint, Source, add_arguments, build, source_of
from networks.entries import NETWORKS, Part
from networks.prior import with_prior

FLOATS: tuple[Precision, ...] = ("fp32", "fp16")
INT8_FILENAME = "model_int8.onnx"  # default_model_filename of ort_int8 and openvino_int8
SHARED = "score_fusion"  # of several networks


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("export", __doc__)
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
        "--remove", choices=list(NETWORKS), help="instead: leave nothing of a network to serve"
    )
    add_arguments(parser)
    return parser


def export(
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    repository: Path,
    build_folder: Path,
    source: Source | None = None,
) -> list[Path]:
    """Walk every arrow for one checkpoint, and record that.

    Args:
        calibration: the ranges of this checkpoint; without them there is no INT8, and what an
            earlier export left of it is removed.
        source: of the checkpoint, for the record.

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
    # A record that is there tells of a whole export.
    record_path(network.name, repository).unlink(missing_ok=True)
    parts = build(checkpoint)
    installed, graphs = [], []
    for part in parts.values():
        written, kept = export_part(part, calibration, repository, build_folder)
        installed += written
        graphs += kept
    served = [name for name, models in network.ensembles.items() if parts.keys() >= set(models)]
    for ensemble in served:
        models = (ensemble, *network.ensembles[ensemble])
        installed += install_labels(checkpoint.labels, models, repository)
    write_record(record_of(checkpoint, source, served, [*installed, *graphs]), repository)
    return installed


def export_part(
    part: Part, calibration: Calibration | None, repository: Path, build_folder: Path
) -> tuple[list[Path], list[Path]]:
    """Walk every arrow for one model; give what was written into `repository`, and the graphs."""
    kinds = (*FLOATS, "int8", "int8_cpu")
    graphs = {kind: build_folder / kind / f"{part.model}.onnx" for kind in kinds}
    for precision in FLOATS:
        to_onnx(part, graphs[precision], precision)
    installed = [install_model(graphs["fp32"], repository)]
    kept = [graphs[kind] for kind in FLOATS]
    if not part.quantised:
        return installed, kept
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
        kept = list(graphs.values())
    return installed, kept


def export_source(source: Source, repository: Path, build_folder: Path) -> None:
    """Export one checkpoint; list what was written."""
    checkpoint = with_prior(source.read(), source.prior)
    try:
        calibration = read_calibration(ranges_path(source.path), checkpoint)
    except ExportError as error:
        print(
            f"export: no INT8: {error}; `{source.to_command('calibrate')} <faces>` measures it, "
            "then export again",
            file=sys.stderr,
        )
        calibration = None
    for written in export(checkpoint, calibration, repository, build_folder, source):
        print(written)


def export_stale(repository: Path, build_folder: Path) -> None:
    """Export every network that is not current: from what it last was, else its shipped weights."""
    for name in NETWORKS:
        source = recall_or_shipped(name, repository)
        if source is None:
            continue
        origin = relative(source.path)
        if not source.path.is_file():
            # What was exported of it is still there, and other networks do not depend on it.
            print(
                f"export: {origin} is gone, from which {name} was last exported: left as it is; "
                f"`videofer export --remove {name}` takes it off",
                file=sys.stderr,
            )
        elif is_current(source, name, repository):
            print(f"export: {name} is current, from {origin}")
        else:
            print(f"export: {name} from {origin}", flush=True)
            export_source(source, repository, build_folder)


def remove(name: str, repository: Path, build_folder: Path) -> None:
    """Undo the export of a network: nothing of it is left to serve, or to build plans of."""
    record_path(name, repository).unlink(missing_ok=True)
    for models in NETWORKS[name].ensembles.values():
        for model in set(models) - {SHARED}:
            built = [
                *(repository / model / "1").glob("model*"),
                *build_folder.glob(f"*/{model}.onnx"),
            ]
            for path in built:
                path.unlink(missing_ok=True)


def run(args: argparse.Namespace) -> None:
    """Export what was named, or what is not current."""
    options = [args.checkpoint, args.labels, args.color, args.variant, args.prior]
    if args.remove and any((args.model, *options)):
        raise ExportError("--remove names a network to take off; nothing is exported beside it")
    if args.remove:
        remove(args.remove, args.repository, args.build)
    elif args.model or any(options):
        export_source(source_of(args), args.repository, args.build)
    else:
        export_stale(args.repository, args.build)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("export", lambda: run(args))
