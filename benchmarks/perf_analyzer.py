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

from serving import ROOT, ServingError
from serving.embedded import find_environment

FOLDER = ROOT / "build" / "perf_analyzer"
FACE = (224, 224, 3)
# A load is so many requests, as many as a first few say will take the time. Asked for stable
# windows instead, perf_analyzer writes nothing on a busy machine; noise shows in repeated runs.
FIRST_REQUESTS = 4  # for each clip in flight
LEAST_REQUESTS = 10  # for percentiles; more for many clips in flight
OUTPUT_BYTES = 1 << 20  # of shared memory for a clip's answer; 256 frames of 7 classes are 10 KB
TIMEOUT_S = 300
REFUSES_SHARED_MEMORY = "Client shared memory is disabled"


class SharedMemoryRefused(ServingError):
    """The server was started without --allow-client-shm=true (Triton 26.04 and later)."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
        clips_per_s: answered, in a closed loop; that arrived, in an open one.
        latency_ms: percentile -> milliseconds from sending a clip to its answer.
        spent: model -> where its time went, for the ensemble and all that it is made of.
    """

    load: Load
    clips_per_s: float
    latency_ms: Mapping[int, float]
    spent: Mapping[str, Spent]

    @property
    def frames_per_s(self) -> float:
        """The same in frames."""
        return self.clips_per_s * self.load.mean_frames


class PerfAnalyzer:
    """perf_analyzer against one server.

    Args:
        grpc_url: host:port.
        http_url: host:port.
        folder: where each run's CSV goes, as `<name>.csv`.
        seconds: that each load should last.
    """

    def __init__(self, grpc_url: str, http_url: str, folder: Path, seconds: float = 5.0) -> None:
        self.urls = {"grpc": grpc_url, "shm": grpc_url, "http": http_url}
        self.folder = folder
        self.seconds = seconds
        self.client = grpcclient.InferenceServerClient(grpc_url)

    def run(self, name: str, load: Load) -> Measured:
        """Put a load on the server.

        Raises:
            SharedMemoryRefused: for protocol shm, where the server does not take it.
            ServingError: with perf_analyzer's own words.
        """
        rate = load.rate
        if rate is None:
            first = FIRST_REQUESTS * (load.concurrency or 1)
            rate = self.run_requests(name, load, first).clips_per_s
        least = LEAST_REQUESTS + (load.concurrency or 0)
        return self.run_requests(name, load, max(least, round(rate * self.seconds)))

    def run_requests(self, name: str, load: Load, requests: int) -> Measured:
        """Put so many requests of a load on the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.csv"
        command = self.command(load, path, requests)
        before = self.statistics()
        done = subprocess.run(
            command,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if done.returncode or not path.is_file():
            words = " ".join((done.stderr or done.stdout).split())[-500:]
            error = SharedMemoryRefused if REFUSES_SHARED_MEMORY in words else ServingError
            raise error(f"perf_analyzer ended with {done.returncode} at {name}: {words}")
        with path.open() as file:
            row = next(csv.DictReader(file))
        spent = {
            model: spent_between(before.get(model), after)
            for model, after in self.statistics().items()
            if counted(before.get(model), after)
        }
        latency = {p: float(row[f"p{p} latency"]) / 1000 for p in (50, 95, 99)}
        # Clips in flight over the time each takes. perf_analyzer's own rate has idle time in it:
        # given a number of requests, it looks once a second whether they are done.
        rate = load.rate or 1e6 * (load.concurrency or 1) / float(row["Avg latency"])
        return Measured(load, rate, latency, spent)

    def command(self, load: Load, path: Path, requests: int) -> list[str]:
        """Write perf_analyzer's command line."""
        options = ["-m", load.model, "-u", self.urls[load.protocol]]
        options += ["-i", "http" if load.protocol == "http" else "grpc"]
        if load.protocol == "shm":
            options += ["--shared-memory", "system"]
            options += ["--output-shared-memory-size", str(OUTPUT_BYTES)]
        if load.rate is not None:
            options += ["--request-rate-range", f"{load.rate:.2f}"]
            options += ["--request-distribution", "poisson"]
        else:
            options += ["--concurrency-range", str(load.concurrency)]
        options += ["--input-data", str(write_clips(load.frames))]
        options += ["--request-count", str(requests)]
        return [str(binary()), *options, "-f", str(path), "--verbose-csv"]

    def statistics(self) -> dict[str, dict[str, float]]:
        """Read what the server has counted so far, by model."""
        try:
            found = self.client.get_inference_statistics().model_stats
        except InferenceServerException as error:
            raise ServingError(
                f"the server at {self.urls['grpc']} does not say what it has counted "
                f"({' '.join(error.message().split())}); name a running one with URL=host:8001"
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


def counted(before: Mapping[str, float] | None, after: Mapping[str, float]) -> bool:
    """Tell whether a model answered anything between two readings."""
    return after["requests"] > (before or {}).get("requests", 0)


def spent_between(before: Mapping[str, float] | None, after: Mapping[str, float]) -> Spent:
    """Subtract two readings of a model's statistics."""
    grown = {key: value - (before or {}).get(key, 0) for key, value in after.items()}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    each = {part: grown[part] / grown["requests"] / 1e6 for part in parts}
    return Spent(**each, mean_batch=grown["frames"] / max(1, grown["runs"]))


def write_clips(lengths: Sequence[int]) -> Path:
    """Write perf_analyzer's input: one clip of each length, of random pixels.

    Returns:
        the JSON file; it stays for other runs of the same lengths.
    """
    path = FOLDER / f"clips-{'-'.join(map(str, lengths))}.json"
    if not path.is_file():
        draws = np.random.default_rng(0)
        entries = []
        for length in lengths:
            shape = [length, *FACE]
            pixels = draws.integers(0, 256, shape, dtype=np.uint8).tobytes()
            content = {"b64": base64.b64encode(pixels).decode()}
            entries.append({"frames": {"content": content, "shape": shape}})
        path.write_text(json.dumps({"data": entries}))
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
