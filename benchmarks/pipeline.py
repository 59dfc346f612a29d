"""Walk predict.py's path stage by stage, then whole, and name the stage that sets the pace.

    videofer bench pipeline video.mp4

    load, decode, detect, align, wire and server    each alone, of the same frames
    clients.analyse                                 the whole path, its stages overlapping
    the same of the video repeated, if it is short  so that one request does not take it whole
    clients.predict, in a process of its own        its memory (client_memory.py)

The server is an embedded Triton on the cores that the client runs on, one platform after the
other. The ways take turns (turns.py). Writes pipeline.md and its pictures below
build/benchmarks/, and prints the report.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np

from base import ROOT
from base.command import make_parser, number, run_command
from benchmarks.client_memory import (
    draw_memory,
    memory_section,
    watch_minutes,
    write_looped,
)
from benchmarks.results import results_folder, write_report
from benchmarks.turns import Rates, Way, quartiles, ratio, take_turns
from clients.analyse import analyse, following
from clients.analysis import Options
from clients.errors import NoFaceFound
from clients.faces import DetectorPool, FaceDetector, align
from clients.stream import CHUNK_FRAMES, FeatureStream
from clients.triton import TritonClient
from clients.video import Frame, read_frames, read_info
from serving import ServingError
from serving.embedded import EmbeddedServer
from serving.platforms import Platform, read_platform

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot

SAMPLE = ROOT / "build" / "demo" / "sample.mp4"
PLATFORMS = ("ort_int8", "openvino_int8")  # what serves in INT8 without a GPU
MAX_FRAMES = 200  # kept decoded, so that later stages run without the earlier: 1.2 GB at 1080p
OPTIONS = Options(max_frames=MAX_FRAMES, people=1, window=0)  # as predict.py, if not as far
WINDOWED = replace(OPTIONS, window=2.0, step=0.1)
GOAL = 1.2  # of the whole path's time to the slowest stage's alone, on two cores
WHOLE = "whole path"
FINE = "whole path, with a window each 0.1 s"
MOST_FOR_WINDOWS = 1.1  # of the whole path's time, at most
PACKAGES = ("opencv-python-headless", "tritonclient")


@dataclass(frozen=True)
class Work:
    """What every stage is given: what the stage before it makes of the same frames.

    Args:
        path: the video.
        frames: as sampled from it, S of them.
        found: image (H, W, 3) and landmarks (5, 2) of the F frames with the followed face.
        crops: (F, 224, 224, 3) uint8.
    """

    path: Path
    frames: list[Frame]
    found: list[tuple[np.ndarray, np.ndarray]]
    crops: np.ndarray


def prepare(path: Path) -> Work:
    """Run the stages once and keep what each of them makes.

    Raises:
        FerError: for a file that is no video, or shows no face.
    """
    frames = list(read_frames(path, OPTIONS.fps, OPTIONS.max_frames))
    follower = following(OPTIONS)
    found = []
    with DetectorPool() as detectors:
        for frame, faces in detectors.detect_all(frames):
            found += [(frame.image, face.landmarks) for _, face in follower.update(frame, faces)]
    if not found:
        raise NoFaceFound(f"{path}: no face in any of the {len(frames)} frames looked at")
    return Work(path, frames, found, np.stack([align(*each) for each in found]))


def make_ways(work: Work, detectors: DetectorPool, client: TritonClient) -> dict[str, Way]:
    """Make each stage, and the whole path, a way to deal with all the sampled frames."""
    num_frames = len(work.frames)

    def stage(run: Callable[[], object]) -> Way:
        def way() -> int:
            run()
            return num_frames

        return way

    def embed() -> None:
        with FeatureStream(client) as stream:
            for crop in work.crops:
                stream.add(1, crop)
            stream.flush()
            stream.pool(1)

    return {
        "load": stage(lambda: (read_info(work.path), FaceDetector(num_threads=1))),
        "decode": lambda: count(read_frames(work.path, OPTIONS.fps, OPTIONS.max_frames)),
        "detect": lambda: count(detectors.detect_all(work.frames)),
        "align": stage(lambda: [align(*each) for each in work.found]),
        "wire and server": stage(embed),
        WHOLE: lambda: len(analyse(work.path, client, OPTIONS).frames),
        FINE: lambda: len(analyse(work.path, client, WINDOWED).frames),
    }


def count(items: Iterable[object]) -> int:
    """Go through an iterator, keeping nothing of it."""
    return sum(1 for _ in items)


def core_ms(ways: Mapping[str, Way], session: int) -> dict[str, float]:
    """Measure the processor time of each way, client and server together, in ms a frame.

    Args:
        session: of the server's processes.
    """
    spent = {}
    for name, way in ways.items():
        before = cpu_seconds(session)
        num_frames = way()
        spent[name] = 1000 * (cpu_seconds(session) - before) / num_frames
    return spent


def cpu_seconds(session: int) -> float:
    """Add up the processor time so far of this process and of all of a session."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[3]) == session or path.parent.name == str(os.getpid()):
            ticks += int(fields[11]) + int(fields[12])  # in user code, in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


def stages_of(rates: Rates) -> list[str]:
    """Name the stages, in the order of the path."""
    return [name for name in rates if name not in (WHOLE, FINE)]


def slowest_stage(rates: Rates) -> str:
    """Name the stage with the fewest frames a second alone."""
    return min(stages_of(rates), key=lambda name: quartiles(rates[name])[1])


def ms_a_frame(rates: Rates, name: str) -> tuple[float, float, float]:
    """Give lower quartile, median and upper quartile of a way's time, in ms a sampled frame."""
    return quartiles([1000 / rate for rate in rates[name]])


def sums_ms(rates: Rates) -> list[float]:
    """Add up the stages' times alone, round by round, in ms a sampled frame."""
    rounds = zip(*(rates[name] for name in stages_of(rates)), strict=True)
    return [sum(1000 / rate for rate in stages) for stages in rounds]


def to_stage_table(rates: Rates, spent_ms: Mapping[str, float]) -> str:
    """Write Markdown: each stage and the whole path, alone, by sampled frame."""
    rows = [
        "| stage, alone | ms a frame | quartiles | frames/s | core-ms a frame |",
        "|---|---|---|---|---|",
    ]
    for name in rates:
        low, median, high = ms_a_frame(rates, name)
        per_second = quartiles(rates[name])[1]
        rows.append(
            f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {per_second:.1f} "
            f"| {spent_ms[name]:.1f} |"
        )
    return "\n".join(rows)


def pace_section(rates: Rates, spent_ms: Mapping[str, float]) -> str:
    """Say what sets the pace, what overlapping saves, and what the cores allow."""
    slowest = slowest_stage(rates)
    alone, whole = (ms_a_frame(rates, name)[1] for name in (slowest, WHOLE))
    low, times, high = ratio(rates, slowest, WHOLE)
    verdict = "within" if times <= GOAL else "above"
    one_by_one = quartiles(sums_ms(rates))[1]
    num_cores = len(os.sched_getaffinity(0))
    least = sum(spent_ms[name] for name in stages_of(rates)) / num_cores
    return "\n".join(
        [
            f"- **The slowest stage is {slowest}**: {alone:.2f} ms a frame, a ceiling of "
            f"{1000 / alone:.1f} frames/s for the whole.",
            f"- **The whole path takes {times:.2f} times as long as {slowest} alone** (quartiles "
            f"{low:.2f} to {high:.2f}), {verdict} the goal of {GOAL}: {whole:.2f} ms a frame, "
            f"{1000 / whole:.1f} frames/s.",
            f"- One after the other the stages take {one_by_one:.2f} ms a frame; overlapping makes "
            f"that {whole:.2f}, {whole / one_by_one:.2f} times as much.",
            *windows_line(rates),
            f"- The stages' work is {least * num_cores:.1f} core-ms a frame: on {num_cores} cores "
            f"it takes {least:.2f} ms at the least, {least / alone:.2f} times {slowest} alone.",
        ]
    )


def windows_line(rates: Rates) -> list[str]:
    """Say what windows cost, where they were measured."""
    if FINE not in rates:
        return []
    low, times, high = ratio(rates, WHOLE, FINE)
    verdict = "within" if times <= MOST_FOR_WINDOWS else "above"
    return [
        f"- **With a window of two seconds each 0.1 s the whole path takes {times:.2f} times as "
        f"long** (quartiles {low:.2f} to {high:.2f}), {verdict} the goal of {MOST_FOR_WINDOWS}."
    ]


def overlap_section(num_faces: int, at_once: int) -> str:
    """Say which stages run at the same time.

    Args:
        num_faces: of the clip.
        at_once: frames that are searched side by side.
    """
    return (
        f"What overlaps: a thread decodes ahead; {at_once} frames are searched for faces at "
        f"once; earlier ones are aligned meanwhile. The clip's {num_faces} faces go in chunks of "
        f"{CHUNK_FRAMES}, which are with the server while later frames are decoded and searched. "
        "*load* opens the video and loads a detector, once."
    )


def draw_stages(rates: Rates, target: Path) -> None:
    """Draw each stage's time alone and the whole path's as bars, quartiles as lines (PNG)."""
    names = list(rates)
    low, median, high = np.array([ms_a_frame(rates, name) for name in names]).T
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    colors = ["tab:orange" if name == WHOLE else "tab:blue" for name in names]
    axes.barh(names, median, xerr=(median - low, high - median), color=colors, capsize=3)
    one_by_one = quartiles(sums_ms(rates))[1]
    axes.axvline(one_by_one, color="gray", linestyle="--", label="stages one after the other")
    goal = GOAL * ms_a_frame(rates, slowest_stage(rates))[1]
    axes.axvline(goal, color="tab:green", linestyle=":", label=f"{GOAL} times the slowest stage")
    axes.invert_yaxis()
    axes.set_xlabel("ms a sampled frame, each alone")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2, frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def repeat(video: Path, target: Path) -> None:
    """Write the video again and again, until as much is sampled as is kept."""
    info = read_info(video)
    sampled_fps = min(OPTIONS.fps, info.fps or OPTIONS.fps)
    write_looped(video, target, MAX_FRAMES / sampled_fps, info.height - info.height % 2)


def measure(
    work: Work, client: TritonClient, server: EmbeddedServer, rounds: int, picture: Path
) -> list[str]:
    """Measure the stages and the whole path; draw them, and write the report's sections."""
    with DetectorPool() as detectors:
        ways = make_ways(work, detectors, client)
        rates = take_turns(ways, rounds)
        spent_ms = core_ms(ways, server.process.pid)
    draw_stages(rates, picture)
    first = work.frames[0].image
    return [
        f"## {work.path.name}, platform {server.platform.name}",
        f"{len(work.frames)} frames of {first.shape[1]}x{first.shape[0]} sampled "
        f"at {OPTIONS.fps:g} a second, {len(work.crops)} with a face. Medians of {rounds} "
        "alternating rounds; client and server share the cores.",
        to_stage_table(rates, spent_ms),
        pace_section(rates, spent_ms),
        overlap_section(len(work.crops), detectors.size),
        f"![Stages]({picture.name})",
    ]


def measure_memory(video: Path, url: str, minutes: float, folder: Path) -> list[str]:
    """Watch predict.py's memory over a long video; draw it, and write the report's section."""
    lengths = sorted({min(1.0, minutes), minutes})
    runs = [watch_minutes(video, length, url) for length in lengths]
    draw_memory(runs, folder / "pipeline-memory.png")
    return ["## Memory", memory_section(runs), "![Memory](pipeline-memory.png)"]


def run(video: Path, platforms: Sequence[str], rounds: int, minutes: float, folder: Path) -> str:
    """Measure all, write pipeline.md and its pictures into a folder; return the report.

    It is written whenever there is more to say, so that what fails later loses nothing.
    """
    short = len(prepare(video).frames) < MAX_FRAMES  # a bad video is told before the server starts
    served = [read_served(name) for name in platforms]
    sections: list[str] = []

    def write() -> str:
        return write_report(
            folder / "pipeline.md", "predict.py, stage by stage", sections, *PACKAGES
        )

    with TemporaryDirectory() as scratch:
        videos = {"video": video}
        if short:
            videos["repeated"] = Path(scratch) / "repeated.mp4"
            repeat(video, videos["repeated"])
        for platform in served:
            with EmbeddedServer(platform) as server:
                with TritonClient(server.grpc_url) as client:
                    for name, path in videos.items():
                        picture = folder / f"pipeline-{platform.name}-{name}.png"
                        sections += measure(prepare(path), client, server, rounds, picture)
                write()
                if minutes and platform is served[-1]:
                    sections += measure_memory(video, server.grpc_url, minutes, folder)
    return write()


def read_served(name: str) -> Platform:
    """Read a platform of the model repository, and whether its files are there."""
    platform = read_platform(ROOT / "model_repository", name)
    if platform.missing:
        raise ServingError(f"{platform.missing[0]} is not there; `videofer export` writes it")
    return platform


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("bench pipeline", __doc__)
    parser.add_argument(
        "video", type=Path, nargs="?", default=SAMPLE, help="default: the demo's sample"
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        default=PLATFORMS,
        help="of the embedded server, after the video; memory is watched on the last "
        "(default: those for CPUs in INT8)",
    )
    parser.add_argument(
        "--rounds", type=number(int, least=2), default=10, help="turns (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=number(float, least=0),
        default=60,
        help="of the long video whose memory is watched; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--host", help="what to call this machine (default: its name)")
    parser.add_argument("--out", type=Path, help="folder to write (default: in build/benchmarks)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    folder = args.out or results_folder(args.host)

    def command() -> None:
        print(run(args.video, args.platforms, args.rounds, args.minutes, folder), end="")

    return run_command("pipeline", command)
