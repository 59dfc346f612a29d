"""Triton's own load generator, and what the server counted meanwhile.

    Load  ->  perf_analyzer, a closed or an open loop  ->  Measured (clips/s, latencies)
          ->  the server's statistics, before and after  ->  Spent (queue, compute, batch) a model

The binary is that of tritonclient 2.51, the last that runs on glibc 2.34 and later;
`make build/perf_analyzer/.installed` unpacks it beside the two libraries that it misses.
"""

import base64
import csv
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from base import ROOT
from base.files import write_whole
from serving import ServingError
from serving.embedded import find_environment

FOLDER = ROOT / "build" / "perf_analyzer"
FACE = (224, 224, 3)
# perf_analyzer takes three windows in a row that differ by less than this, and writes nothing where
# it finds none. Nearly any will do: noise is measured by repeating loads, and shown.
STABILITY_PERCENT = 99
MOST_WINDOWS = 8
LEAST_ARRIVALS = 12  # clips at random in a window: few come in clusters, and windows differ
TRIES = 3
UNSTABLE = 2  # its exit code
OUTPUT_BYTES = 1 << 20  # of shared memory for a clip's answer; 256 frames of 7 classes are 10 KB
TIMEOUT_S = 300
REFUSES_SHARED_MEMORY = "Client shared memory is disabled"
QUEUE_IS_FULL = "Exceeds maximum queue size"


class SharedMemoryRefused(ServingError):
    """The server was started without --allow-client-shm=true (Triton 26.04 and later)."""


class QueueFull(ServingError):
    """The server refused clips: more arrive than it answers, and its queue is bounded."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a server.

    Args:
        model: ensemble, or the model that takes frames.
        frames: of each clip; several lengths take turns.
        concurrency: clips in flight at any time; None for an open loop.
        rate: clips a second that arrive at random (Poisson); None for a closed loop.
        protocol: grpc, http, or shm: gRPC with frames in the system's shared memory.
    """

    model: str = "fan"
    frames: tuple[int, ...] = (16,)
    concurrency: int | None = 2
    rate: float | None = None
    protocol: str = "grpc"

    @property
    def mean_frames(self) -> float:
        """Frames a clip."""
        return sum(self.frames) / len(self.frames)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Where one model's requests spent their time, milliseconds a request.

    Args:
        queue: waiting for an instance, or for others to batch with.
        compute_input: copying its inputs in.
        compute_infer: computing.
        compute_output: copying its outputs out.
        mean_batch: frames a run, for a model that batches; 1 for one that does not.
    """

    queue: float
    compute_input: float
    compute_infer: float
    compute_output: float
    mean_batch: float


@dataclass(frozen=True)
class Measured:
    """What came of a load.

    Args:
        load: what was asked.
        clips_per_s: answered.
        latency_ms: percentile -> milliseconds from sending a clip to its answer.
        spent: model -> where its time went, for the ensemble and all that it is made of.
    """

    load: Load
    clips_per_s: float
    latency_ms: Mapping[int, float]
    spent: Mapping[str, Spent]

    @property
    def frames_per_s(self) -> float:
        """Answered frames a second."""
        return self.clips_per_s * self.load.mean_frames


class PerfAnalyzer:
    """perf_analyzer against one server.

    Args:
        grpc_url: host:port.
        http_url: host:port.
        folder: where each run's CSV goes, as `<name>.csv`.
        window_s: seconds of each of three windows or more.
    """

    def __init__(self, grpc_url: str, http_url: str, folder: Path, window_s: float = 2.0) -> None:
        self.urls = {"grpc": grpc_url, "shm": grpc_url, "http": http_url}
        self.folder = folder
        self.window_s = window_s
        self.client = grpcclient.InferenceServerClient(grpc_url)

    def run(self, name: str, load: Load) -> Measured:
        """Put a load on the server.

        Raises:
            SharedMemoryRefused: for protocol shm, where the server does not take it.
            QueueFull: where it refused clips, past what it can answer.
            ServingError: with perf_analyzer's own words.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.csv"
        command = self.command(load, path)
        for _ in range(TRIES):
            path.unlink(missing_ok=True)  # of an earlier run
            before = self.statistics()
            done = run_command(command, name)
            if done.returncode != UNSTABLE:
                break
        if done.returncode or not path.is_file():
            words = " ".join((done.stderr or done.stdout).split())[-500:]
            known = {REFUSES_SHARED_MEMORY: SharedMemoryRefused, QUEUE_IS_FULL: QueueFull}
            error = next((e for text, e in known.items() if text in words), ServingError)
            raise error(f"perf_analyzer ended with {done.returncode} at {name}: {words}")
        with path.open() as file:
            row = next(csv.DictReader(file))
        spent = {
            model: spent_between(before.get(model), after)
            for model, after in self.statistics().items()
            if counted(before.get(model), after)
        }
        latency = {p: float(row[f"p{p} latency"]) / 1000 for p in (50, 95, 99)}
        return Measured(load, float(row["Inferences/Second"]), latency, spent)

    def command(self, load: Load, path: Path) -> list[str]:
        """Write perf_analyzer's command line."""
        options = ["-m", load.model, "-u", self.urls[load.protocol]]
        options += ["-i", "http" if load.protocol == "http" else "grpc"]
        if load.protocol == "shm":
            options += ["--shared-memory", "system"]
            options += ["--output-shared-memory-size", str(OUTPUT_BYTES)]
        if load.rate is not None:
            options += ["--request-rate-range", f"{load.rate:.2f}"]
            # Asynchronous: else a clip waits for one of four threads before it arrives.
            options += ["--request-distribution", "poisson", "--async"]
        else:
            options += ["--concurrency-range", str(load.concurrency)]
        options += ["--input-data", str(write_clips(load.frames))]
        window_s = max(self.window_s, LEAST_ARRIVALS / load.rate if load.rate else 0.0)
        options += ["-p", str(round(1000 * window_s)), "-s", str(STABILITY_PERCENT)]
        return [str(binary()), *options, "-r", str(MOST_WINDOWS), "-f", str(path), "--verbose-csv"]

    def close(self) -> None:
        """Close the connection over which statistics are read."""
        self.client.close()

    def statistics(self) -> dict[str, dict[str, float]]:
        """Read what the server has counted so far, by model."""
        try:
            found = self.client.get_inference_statistics().model_stats
        except InferenceServerException as error:
            raise ServingError(
                f"the server at {self.urls['grpc']} does not say what it has counted "
                f"({' '.join(error.message().split())}); name a running one with --url host:8001"
            ) from error
        return {
            model.name: {
                "requests": model.inference_stats.success.count,
                "frames": model.inference_count,
                "runs": model.execution_count,
                **{
                    part: getattr(model.inference_stats, part).ns
                    for part in ("queue", "compute_input", "compute_infer", "compute_output")
                },
            }
            for model in found
        }


def run_command(command: list[str], name: str) -> subprocess.CompletedProcess[str]:
    """Run perf_analyzer to its end."""
    try:
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise ServingError(f"perf_analyzer was not done with {name} in {TIMEOUT_S} s") from error


def counted(before: Mapping[str, float] | None, after: Mapping[str, float]) -> bool:
    """Tell whether a model answered anything between two readings."""
    return after["requests"] > (before or {}).get("requests", 0)


def spent_between(before: Mapping[str, float] | None, after: Mapping[str, float]) -> Spent:
    """Subtract two readings of a model's statistics."""
    grown = {key: value - (before or {}).get(key, 0) for key, value in after.items()}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    each = {part: grown[part] / grown["requests"] / 1e6 for part in parts}
    return Spent(**each, mean_batch=grown["frames"] / max(1, grown["runs"]))


def write_clips(lengths: Sequence[int], folder: Path = FOLDER) -> Path:
    """Write perf_analyzer's input: one clip of each length, of random pixels.

    Returns:
        the JSON file; it stays for other runs of the same lengths.
    """
    path = folder / f"clips-{'-'.join(map(str, lengths))}.json"
    if not path.is_file():
        draws = np.random.default_rng(0)
        entries = []
        for length in lengths:
            shape = [length, *FACE]
            pixels = draws.integers(0, 256, shape, dtype=np.uint8).tobytes()
            content = {"b64": base64.b64encode(pixels).decode()}
            entries.append({"frames": {"content": content, "shape": shape}})
        write_whole(path, json.dumps({"data": entries}).encode())
    return path


def binary() -> Path:
    """Find perf_analyzer.

    Raises:
        ServingError: where it is not installed.
    """
    path = FOLDER / "bin" / "perf_analyzer"
    if not path.is_file():
        raise ServingError(f"{path} is not there; `make bench` installs it")
    return path


def environment() -> dict[str, str]:
    """Say where perf_analyzer finds its libraries."""
    _, libraries = find_environment()
    return {**os.environ, "LD_LIBRARY_PATH": f"{FOLDER / 'lib'}:{libraries}"}
