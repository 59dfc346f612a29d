"""Embed the same frames in several ways, in turns, and compare.

    python -m benchmarks.throughput

Measures frames a second of the shipped FAN embedder at batches of 16: PyTorch eager, ONNX Runtime
in this process, and Triton over gRPC (embedded servers, which nobody asks while the others run),
in FP32 and INT8. The ways take turns, so that a noisy machine is noisy to all; medians are
compared. Prints a Markdown table with its provenance.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from clients.errors import FerError
from clients.triton import TritonClient
from export.checkpoint import build, read_checkpoint
from export.provenance import provenance
from serving import ROOT, ServingError
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

BATCH = 16
REST_S = 0.5  # threads of the way before spin on for a while, on the cores of the next
PACKAGES = ("torch", "onnxruntime", "tritonclient")
Way = Callable[[np.ndarray], object]


def measure(ways: dict[str, Way], frames: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Run every way once a round; return each one's frames a second, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(frames)  # the first run allocates
    for _ in tqdm(range(rounds), unit="round", disable=not sys.stderr.isatty()):
        for name, way in ways.items():
            time.sleep(REST_S)
            way(frames)  # caches and clocks as in a run of many
            start = time.perf_counter()
            way(frames)
            rates[name].append(len(frames) / (time.perf_counter() - start))
    return rates


def eager() -> Way:
    """PyTorch as most people would run it on a CPU: eager, channels last."""
    embedder = build(read_checkpoint(ROOT / "weights" / "fan.safetensors"))["fan_embedder"].module
    embedder = embedder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(frames: np.ndarray) -> object:
        with torch.inference_mode():
            return embedder(torch.from_numpy(frames))

    return run


def in_process(path: Path) -> Way:
    """ONNX Runtime in this process, with its defaults."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda frames: session.run(None, {"frames": frames})


def report(rates: dict[str, list[float]]) -> str:
    """Write the table: median, spread between the quartiles, ratio to the first way."""
    rows = ["| way | frames/s | quartiles | ratio |", "|---|---|---|---|"]
    base = statistics.median(next(iter(rates.values())))
    for name, values in rates.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append(f"| {name} | {median:.1f} | {low:.1f}-{high:.1f} | {median / base:.2f} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=30, help="turns (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("expected --rounds of at least 2: a spread needs two values")
    frames = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    repository = ROOT / "model_repository"
    folder = repository / "fan_embedder" / "1"
    ways: dict[str, Way] = {"PyTorch eager, FP32": eager()}
    try:
        with ExitStack() as stack:
            for precision, platform_name, filename in (
                ("FP32", "cpu_fp32", "model.onnx"),
                ("INT8", "cpu", "model_int8.onnx"),
            ):
                served = read_platform(repository, platform_name)
                if served.missing:
                    raise ServingError(f"{served.missing[0]} is not there; `make export` writes it")
                server = stack.enter_context(EmbeddedServer(served))
                client = stack.enter_context(TritonClient(server.grpc_url))
                ways[f"ONNX Runtime, in process, {precision}"] = in_process(folder / filename)
                ways[f"Triton over gRPC, platform {platform_name}"] = client.embed
            rates = measure(ways, frames, args.rounds)
    except (ServingError, FerError) as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 1
    print(f"{provenance(*PACKAGES)}; batches of {BATCH}, {args.rounds} rounds\n\n{report(rates)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
