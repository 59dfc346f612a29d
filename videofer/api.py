"""The verbs as functions, for those that give something back to Python.

analyse(video)  ->  Result          predict, without the printing
networks(url)   ->  what a server offers
serve(platform) ->  a server for the length of a `with` block

Errors that a caller can act on are of the family `videofer.FerError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.offers import Contract
    from clients.result import Result
    from serving.embedded import EmbeddedServer

URL = "localhost:8001"


def analyse(
    video: str | Path,
    *,
    url: str = URL,
    network: str = "fan",
    fps: float = 10.0,
    max_frames: int | None = None,
    timeout_s: float = 60.0,
) -> Result:
    """Name the emotion of the face in a video.

    Args:
        video: anything that FFmpeg can decode.
        url: host:port of Triton's gRPC endpoint.
        network: to ask, such as "fan" or "deep_emotion".
        fps: frames to look at for each second of video, 0 for every one.
        max_frames: look at no more than so many.
        timeout_s: seconds that one request may take.

    Returns:
        `emotion`, `labels`, `probabilities` (C,), `weights` (N,): see `videofer.Result`.

    Raises:
        FerError: for a video, a server or a network that it cannot do without.
    """
    from clients.analyse import Sampling
    from clients.analyse import analyse as analyse_with
    from clients.triton import TritonClient
    from clients.video import read_info

    read_info(Path(video))  # a bad file is told at once, server or no server
    with TritonClient(url, network, timeout_s) as client:
        return analyse_with(Path(video), client, Sampling(fps, max_frames))


def networks(url: str = URL, *, timeout_s: float = 60.0) -> list[Contract]:
    """List the networks that a server offers: `model`, `labels`, `extras` of each.

    Raises:
        FerError: where no server answers.
    """
    from clients.offers import list_networks

    return list_networks(url, timeout_s)


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
