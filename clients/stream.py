"""Crops that come one by one: embedded in chunks as they come, pooled by track.

    (track, crop), ... -> FeatureStream -> TritonClient -> features, kept a track -> ClipAnswer

Chunks hold crops of whatever tracks, and run on the server while later frames are being decoded. No
pixel is kept or sent twice; of a face 2 KB stay.
"""

import logging
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from clients.analysis import ClipAnswer
from clients.triton import Tensors, TritonClient
from clients.windows import Span

logger = logging.getLogger(__name__)

CHUNK_FRAMES = 32  # crops travel in chunks of so many
AT_ONCE = 3  # requests in flight


class FeatureStream:
    """Embeds crops as they come, and pools those of any track, whole or a part.

    Holds a chunk of crops and AT_ONCE chunks in flight, however long the source.

        with FeatureStream(client) as stream:
            for track, crop in crops:
                stream.add(track, crop)
            stream.flush()
            answer = stream.pool(track)
    """

    def __init__(self, client: TritonClient) -> None:
        self.client = client
        self.limit = min(CHUNK_FRAMES, client.contract.max_frames)
        self.pending: list[tuple[int, np.ndarray]] = []
        self.flying: deque[tuple[list[int], Future[Tensors]]] = deque()
        self.features: dict[int, Rows] = {}
        self.workers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="chunk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.workers.shutdown(wait=False, cancel_futures=True)

    def add(self, track: int, crop: np.ndarray) -> None:
        """Take the next crop of a track, (H, W, 3) uint8; send a chunk when there is one."""
        self.collect()
        self.pending.append((track, crop))
        if len(self.pending) == self.limit:
            self.send()

    def send(self) -> None:
        """Send what is pending, once few enough chunks are in flight."""
        while len(self.flying) >= AT_ONCE:
            self.keep(*self.flying.popleft())
        tracks = [track for track, _ in self.pending]
        crops = np.stack([crop for _, crop in self.pending])
        logger.info("chunk of %d crops", len(crops))
        self.pending.clear()
        self.flying.append((tracks, self.workers.submit(self.client.embed, crops)))

    def collect(self) -> None:
        """Keep what came back; a chunk that failed ends the source now, not at its end."""
        while self.flying and self.flying[0][1].done():
            self.keep(*self.flying.popleft())

    def keep(self, tracks: list[int], chunk: Future[Tensors]) -> None:
        """Give each track its rows of a chunk."""
        tensors = chunk.result()
        numbers = np.array(tracks)
        for track in dict.fromkeys(tracks):
            mine = numbers == track
            rows = {name: tensor[mine] for name, tensor in tensors.items()}
            self.features.setdefault(track, Rows()).add(rows)

    def flush(self) -> None:
        """Have everything embedded that was added."""
        if self.pending:
            self.send()
        while self.flying:
            self.keep(*self.flying.popleft())

    def pool(self, track: int) -> ClipAnswer:
        """Pool all of a track's crops, and forget them: it is the last that is asked of it."""
        rows = self.features.pop(track)
        return self.client.pool(rows.take(), keep=False)

    def pool_spans(self, track: int, spans: Sequence[Span]) -> list[ClipAnswer]:
        """Pool windows of a track, several at once."""
        rows = self.features[track]

        def ask(span: Span) -> ClipAnswer:
            return self.client.pool(rows.part(span.first, span.last), keep=False)

        return list(self.workers.map(ask, spans))


class Rows:
    """What was given of one track's crops, a row each, as it came: chunk by chunk."""

    def __init__(self) -> None:
        self.chunks: list[Tensors] = []
        self.ends: list[int] = []  # of each chunk, among all rows

    def add(self, chunk: Tensors) -> None:
        """Take the next rows."""
        num_rows = len(next(iter(chunk.values())))
        self.chunks.append(chunk)
        self.ends.append((self.ends[-1] if self.ends else 0) + num_rows)

    def part(self, first: int, last: int) -> Tensors:
        """Join rows [first, last), whatever chunks they came in."""
        low, high = bisect_right(self.ends, first), bisect_left(self.ends, last)
        start = self.ends[low - 1] if low else 0
        chunks = self.chunks[low : high + 1]
        return {
            name: np.concatenate([chunk[name] for chunk in chunks])[first - start : last - start]
            for name in chunks[0]
        }

    def take(self) -> Tensors:
        """Join all rows, and empty the chunks: memory holds them once."""
        names = tuple(self.chunks[0])
        return {name: np.concatenate([chunk.pop(name) for chunk in self.chunks]) for name in names}
