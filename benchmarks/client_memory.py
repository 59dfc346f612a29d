"""Watch the memory of predict.py over videos of any length.

    a video  ->  looped, small, as long as wanted  ->  videofer predict in a process of its own
             ->  MemoryRun  ->  a table and a picture (PNG)

Comes after the stages in benchmarks/pipeline.py.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np

from base import ROOT
from base.errors import FerError
from clients.errors import VideoUnreadable

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot

FOLDER = ROOT / "build" / "benchmarks"
HEIGHT = 192  # pixels, of the looped video: what is kept of a frame does not depend on its size
INTERVAL_S = 0.2  # between looks at the process
LIMIT_MB = 600
KIB = 1024e-6  # MB, of the kernel's unit


@dataclass(frozen=True)
class MemoryRun:
    """The memory of one client over one video.

    Args:
        minutes: of video.
        seconds: (K,) float, when the process was looked at, from its start.
        rss_mb: (K,) float, what it held in memory then, in MB.
        peak_mb: the most it ever held, as the kernel counted.
    """

    minutes: float
    seconds: np.ndarray
    rss_mb: np.ndarray
    peak_mb: float

    def held_mb(self, share: float) -> float:
        """Give the memory held after a share of the run."""
        return float(np.interp(share * self.seconds[-1], self.seconds, self.rss_mb))


def watch_minutes(video: Path, minutes: float, url: str) -> MemoryRun:
    """Have predict.py look at a video made as long as wanted, and watch its memory.

    Raises:
        FerError: what predict.py said where it failed.
    """
    path = FOLDER / "long.mp4"
    write_looped(video, path, 60 * minutes)
    try:
        command = [sys.executable, "-m", "videofer", "predict", str(path), "--url", url]
        return MemoryRun(minutes, *watch(command))
    finally:
        path.unlink(missing_ok=True)


def write_looped(video: Path, target: Path, seconds: float, height: int = HEIGHT) -> None:
    """Write a copy of a video, of some height, repeated until it is as long as wanted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    small = target.with_name("small.mp4")
    ffmpeg("-i", video, "-an", "-vf", f"scale=-2:{height}", "-t", seconds, small)
    ffmpeg("-stream_loop", -1, "-i", small, "-c", "copy", "-t", seconds, target)
    small.unlink()


def ffmpeg(*arguments: object) -> None:
    """Run the FFmpeg that a dependency carries."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise VideoUnreadable(f"FFmpeg cannot repeat the video: {last_line(done.stderr)}")


def watch(command: Sequence[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Run a command to its end, and watch its memory.

    Returns:
        seconds (K,) and MB held then (K,), from its start; the most it ever held, in MB.
    """
    seconds, rss_mb, peak_mb = [], [], 0.0
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            while process.poll() is None:
                if held := read_memory_mb(process.pid):
                    seconds.append(time.monotonic() - start)
                    rss_mb.append(held[0])
                    peak_mb = max(peak_mb, held[1])
                time.sleep(INTERVAL_S)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        if process.returncode:
            raise FerError(f"the watched client failed: {last_line(errors.read())}")
    return np.array(seconds), np.array(rss_mb), peak_mb


def read_memory_mb(pid: int) -> tuple[float, float] | None:
    """Read what a process holds and the most it held, in MB; None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in fields:
        return None  # ended, and waits to be collected
    return int(fields["VmRSS"][0]) * KIB, int(fields["VmHWM"][0]) * KIB


def last_line(text: str) -> str:
    """Take the last line of what a program said."""
    return (text.splitlines() or ["no word of why"])[-1]


def memory_section(runs: Sequence[MemoryRun]) -> str:
    """Write Markdown: what the client holds as a video goes on, and the most it ever held."""
    rows = [
        f"Memory of `clients/predict.py`, of {HEIGHT} pixels high, looped video, in MB:",
        "",
        "| minutes of video | after 10 % of the run | after 50 % | after 90 % | peak |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        held = " | ".join(f"{run.held_mb(share):.0f}" for share in (0.1, 0.5, 0.9))
        rows.append(f"| {run.minutes:g} | {held} | **{run.peak_mb:.0f}** |")
    worst = max(run.peak_mb for run in runs)
    verdict = "under" if worst < LIMIT_MB else "OVER"
    return "\n".join([*rows, "", f"The peak is {verdict} the limit of {LIMIT_MB} MB."])


def draw_memory(runs: Sequence[MemoryRun], target: Path) -> None:
    """Draw the memory held over each run's course (PNG)."""
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    for run in runs:
        share = 100 * run.seconds / run.seconds[-1]
        axes.plot(share, run.rss_mb, label=f"{run.minutes:g} min of video", linewidth=1)
    axes.axhline(LIMIT_MB, color="tab:red", linestyle="--", label="limit")
    axes.set_xlabel("share of the run (%)")
    axes.set_ylabel("client's memory (RSS, MB)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
