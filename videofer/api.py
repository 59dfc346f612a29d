"""The verbs as functions, for those that give something back to Python.

analyse(source)  ->  Analysis         predict, without the printing
follow(source)   ->  Moment, ...      predict --live
networks(url)    ->  what a server offers
serve(platform)  ->  a server for the length of a `with` block

Errors that a caller can act on are of the family `videofer.FerError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from clients.access import Access
    from clients.analysis import Analysis
    from clients.live import Moment
    from clients.offers import Contract
    from serving.embedded import EmbeddedServer

URL = "localhost:8001"


def analyse(
    source: str | Path | Iterable[np.ndarray],
    *,
    url: str = URL,
    network: str = "fan",
    fps: float = 10.0,
    max_frames: int | None = None,
    people: int | None = None,
    window: float = 2.0,
    step: float = 0.5,
    min_coverage: float = 0.0,
    rate: float = 25.0,
    timeout_s: float = 60.0,
    access: Access | None = None,
) -> Analysis:
    """Say who is in a video, when, and with which emotion.

    Args:
        source: a file, a URL, "-" for standard input; or frames (H, W, 3) uint8, RGB.
        url: host:port of Triton's gRPC endpoint.
        network: to ask, such as "fan" or "deep_emotion".
        fps: frames to look at for each second of video, 0 for every one.
        max_frames: look at no more than so many.
        people: give no more tracks than so many, those seen most; 1 follows the largest face from
            the start to the end, through cuts; None for everyone.
        window: seconds of a window, 0 for none.
        step: seconds from a window to the next.
        min_coverage: leave out who is seen in a smaller part of the frames, 0..1.
        rate: frames a second of frames that are given as arrays.
        timeout_s: seconds that one request may take.
        access: what a gateway in front of the server wants to see; None where there is none.

    Returns:
        `tracks`, one a person, each with `emotion`, `answer`, `windows`, `segments`.

    Raises:
        FerError: for a video, a server or a network that it cannot do without.
        ValueError: for an option out of its range.
    """
    from clients.analyse import analyse as analyse_with
    from clients.analysis import Options
    from clients.arrays import as_video
    from clients.triton import TritonClient

    options = Options(
        fps=fps,
        max_frames=max_frames,
        people=people,
        window=window,
        step=step,
        min_coverage=min_coverage,
    )
    client = TritonClient(url, network, timeout_s, access)
    with as_video(source, rate) as video, client:
        return analyse_with(video, client, options)


def follow(
    source: str | Path,
    *,
    url: str = URL,
    network: str = "fan",
    fps: float = 10.0,
    people: int | None = None,
    window: float = 2.0,
    step: float = 0.5,
    duration: float | None = None,
    timeout_s: float = 60.0,
    access: Access | None = None,
) -> Iterator[Moment]:
    """Say it as it happens, of a camera or a stream: a moment a person and step.

    `videofer.Live` does the same, and sums up at the end.

    Args:
        source: a camera ("0", "/dev/video0") or a URL; a file is played at its own pace.
        duration: seconds after which it ends; None for as long as the source gives frames.

    The other arguments are those of `analyse`.
    """
    from clients.analysis import Options
    from clients.live import Live
    from clients.triton import TritonClient

    options = Options(fps=fps, people=people, window=window, step=step)
    client = TritonClient(url, network, timeout_s, access)
    with client, Live(source, client, options, duration) as live:
        yield from live


def networks(
    url: str = URL, *, timeout_s: float = 60.0, access: Access | None = None
) -> list[Contract]:
    """List the networks that a server offers: `model`, `labels`, `extras` of each.

    Raises:
        FerError: where no server answers.
    """
    from clients.offers import list_networks

    return list_networks(url, timeout_s, access)


def serve(platform: str = "ort_fp32", *, repository: str | Path | None = None) -> EmbeddedServer:
    """Start the embedded Triton on free ports of loopback, for the length of a `with` block.

        with videofer.serve() as server:
            videofer.analyse("clip.mp4", url=server.grpc_url)

    Args:
        platform: that runs on a CPU: ort_fp32, ort_int8 or openvino_int8.
        repository: the models to serve (default: model_repository of the checkout).

    Raises:
        FerError: on entering, where the server cannot start.
    """
    from base import ROOT
    from serving.embedded import EmbeddedServer
    from serving.platforms import read_platform

    folder = Path(repository) if repository else ROOT / "model_repository"
    return EmbeddedServer(read_platform(folder.resolve(), platform))
