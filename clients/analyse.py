"""The whole path: a video file and a server -> a Result.

    read_frames -> detect -> follow -> align -> ClipStream -> Result

Decoding runs ahead in a thread, several frames are searched for faces at once, and a long clip's
chunks are on their way to the server while later frames are still being decoded.
"""

import logging
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clients.errors import NoFaceFound
from clients.faces import DetectorPool, Face, FaceFollower, align
from clients.result import Result, Sighting
from clients.stream import ClipStream
from clients.triton import ClipAnswer, TritonClient
from clients.video import Frame, prefetch, read_frames, read_info

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video to look at.

    Args:
        fps: frames a second, evenly; 0 for every frame.
        max_frames: at most so many, from the start; None for all.
    """

    fps: float = 10.0
    max_frames: int | None = None


def analyse(
    path: Path, client: TritonClient, sampling: Sampling = Sampling(), *, progress: bool = False
) -> Result:
    """Name the emotion of the face in a video.

    Args:
        client: an entered client of the network to ask.
        progress: show a bar on stderr.

    Raises:
        FerError: one of `clients.errors`, for what the user can act on.
    """
    info = read_info(path)
    logger.info("%s: %s", path, info)
    total = info.num_sampled(sampling.fps, sampling.max_frames)
    frames = prefetch(read_frames(path, sampling.fps, sampling.max_frames))
    shown = tqdm(frames, total=total, unit="frame", desc=path.name, disable=not progress)
    with ClipStream(client) as stream:
        with closing(frames), DetectorPool() as detectors:
            sightings = tuple(send_faces(detectors.detect_all(shown), stream))
        num_faces = sum(sighting.box is not None for sighting in sightings)
        logger.info("%d frames looked at, %d with a face", len(sightings), num_faces)
        if not num_faces:
            raise NoFaceFound(f"{path}: no face in any of the {len(sightings)} frames looked at")
        stopped_early = len(sightings) == sampling.max_frames
        return read_result(client, sightings, stream.finish(), stopped_early)


def send_faces(
    detected: Iterable[tuple[Frame, list[Face]]], stream: ClipStream
) -> Iterable[Sighting]:
    """Send the followed face of every frame that has it; say where it was, frame by frame."""
    follower = FaceFollower()
    for frame, faces in detected:
        face = follower.follow(faces, frame.pts_seconds)
        if face is None:
            yield Sighting(frame.index, frame.pts_seconds)
        else:
            stream.add(align(frame.image, face.landmarks))
            yield Sighting(frame.index, frame.pts_seconds, face.box, face.landmarks)


def read_result(
    client: TritonClient, sightings: tuple[Sighting, ...], answer: ClipAnswer, stopped_early: bool
) -> Result:
    """Join what the server says with where the faces were."""
    return Result(
        client.contract.labels,
        answer.probabilities,
        sightings,
        answer.weights,
        answer.self_weights,
        answer.region_weights,
        answer.theta,
        softmax(answer.frame_logits),
        client.model,
        answer.model_version,
        client.url,
        stopped_early,
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, C) into probabilities (N, C)."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
