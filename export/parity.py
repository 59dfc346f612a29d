"""How far every precision is from the checkpoint: one report, on real faces.

    videofer parity validation.npz

    torch FP32  ->  ONNX FP32  ->  ONNX FP16  ->  INT8 (TensorRT's graph)  ->  INT8 (CPU graph)
                ->  the plans of FP16 and INT8, on a machine whose GPU they fit

Every rung classifies the same faces, each as a clip of one frame. ONNX files run on ONNX Runtime,
on the CPU; plans on TensorRT; both by Polygraphy. Without faces to read, the hundred small ones
that scikit-image carries are used. Writes Markdown with its provenance.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.common import BytesFromPath
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER
from tqdm import tqdm

from base import ROOT
from base.command import make_parser, run_command
from base.errors import ExportError
from base.provenance import provenance
from export.exported import recall_or_shipped
from export.faces import Faces, read_faces, small_faces
from export.profiles import PLANS, Plan
from export.to_plan import find_gpu, find_tensorrt, intended, is_current, read_graph
from networks.checkpoint import Checkpoint, add_arguments, build, source_of
from networks.entries import NETWORKS, Part
from networks.prior import with_prior

BATCH = 16
PACKAGES = ("torch", "onnx", "onnxruntime", "polygraphy")

Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # one model: its input -> its outputs


@dataclass(frozen=True)
class Rung:
    """One way to run the network.

    Args:
        name: as the report calls it.
        file: that of the model that looks at frames, whose size is told; None for the module.
        frames: runs that model.
        pooling: runs the model that pools its features; None where it gives logits itself.
    """

    name: str
    file: Path | None
    frames: Run
    pooling: Run | None

    def answer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classify (N, 224, 224, 3) uint8, each alone: features (N, D), logits (N, C).

        What has no features of its own answers with its logits twice.
        """
        outputs = self.frames(images)
        if not self.pooling:
            return outputs["frame_logits"], outputs["frame_logits"]
        features = outputs["features"]
        return features, np.stack([self.pooling(row[None])["logits"] for row in features])


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a rung answered, against the first one's answers."""

    name: str
    feature_difference: tuple[float, float]  # greatest, mean
    logit_difference: tuple[float, float]
    divergence: float  # mean KL of probabilities, nats
    agreement: float  # of the top class
    accuracy: float | None
    megabytes: float | None


def models_of(checkpoint: Checkpoint) -> tuple[Part, Part | None]:
    """Find the model that looks at frames, and the one that pools its features, if it gives any."""
    parts = build(checkpoint)
    (frames,) = (part for part in parts.values() if part.tensor == "frames")
    pooling = (p for p in parts.values() if p.tensor in frames.outputs and "logits" in p.outputs)
    return frames, next(pooling, None)


def run_torch(part: Part) -> Run:
    """Run a model as it is in torch."""

    @torch.inference_mode()
    def run(array: np.ndarray) -> dict[str, np.ndarray]:
        answer = part.module(torch.from_numpy(array))
        tensors = answer if isinstance(answer, tuple) else (answer,)
        return {k: v.numpy() for k, v in zip(part.outputs, tensors, strict=True)}

    return run


def run_polygraphy(runner: BaseRunner, tensor: str, stack: ExitStack) -> Run:
    """Run a model, an ONNX file or a plan, by Polygraphy."""
    stack.enter_context(runner)

    def run(array: np.ndarray) -> dict[str, np.ndarray]:
        return {k: np.array(v) for k, v in runner.infer({tensor: array}).items()}

    return run


def onnx_runner(path: Path, *, as_written: bool = False) -> BaseRunner:
    """Run an ONNX file on the CPU.

    Args:
        as_written: without ONNX Runtime's optimiser. It would quantise the biases of a Q/DQ graph
            in FP16, with a scale that FP16 cannot hold; TensorRT does no such thing.
    """
    if not path.is_file():
        raise ExportError(f"{path} is not there; `videofer export` writes it")
    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return OnnxrtRunner(session)


def plan_runner(path: Path) -> BaseRunner:
    """Run a plan on the GPU."""
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner  # imports TensorRT

    return TrtRunner(EngineFromBytes(BytesFromPath(str(path))))


def open_rungs(checkpoint: Checkpoint, folder: Path, stack: ExitStack) -> list[Rung]:
    """Open every rung that this machine can run."""
    frames, pooling = models_of(checkpoint)
    rungs = [Rung("torch FP32", None, run_torch(frames), run_torch(pooling) if pooling else None)]
    for name, precision, pooled in (
        ("ONNX FP32", "fp32", "fp32"),
        ("ONNX FP16", "fp16", "fp16"),
        ("ONNX INT8, TensorRT's graph", "int8", "fp16"),
        ("ONNX INT8, CPU graph", "int8_cpu", "fp32"),
    ):
        file = folder / precision / f"{frames.model}.onnx"
        if precision.startswith("int8") and not file.is_file():
            print(f"parity: left out: {name}: {file} is not there", file=sys.stderr)
            continue
        runner = onnx_runner(file, as_written=precision == "int8")
        rung = Rung(name, file, run_polygraphy(runner, frames.tensor, stack), None)
        if pooling:
            second = onnx_runner(folder / pooled / f"{pooling.model}.onnx")
            rung = replace(rung, pooling=run_polygraphy(second, pooling.tensor, stack))
        rungs.append(rung)
    return rungs


def open_plans(checkpoint: Checkpoint, stack: ExitStack) -> list[Rung]:
    """Open the network's plans, where there is a GPU and they are current; say what is left out."""
    try:
        trt, gpu = find_tensorrt(), find_gpu()
    except ExportError as error:
        print(f"parity: left out: the plans: {error}", file=sys.stderr)
        return []
    frames, pooling = models_of(checkpoint)
    current: dict[str, list[Plan]] = {}
    for plan in PLANS:
        if plan.network != checkpoint.network:
            continue
        try:
            wanted = intended(trt, gpu, plan, read_graph(plan, ROOT))
            if not is_current(ROOT / plan.path, wanted):
                raise ExportError(f"not of TensorRT {trt.__version__} on {gpu.name}, or outdated")
            current.setdefault(plan.model, []).append(plan)
        except ExportError as error:
            print(f"parity: left out: {plan.path}: {error}", file=sys.stderr)
    if pooling and pooling.model not in current:
        return []
    pooled = None
    if pooling:
        path = ROOT / current[pooling.model][0].path
        pooled = run_polygraphy(plan_runner(path), pooling.tensor, stack)
    return [
        Rung(
            f"plan {plan.precision.upper()}, TensorRT {trt.__version__} on {gpu.name}",
            ROOT / plan.path,
            run_polygraphy(plan_runner(ROOT / plan.path), frames.tensor, stack),
            pooled,
        )
        for plan in current.get(frames.model, [])
    ]


def run(rung: Rung, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run a rung over all faces, in batches."""
    starts = range(0, len(images), BATCH)
    bar = tqdm(starts, desc=rung.name, unit="batch", disable=not sys.stderr.isatty())
    answers = [rung.answer(images[start : start + BATCH]) for start in bar]
    features, logits = zip(*answers, strict=True)
    return np.concatenate(features), np.concatenate(logits)


def compare(rungs: list[Rung], faces: Faces) -> list[Row]:
    """Run every rung and hold it against the first."""
    rows = []
    print(f"parity: {len(faces.images)} faces, {len(rungs)} ways", file=sys.stderr)
    first: tuple[np.ndarray, np.ndarray] | None = None
    for rung in rungs:
        print(f"parity: {rung.name}", file=sys.stderr)
        features, logits = run(rung, faces.images)
        first = first or (features, logits)
        expected, found = log_softmax(first[1]), log_softmax(logits)
        top = logits.argmax(axis=1)
        rows.append(
            Row(
                name=rung.name,
                feature_difference=spread(features - first[0]),
                logit_difference=spread(logits - first[1]),
                divergence=float((np.exp(expected) * (expected - found)).sum(axis=1).mean()),
                agreement=float((top == first[1].argmax(axis=1)).mean()),
                accuracy=None if faces.labels is None else float((top == faces.labels).mean()),
                megabytes=rung.file.stat().st_size / 1e6 if rung.file else None,
            )
        )
    return rows


def spread(difference: np.ndarray) -> tuple[float, float]:
    """The greatest and the mean absolute value."""
    return float(np.abs(difference).max()), float(np.abs(difference).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, C) into log-probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def report(rows: list[Row], faces: Faces, source: str, command: str, title: str) -> str:
    """Write the report."""
    lines = [
        f"# Precision of {title}",
        "",
        f"Written by `{command}`; do not edit.",
        f"Measured {provenance(*PACKAGES)}.",
        "",
        f"Faces: {source}, {len(faces.images)} of them, each classified as a clip of one frame. "
        "Differences, KL and agreement are with torch FP32. ONNX files ran on ONNX Runtime, on the "
        "CPU, where FP16 is emulated; a TensorRT plan rounds in other places.",
        "",
        "| rung | features: greatest, mean difference | logits: greatest, mean difference "
        "| KL, nats | top-1 agreement | top-1 accuracy | file |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.2%}"
        size = "-" if row.megabytes is None else f"{row.megabytes:.1f} MB"
        lines.append(
            f"| {row.name} | {row.feature_difference[0]:.2g}, {row.feature_difference[1]:.2g} "
            f"| {row.logit_difference[0]:.2g}, {row.logit_difference[1]:.2g} "
            f"| {row.divergence:.2g} | {row.agreement:.2%} | {accuracy} | {size} |"
        )
    return "\n".join(lines) + "\n"


def read_data(path: Path | None, labels: tuple[str, ...]) -> tuple[Faces, str]:
    """Read the faces asked for, or those that a dependency carries; say what they are."""
    if path is not None:
        return read_faces(path, labels), path.name
    return Faces(small_faces(), None), "scikit-image's lfw_subset"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("parity", __doc__)
    parser.add_argument(
        "faces",
        type=Path,
        nargs="?",
        help="aligned faces: an .npz or a folder, labelled or not (default: scikit-image's)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="the weights that were exported (default: those that last were)",
    )
    parser.add_argument(
        "--build",
        type=Path,
        default=ROOT / "build",
        help="folder of the ONNX files (default: build)",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=ROOT / "model_repository",
        help="model repository that was filled (default: model_repository)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "build",
        help="file or folder to write as well (default: build)",
    )
    add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    G_LOGGER.module_severity = G_LOGGER.ERROR
    return run_command("parity", lambda: run_parity(args))


def run_parity(args: argparse.Namespace) -> None:
    """Compare, print the report, write it."""
    try:
        last = None if args.checkpoint else recall_or_shipped(args.model or "fan", args.repository)
        if last and (args.labels or args.color or args.variant or args.prior):
            raise ExportError(
                "--labels, --color, --variant and --prior go with a --checkpoint: without one, "
                "what was exported last is compared, as it was exported"
            )
        chosen = last or source_of(args)
        checkpoint = with_prior(chosen.read(), chosen.prior)
        faces, source = read_data(args.faces, checkpoint.labels)
        with ExitStack() as stack:
            rungs = open_rungs(checkpoint, args.build, stack)
            rows = compare(rungs + open_plans(checkpoint, stack), faces)
    except PolygraphyException as error:
        raise ExportError(str(error)) from error
    model = f" --model {args.model}" if args.model else ""
    model += f" --checkpoint {args.checkpoint.name}" if args.checkpoint else ""
    data = f" {args.faces.name}" if args.faces else ""
    title = NETWORKS[checkpoint.network].title
    text = report(rows, faces, source, f"videofer parity{data}{model}", title)
    if args.output and args.output.is_dir():
        args.output /= f"precision-{checkpoint.network}.md"
    if args.output:
        args.output.write_text(text)
    print(text)
