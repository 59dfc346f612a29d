"""How fast a server answers, where the time goes, and when it has had enough.

    videofer bench load                      the embedded server here, its CPU platforms
    videofer bench load --url host:8001      any Triton

perf_analyzer drives the ensembles over concurrencies, clip lengths, protocols (beside ONNX Runtime
in process) and arrivals at random. Writes `load.md`, pictures and perf_analyzer's CSVs into
build/benchmarks/<date>-<commit>-<host>/.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import onnxruntime

from base import ROOT
from base.command import make_parser, run_command
from base.files import write_whole
from benchmarks.perf_analyzer import (
    FACE,
    Load,
    Measured,
    PerfAnalyzer,
    QueueFull,
    SharedMemoryRefused,
)
from benchmarks.results import results_folder, write_report
from benchmarks.turns import Rates, to_table
from clients.offers import list_networks
from serving import ServingError
from serving.embedded import EmbeddedServer
from serving.platforms import read_config, read_platform

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot
from matplotlib.figure import Figure

PLATFORMS = ("ort_int8", "openvino_int8", "ort_fp32")
CLIP = (16,)  # frames: a second and a half of video, at predict.py's 10 a second
CONCURRENCIES = (1, 2, 4, 8, 16)
# An ensemble takes up to 128 frames; a longer clip goes in chunks to its first model, and so at the
# pace of the longest of these.
LENGTHS = (1, 4, 16, 64, 128)
SHORT_MIX = (3, 5, 8, 12, 16, 24, 6, 10)  # frames of clips that come together
LONG = (64,)
# Of what a closed loop reached: up to the knee, and past it.
ARRIVALS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2)
REPEATS = 4
ROUNDS = 5
IN_PROCESS = "ONNX Runtime in process"
IN_PROCESS_S = 3.0
MODEL_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Server:
    """A server to measure.

    Args:
        name: platform, or address.
        grpc_url: host:port.
        http_url: host:port.
        graph: what its embedder runs; None for a server elsewhere.
    """

    name: str
    grpc_url: str
    http_url: str
    graph: Path | None = None


def measure(server: Server, analyzer: PerfAnalyzer, out: Path) -> str:
    """Measure one server; give its part of the report.

    Args:
        out: folder of its pictures.
    """

    def run(name: str, load: Load) -> Measured:
        print(f"{server.name}: {name}", file=sys.stderr, flush=True)
        return analyzer.run(name, load)

    base = [run(f"base-{i + 1}", Load(frames=CLIP)) for i in range(REPEATS // 2)]
    over = [run(f"concurrency-{c}", Load(frames=CLIP, concurrency=c)) for c in CONCURRENCIES]
    lengths = [run(f"frames-{n}", Load(frames=(n,), concurrency=4)) for n in LENGTHS]
    mix = run("mix-8", Load(frames=SHORT_MIX, concurrency=8))
    long = run("long-8", Load(frames=LONG, concurrency=8))
    protocols = list(over_protocols(run))
    beside = beside_in_process(run, server.graph) if server.graph else []
    capacity = max(each.clips_per_s for each in over)
    arrivals, refusal = over_arrivals(run, capacity)
    networks = [
        run(f"network-{contract.model}", Load(model=contract.model, frames=CLIP))
        for contract in list_networks(server.grpc_url, 60.0)
        if contract.model != base[0].load.model
    ]
    base += [run(f"base-{i + 1}", Load(frames=CLIP)) for i in range(REPEATS // 2, REPEATS)]
    draw(out / "concurrency.png", over, "clips in flight", lambda m: m.load.concurrency or 0)
    draw(out / "arrivals.png", arrivals, "clips/s that arrive", lambda m: m.load.rate or 0)
    draw_spent(out / "spent.png", over)
    sections = [
        f"## {server.name}",
        noise(base),
        "### Clips in flight\n\nClips of 16 frames, gRPC, closed loop.",
        table(over, "in flight", lambda m: str(m.load.concurrency)),
        f"![throughput and latency]({out.name}/concurrency.png)",
        "### Frames a clip\n\nFour clips in flight; a mix of short clips, and 64 frames, eight.",
        table([*lengths, mix, long], "frames", describe_frames),
        f"Mix to 64 frames, in frames/s: {mix.frames_per_s / long.frames_per_s:.2f}.",
        "### Protocols\n\nClips of 16 frames, two in flight.",
        *protocols,
        *beside,
        "### Where the time goes\n\nMilliseconds a request; frames a run of the model.",
        spent_table(over),
        f"![parts]({out.name}/spent.png)",
        "### Arrivals at random\n\nOpen loop, Poisson: clips of 16 frames arrive whether the "
        f"server has answered or not. A closed loop reached {capacity:.1f} clips/s.",
        table(arrivals, "arriving/s", lambda m: f"{m.load.rate:.1f}"),
        *refusal,
        f"![latency]({out.name}/arrivals.png)",
    ]
    if networks:
        sections += [
            "### Other networks\n\nClips of 16 frames, two in flight.",
            table([base[0], *networks], "network", lambda m: m.load.model),
        ]
    return "\n\n".join(sections)


def over_protocols(run: Callable[[str, Load], Measured]) -> Iterable[str]:
    """Compare ways to carry frames; say so where the server refuses one."""
    measured = [run(f"protocol-{name}", Load(protocol=name)) for name in ("grpc", "http")]
    refusal = ""
    try:
        measured.append(run("protocol-shm", Load(protocol="shm")))
    except SharedMemoryRefused:
        refusal = (
            "Shared memory: refused by this server; it takes it if started with "
            "--allow-client-shm=true."
        )
    yield table(measured, "protocol", lambda m: m.load.protocol)
    if refusal:
        yield refusal


def beside_in_process(run: Callable[[str, Load], Measured], graph: Path) -> list[str]:
    """Compare with the embedder's graph in this process, on all cores, in turns.

    The load generator is compiled: what the server costs, without what a Python client would.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    clip = np.random.default_rng(0).integers(0, 256, (*CLIP, *FACE), np.uint8)
    session.run(None, {"frames": clip})  # the first run allocates
    rates: Rates = {name: [] for name in (IN_PROCESS, "`fan`, gRPC", "`fan`, shared memory")}
    for number in range(1, ROUNDS + 1):
        served = [run(f"beside-{p}-{number}", Load(protocol=p)) for p in ("grpc", "shm")]
        each = [frames_per_s(session, clip), *(one.frames_per_s for one in served)]
        for name, rate in zip(rates, each, strict=True):
            rates[name].append(rate)
    return [
        f"### Beside ONNX Runtime in process\n\nClips of 16 frames, two in flight; {ROUNDS} "
        "alternating rounds. In process: the embedder alone, a clip at a time on all cores.",
        to_table(rates, IN_PROCESS),
    ]


def frames_per_s(session: onnxruntime.InferenceSession, clip: np.ndarray) -> float:
    """Embed a clip again and again."""
    start, num_runs = time.perf_counter(), 0
    while time.perf_counter() - start < IN_PROCESS_S:
        session.run(None, {"frames": clip})
        num_runs += 1
    return num_runs * len(clip) / (time.perf_counter() - start)


def over_arrivals(
    run: Callable[[str, Load], Measured], capacity: float
) -> tuple[list[Measured], list[str]]:
    """Let clips arrive at random, ever more, until the server's queue is full.

    Args:
        capacity: clips a second of a closed loop.
    """
    measured = []
    for share in ARRIVALS:
        rate = share * capacity
        try:
            load = Load(frames=CLIP, concurrency=None, rate=rate)
            measured.append(run(f"poisson-{share:g}", load))
        except QueueFull:
            return measured, [
                f"At {rate:.1f} arriving/s the queue was full (`max_queue_size`), and the server "
                "refused clips."
            ]
    return measured, []


def describe_frames(measured: Measured) -> str:
    """Name a load by its clips' lengths."""
    lengths = measured.load.frames
    if len(lengths) == 1:
        return f"{lengths[0]}, {measured.load.concurrency} in flight"
    return f"{min(lengths)} to {max(lengths)}, {measured.load.concurrency} in flight"


def noise(base: Sequence[Measured]) -> str:
    """Say how far repeated runs of one load lie apart."""
    rates = [each.frames_per_s for each in base]
    spread = (max(rates) - min(rates)) / statistics.median(rates)
    return (
        f"Noise: the same load (16 frames, two in flight) {len(rates)} times, first and last: "
        f"{', '.join(f'{rate:.1f}' for rate in rates)} frames/s, {100 * spread:.0f} % apart."
    )


def table(measured: Sequence[Measured], first: str, name: Callable[[Measured], str]) -> str:
    """Write Markdown: throughput and latency of each load."""
    rows = [
        f"| {first} | frames/s | clips/s | p50 ms | p95 ms | p99 ms | frames a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in measured:
        latency = " | ".join(f"{each.latency_ms[p]:.1f}" for p in (50, 95, 99))
        batch = max(spent.mean_batch for spent in each.spent.values())
        rows.append(
            f"| {name(each)} | {each.frames_per_s:.1f} | {each.clips_per_s:.1f} "
            f"| {latency} | {batch:.1f} |"
        )
    return "\n".join(rows)


def spent_table(measured: Sequence[Measured]) -> str:
    """Write Markdown: where each model's time went."""
    rows = [
        "| in flight | model | queue | copy in | compute | copy out | frames a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in measured:
        for model, spent in sorted(each.spent.items()):
            if model == each.load.model:
                continue  # an ensemble's own are those of its parts
            parts = " | ".join(f"{getattr(spent, part):.2f}" for part in MODEL_PARTS)
            rows.append(f"| {each.load.concurrency} | {model} | {parts} | {spent.mean_batch:.1f} |")
    return "\n".join(rows)


def draw(
    path: Path, measured: Sequence[Measured], label: str, along: Callable[[Measured], float]
) -> None:
    """Draw throughput and latencies over something."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    x = [along(each) for each in measured]
    left.plot(x, [each.frames_per_s for each in measured], "o-")
    left.set(xlabel=label, ylabel="frames/s", ylim=(0, None))
    for percentile in (50, 95, 99):
        y = [each.latency_ms[percentile] for each in measured]
        right.plot(x, y, "o-", label=f"p{percentile}")
    right.set(xlabel=label, ylabel="ms to a clip's answer", ylim=(0, None))
    right.legend()
    save(figure, path)


def draw_spent(path: Path, measured: Sequence[Measured]) -> None:
    """Draw where the models' time goes, stacked, over clips in flight."""
    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    bottoms = [0.0] * len(measured)
    models = sorted({m for each in measured for m in each.spent if m != each.load.model})
    for model in models:
        for part in MODEL_PARTS:
            heights = [getattr(each.spent[model], part) for each in measured]
            names = [str(each.load.concurrency) for each in measured]
            axes.bar(names, heights, bottom=bottoms, label=f"{model} {part.replace('_', ' ')}")
            bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    axes.set(xlabel="clips in flight", ylabel="ms a request")
    axes.legend(fontsize="x-small")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    pyplot.close(figure)
    write_whole(path, picture.getvalue())


def servers(args: argparse.Namespace) -> Generator[Server, None, None]:
    """Give the servers to measure, one after the other; an embedded one stops before the next."""
    if args.url:
        yield Server(args.url, args.url, args.http_url or f"{args.url.partition(':')[0]}:8000")
        return
    for name in args.platforms:
        platform = read_platform(ROOT / "model_repository", name)
        if platform.missing:
            raise ServingError(f"{platform.missing[0]} is not there; `videofer export` writes it")
        with EmbeddedServer(platform) as server:
            http_url = server.http_url.removeprefix("http://")
            yield Server(name, server.grpc_url, http_url, graph_of(name))


def graph_of(platform: str) -> Path:
    """Find what the embedder of a platform runs."""
    folder = ROOT / "model_repository" / "fan_embedder"
    return folder / "1" / read_config(folder, platform).default_model_filename


def run(args: argparse.Namespace) -> None:
    """Measure every server; load.md is written after each: an error at the next loses nothing."""
    folder = args.out or results_folder(args.host)
    parts, report = ["Compare ratios, within this file alone."], ""
    with closing(servers(args)) as found:
        for server in found:
            out = folder / server.name.replace(":", "_")
            analyzer = PerfAnalyzer(server.grpc_url, server.http_url, out, args.window)
            with closing(analyzer):
                parts.append(measure(server, analyzer, out))
            title, packages = "How fast the server answers", ("tritonclient", "onnxruntime")
            report = write_report(folder / "load.md", title, parts, *packages)
    print(report)
    print(folder / "load.md")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("bench load", __doc__)
    parser.add_argument("--url", help="a server's gRPC address (default: embedded ones)")
    parser.add_argument("--http-url", help="its HTTP address (default: port 8000 there)")
    parser.add_argument(
        "--platforms", nargs="+", default=PLATFORMS, help="embedded ones (default: all for CPUs)"
    )
    parser.add_argument(
        "--window", type=float, default=1.5, help="seconds of a window (default: %(default)s)"
    )
    parser.add_argument("--host", help="what to call this machine (default: its name)")
    parser.add_argument("--out", type=Path, help="folder (default: build/benchmarks/...)")
    args = parser.parse_args(argv)
    return run_command("bench", lambda: run(args), stopped="stopped")
