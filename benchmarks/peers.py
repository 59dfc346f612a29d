"""Embed the same frames in all the usual ways, in turns, and compare.

    videofer bench peers
    videofer bench peers --rounds 3 --only "INT8, batches" "Triton, INT8"

    in process    PyTorch eager and compiled, ONNX Runtime, OpenVINO
    in Python     FastAPI and LitServe, over HTTP
    on Triton     as one is first written, and ours: every platform for CPUs, over gRPC

The network is FAN's embedder, of the weights exported last; `fan` is the ensemble, which attends to
the frames as well. In-process ways run alone with their libraries' defaults. Servers are asked for
clips by two clients at once, each with one request in flight, from this process. Before it is
timed, every way must give the features that ONNX Runtime gives in FP32, nearly. Prints the report,
and writes it as peers.md below build/benchmarks/.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import onnxruntime
import torch

from base import ROOT
from base.command import make_parser, number, run_command
from benchmarks.peer_servers import naive
from benchmarks.peer_servers.clients import HttpClient, SharedMemoryClient
from benchmarks.peer_servers.embedder import Embedder
from benchmarks.peer_servers.processes import LOGS, PeerError, PeerServer, PeerWorker
from benchmarks.results import refusals_told, results_folder, write_report
from benchmarks.turns import Rates, Way, quartiles, ratio, take_turns, to_table
from clients.transport import to_input
from clients.triton import TritonClient
from export.exported import recall_or_shipped
from export.faces import small_faces
from networks.checkpoint import Source, build
from serving.command import interrupt
from serving.embedded import EmbeddedServer
from serving.platforms import Platform, read_platform

REPOSITORY = ROOT / "model_repository"
BUILD = ROOT / "build"
PINS = ROOT / "requirements" / "peers.txt"
CLIP_FRAMES = 16
NUM_CLIENTS = 2
TURN_S = 1.2  # how long a way should take each time it is measured
BATCHES = (1, 4, 8, 16, 32)
# Cosine of features, of logits, with those of FP32: float sums in another order, and INT8's
# roundings, which no two engines have in the same places. 0.9946 was the least seen of INT8.
LEAST_AGREEMENT = {"FP32": 0.9999, "INT8": 0.98}
PACKAGES = ("torch", "onnxruntime", "tritonclient")
PEER_PACKAGES = ("fastapi", "litserve", "onnxruntime", "openvino", "uvicorn")

Precision = Literal["FP32", "INT8"]
Output = Literal["features", "logits"]
Ask = Callable[[np.ndarray], np.ndarray]  # clip (N, 224, 224, 3) uint8 -> features or logits
Job = Callable[[int], int]  # does its smallest piece of work so often; says how many frames
MODEL_FILES: Mapping[Precision, str] = {"FP32": "model.onnx", "INT8": "model_int8.onnx"}
# Ours, by what the report calls them.
PLATFORMS: Mapping[str, tuple[str, Precision]] = {
    "FP32": ("ort_fp32", "FP32"),
    "INT8": ("ort_int8", "INT8"),
    "INT8 on OpenVINO": ("openvino_int8", "INT8"),
}
MODELS: Mapping[str, Output] = {"fan_embedder": "features", "fan": "logits"}


class Skipped(Exception):
    """A way that cannot be had on this machine, though all is set up; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One way, started.

    Args:
        answer: what it gives for the clip, features (N, 512) or logits (C,) float32.
        job: what is timed.
        precision: that it computes in.
        output: which of the two it gives.
    """

    answer: np.ndarray
    job: Job
    precision: Precision
    output: Output = "features"


class Bench:
    """What the ways share: the clip, the networks' files, and servers, each started once.

        with Bench() as bench:
            contender = WAYS["ONNX Runtime, FP32"](bench)

    Args:
        repository: the models, exported (default: model_repository/).
        source: of their weights (default: what FAN was last exported from).
    """

    def __init__(self, repository: Path | None = None, source: Source | None = None) -> None:
        self.repository = repository or REPOSITORY
        self.source = source
        self.stack = ExitStack()
        self.servers: dict[str, EmbeddedServer] = {}
        self.embedders: dict[Path, Embedder] = {}
        # Real ones: how far INT8 may be from FP32 is said of faces, and of nothing else.
        self.clip = small_faces(CLIP_FRAMES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def graph(self, precision: Precision, model: str = "fan_embedder") -> Path:
        """Where a model's ONNX file is; refuse one that is not there."""
        path = self.repository / model / "1" / MODEL_FILES[precision]
        if not path.is_file():
            where = path.relative_to(self.repository.parent)
            raise PeerError(f"{where} is not there; `videofer export` writes it")
        return path

    def embedder(self, precision: Precision) -> Embedder:
        """The embedder in this process, on ONNX Runtime."""
        path = self.graph(precision)
        if path not in self.embedders:
            self.embedders[path] = Embedder(path)
        return self.embedders[path]

    @cached_property
    def module(self) -> torch.nn.Module:
        """The embedder on PyTorch, as people run it on a CPU: channels last."""
        source = self.source or recall_or_shipped("fan", self.repository)
        if source is None:
            raise PeerError("FAN was never exported; `videofer export` does it")
        module = build(source.read())["fan_embedder"].module
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def server(self, platform: Platform) -> EmbeddedServer:
        """A Triton that serves a platform, started when it is first asked for."""
        key = f"{platform.repository.name} {platform.name}"
        if key not in self.servers:
            self.servers[key] = self.stack.enter_context(EmbeddedServer(platform))
        return self.servers[key]

    def triton(self, name: str) -> EmbeddedServer:
        """Our Triton, on a platform."""
        platform = read_platform(self.repository, name)
        if platform.missing:
            raise PeerError(f"{platform.missing[0]} is not there; `videofer export` writes it")
        return self.server(platform)

    def expected(self, output: Output) -> np.ndarray:
        """What ONNX Runtime gives for the clip in FP32: features (N, 512) or logits (C,)."""
        features = self.embedder("FP32").embed(self.clip)
        if output == "features":
            return features
        path = self.graph("FP32", "fan_attention")
        attention = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (logits,) = attention.run(["logits"], {"features": features})
        return np.asarray(logits)


def in_process(ask: Ask, clip: np.ndarray, precision: Precision, batch: int) -> Contender:
    """Have one way run in this process, in batches of so many frames."""
    frames = np.ascontiguousarray(np.resize(clip, (batch, *clip.shape[1:])))

    def job(times: int) -> int:
        for _ in range(times):
            ask(frames)
        return times * batch

    return Contender(ask(clip), job, precision)


def served(
    asks: Sequence[Ask], clip: np.ndarray, precision: Precision, output: Output = "features"
) -> Contender:
    """Have clients ask for clips, each in a thread of its own, with one request in flight."""

    def job(times: int) -> int:
        # Drawn by whoever is free, as the GIL allows: with a share for each, the first to end would
        # leave a core idle.
        requests = iter(range(times * len(asks)))

        def ask_on(ask: Ask) -> None:
            for _ in requests:
                ask(clip)

        with ThreadPoolExecutor(len(asks)) as threads:
            list(threads.map(ask_on, asks))
        return times * len(asks) * len(clip)

    return Contender(asks[0](clip), job, precision, output)


def eager(bench: Bench) -> Contender:
    """PyTorch, eager."""
    return in_process(torch_embed(bench.module), bench.clip, "FP32", CLIP_FRAMES)


def compiled(bench: Bench) -> Contender:
    """PyTorch, compiled with its default backend, which writes C++."""
    compiler = (os.environ.get("CXX") or "g++").split()[0]
    if not shutil.which(compiler):
        raise Skipped(f"{compiler}, the C++ compiler that it needs, is not there")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(BUILD / "inductor"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes left idling
    embed = torch_embed(torch.compile(bench.module))
    try:
        return in_process(embed, bench.clip, "FP32", CLIP_FRAMES)
    except Exception as error:  # a compiler's failures share no narrower base
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise Skipped(f"it failed to compile: {reason}") from error


def torch_embed(module: Callable[[torch.Tensor], torch.Tensor]) -> Ask:
    """Call a module with arrays."""

    def embed(frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(frames)).numpy()

    return embed


def onnx_runtime(bench: Bench, precision: Precision, batch: int = CLIP_FRAMES) -> Contender:
    """ONNX Runtime in this process."""
    return in_process(bench.embedder(precision).embed, bench.clip, precision, batch)


def open_vino(bench: Bench, precision: Precision, hint: str = "") -> Contender:
    """OpenVINO in a process of its own, for its packages are apart."""
    clip, features = LOGS / "clip.npy", LOGS / f"features-{precision}-{hint}.npy"
    LOGS.mkdir(parents=True, exist_ok=True)
    np.save(clip, bench.clip)
    name = f"openvino-{precision}-{hint or 'default'}"
    arguments = (bench.graph(precision), clip, features, *([hint] if hint else []))
    worker = bench.stack.enter_context(PeerWorker("openvino_worker", *arguments, name=name))

    def job(times: int) -> int:
        worker.ask(str(times))
        return times * len(bench.clip)

    return Contender(np.load(features), job, precision)


def http_server(bench: Bench, module: str, *options: object) -> Contender:
    """A web server in Python, in FP32; paused while it is not its turn."""
    server = bench.stack.enter_context(PeerServer(module, bench.graph("FP32"), *options))
    clients = [bench.stack.enter_context(closing(HttpClient(server.port))) for _ in CLIENTS]
    contender = served([client.embed for client in clients], bench.clip, "FP32")

    def job(times: int) -> int:
        with server.awake():
            return contender.job(times)

    job(1)  # and so to its first pause
    return Contender(contender.answer, job, "FP32")


def naive_triton(bench: Bench) -> Contender:
    """Triton as one first sets it up: float32 frames, a request each, and no batching."""
    server = bench.server(naive.write_repository(bench.graph("FP32"), BUILD / "peers" / "naive"))

    def ask(client: TritonClient, clip: np.ndarray) -> np.ndarray:
        floats = (frame.astype(np.float32)[np.newaxis] for frame in clip)
        answers = [client.infer(naive.MODEL, [to_input("frames", frame)]) for frame in floats]
        return np.concatenate([answer.as_numpy("features") for answer in answers])

    clients = [TritonClient(server.grpc_url) for _ in CLIENTS]  # it serves no network to enter
    for client in clients:
        bench.stack.enter_context(closing(client.client))
    return served([partial(ask, client) for client in clients], bench.clip, "FP32")


def our_triton(bench: Bench, platform: str, precision: Precision, model: str) -> Contender:
    """Our Triton over gRPC, with the client that predict.py uses."""
    url = bench.triton(platform).grpc_url
    clients = [bench.stack.enter_context(TritonClient(url)) for _ in CLIENTS]
    output = MODELS[model]

    def ask(client: TritonClient, clip: np.ndarray) -> np.ndarray:
        return client.ask(clip).logits if output == "logits" else client.embed(clip)["features"]

    return served([partial(ask, client) for client in clients], bench.clip, precision, output)


def our_triton_in_memory(
    bench: Bench, platform: str, precision: Precision, model: str
) -> Contender:
    """Our Triton over gRPC, with frames in memory that client and server share."""
    url, output = bench.triton(platform).grpc_url, MODELS[model]
    clients = [
        bench.stack.enter_context(SharedMemoryClient(url, model, output, bench.clip.shape, index))
        for index in CLIENTS
    ]
    return served([client.ask for client in clients], bench.clip, precision, output)


CLIENTS = range(NUM_CLIENTS)
EAGER = "PyTorch eager, FP32"
IN_PROCESS_FP32 = "ONNX Runtime, FP32"
FASTAPI = "FastAPI + ONNX Runtime, FP32"
LITSERVE = "LitServe + ONNX Runtime, FP32"
LITSERVE_BATCHING = "LitServe batching + ONNX Runtime, FP32"
NAIVE = "Triton, naive, FP32"
IN_PROCESS_INT8 = [f"ONNX Runtime, INT8, batches of {batch}" for batch in BATCHES]
IN_PROCESS_OPENVINO = ("OpenVINO, INT8", "OpenVINO, INT8, throughput hint")
INT8 = f"ONNX Runtime, INT8, batches of {CLIP_FRAMES}"
OURS = {
    f"Triton, {name}, `{model}`{where}": partial(
        way, platform=platform, precision=precision, model=model
    )
    for where, way in {"": our_triton, ", shared memory": our_triton_in_memory}.items()
    for name, (platform, precision) in PLATFORMS.items()
    for model in MODELS
}
WAYS: Mapping[str, Callable[[Bench], Contender]] = {
    EAGER: eager,
    "PyTorch compiled, FP32": compiled,
    IN_PROCESS_FP32: partial(onnx_runtime, precision="FP32"),
    "OpenVINO, FP32": partial(open_vino, precision="FP32"),
    "OpenVINO, FP32, throughput hint": partial(open_vino, precision="FP32", hint="THROUGHPUT"),
    **{
        name: partial(onnx_runtime, precision="INT8", batch=batch)
        for name, batch in zip(IN_PROCESS_INT8, BATCHES, strict=True)
    },
    "OpenVINO, INT8": partial(open_vino, precision="INT8"),
    "OpenVINO, INT8, throughput hint": partial(open_vino, precision="INT8", hint="THROUGHPUT"),
    FASTAPI: lambda bench: http_server(bench, "fastapi_app"),
    LITSERVE: lambda bench: http_server(bench, "litserve_app", 1),
    LITSERVE_BATCHING: lambda bench: http_server(bench, "litserve_app", NUM_CLIENTS),
    NAIVE: naive_triton,
    **OURS,
}


def choose(only: Sequence[str]) -> list[str]:
    """Name the ways whose names have one of the texts in them; all, for none.

    Raises:
        ValueError: for a text that no way's name has.
    """
    for text in only:
        if not any(text.lower() in name.lower() for name in WAYS):
            raise ValueError(f"no way is called {text!r}; there are: {'; '.join(WAYS)}")
    return [name for name in WAYS if not only or any(text.lower() in name.lower() for text in only)]


def agreement(answer: np.ndarray, expected: np.ndarray) -> float:
    """Compare features (N, 512) or logits (C,): the least cosine between two rows."""
    if answer.shape != expected.shape:
        return 0.0
    one, other = np.atleast_2d(answer), np.atleast_2d(expected)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / lengths).min())


def check(name: str, contender: Contender, bench: Bench) -> None:
    """Refuse to time a way that does something else.

    Each is held against FP32: two engines' INT8 differ by more than either from that.

    Raises:
        PeerError: naming it.
    """
    expected = bench.expected(contender.output)
    cosine, least = agreement(contender.answer, expected), LEAST_AGREEMENT[contender.precision]
    if not cosine >= least:
        raise PeerError(
            f"{name}: its {contender.output} are not those of ONNX Runtime in FP32 (cosine "
            f"{cosine:.5f}; expected {least} or more): are both of the weights exported last?"
        )


def fit(job: Job) -> Way:
    """Have a job done so often that it takes about TURN_S."""
    job(1)
    start = time.perf_counter()
    job(1)
    return partial(job, max(1, round(TURN_S / (time.perf_counter() - start))))


def start(bench: Bench, names: Sequence[str]) -> tuple[dict[str, Way], list[str]]:
    """Start the ways, and check each.

    Returns:
        the ways by name; a line for each that was skipped.
    """
    ways, skipped = {}, []
    for name in names:
        try:
            contender = WAYS[name](bench)
        except Skipped as reason:
            skipped.append(f"{name} was skipped: {reason}.")
            print(f"peers: {skipped[-1]}", file=sys.stderr)
            continue
        check(name, contender, bench)
        ways[name] = fit(contender.job)
    if not ways:
        raise PeerError("there is nothing to compare: every way was skipped")
    return ways, skipped


def best_of(rates: Rates, names: Sequence[str]) -> str | None:
    """Name the fastest of some ways, by median; None where none was measured."""
    measured = [name for name in names if name in rates]
    return max(measured, key=lambda name: quartiles(rates[name])[1], default=None)


def to_comparisons(rates: Rates) -> str:
    """Write Markdown: what each of our ways gains or loses against those to hold it against."""
    peers = [FASTAPI, best_of(rates, [LITSERVE, LITSERVE_BATCHING]), NAIVE]
    in_process = {"FP32": IN_PROCESS_FP32, "INT8": best_of(rates, IN_PROCESS_INT8)}
    on_openvino = best_of(rates, IN_PROCESS_OPENVINO)
    pairs = [(INT8, EAGER), (INT8, IN_PROCESS_FP32)]
    for name in OURS:
        engines = [in_process["INT8" if "INT8" in name else "FP32"]]
        engines += [on_openvino] if "OpenVINO" in name else []
        pairs += [(name, base) for base in (*engines, *peers) if base]
    rows = ["| way | against | ratio | quartiles |", "|---|---|---|---|"]
    for name, base in pairs:
        if name in rates and base in rates:
            low, median, high = ratio(rates, name, base)
            rows.append(f"| {name} | {base} | {median:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def pinned(packages: Sequence[str]) -> str:
    """Say the versions of .venv-peers."""
    pins = dict(line.split("==") for line in PINS.read_text().splitlines())
    return ", ".join(f"{package} {pins[package]}" for package in packages)


def to_sections(rates: Rates, rounds: int, skipped: Sequence[str]) -> list[str]:
    """Write the report's sections."""
    base = EAGER if EAGER in rates else next(iter(rates))
    sections = [
        f"FAN's embedder, medians of {rounds} alternating rounds, each of about {TURN_S:g} s a "
        f"way; a ratio is taken within each round. Batches and clips of {CLIP_FRAMES} frames where "
        f"nothing else is said; servers are asked by {NUM_CLIENTS} clients at once, on the cores "
        f"that serve. Every way gave the features of ONNX Runtime in FP32 (cosine above "
        f"{LEAST_AGREEMENT['FP32']} in FP32, {LEAST_AGREEMENT['INT8']} in INT8). The peers': "
        f"{pinned(PEER_PACKAGES)}.",
        to_table(rates, base),
        to_comparisons(rates),
        "\n".join(f"- {line}" for line in skipped),
    ]
    return [section for section in sections if section]


def run(names: Sequence[str], rounds: int, folder: Path) -> str:
    """Measure the ways, write peers.md into a folder; return the report."""
    with Bench() as bench:
        ways, skipped = start(bench, names)
        rates = take_turns(ways, rounds)
    sections = to_sections(rates, rounds, skipped)
    return write_report(folder / "peers.md", "FAN's embedder and its peers", sections, *PACKAGES)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("bench peers", __doc__)
    parser.add_argument(
        "--rounds", type=number(int, least=2), default=10, help="turns (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="only ways with one of these in their names (default: all)",
    )
    parser.add_argument("--host", help="what to call this machine (default: its name)")
    parser.add_argument("--out", type=Path, help="folder to write (default: in build/benchmarks)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        names = choose(args.only)
    except ValueError as error:
        parser.error(str(error))
    # SIGINT too: a script's `&` starts its commands with Ctrl-C ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)

    def command() -> None:
        with refusals_told():
            print(run(names, args.rounds, args.out or results_folder(args.host)), end="")

    return run_command("peers", command)
