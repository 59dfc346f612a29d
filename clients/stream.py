"""A clip whose faces come one by one: sent in chunks as they come, pooled at the end.

face, face, ... -> ClipStream -> TritonClient -> ClipAnswer

A clip that fits one request goes whole. A longer one's chunks run on the server while later frames
are still being decoded.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from clients.triton import ClipAnswer, Tensors, TritonClient

logger = logging.getLogger(__name__)

CHUNK_FRAMES = 32  # a long clip's frames travel in chunks of so many
CHUNKS_IN_FLIGHT = 3


class ClipStream:
    """Sends one clip's faces as they come, and asks for the answer at the end.

    Holds at most `max_frames` faces and a few chunks in flight, however long the clip.

        with ClipStream(client) as stream:
            for face in faces:
                stream.add(face)
            answer = stream.finish()
    """

    def __init__(self, client: TritonClient) -> None:
        self.client = client
        self.pending: list[np.ndarray] = []
        self.chunks: list[Future[Tensors]] = []
        self.pool = ThreadPoolExecutor(CHUNKS_IN_FLIGHT, thread_name_prefix="chunk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def add(self, face: np.ndarray) -> None:
        """Take the next face, (224, 224, 3) uint8; send a chunk when there is one to send."""
        for chunk in self.chunks[-CHUNKS_IN_FLIGHT:]:
            if chunk.done():
                chunk.result()  # one that failed ends the clip now, not when it is waited for
        max_frames = self.client.contract.max_frames
        limit = min(CHUNK_FRAMES, max_frames) if self.chunks else max_frames
        if len(self.pending) == limit:
            self.send_pending()
        self.pending.append(face)

    def send_pending(self) -> None:
        """Send what is pending, once few enough chunks are in flight."""
        if len(self.chunks) >= CHUNKS_IN_FLIGHT:
            self.chunks[-CHUNKS_IN_FLIGHT].result()
        faces = np.stack(self.pending)
        logger.info("chunk %d: %d faces", len(self.chunks) + 1, len(faces))
        self.pending.clear()
        self.chunks.append(self.pool.submit(self.client.embed, faces))

    def finish(self) -> ClipAnswer:
        """Return the answer to all the faces added, of which there is at least one."""
        if not self.chunks:
            logger.info("asking of %d faces in one request", len(self.pending))
            return self.client.ask(np.stack(self.pending))
        self.send_pending()
        logger.info("pooling %d chunks", len(self.chunks))
        chunks = [chunk.result() for chunk in self.chunks]
        return self.client.pool(join(chunks))


def join(chunks: list[Tensors]) -> Tensors:
    """Join what was given of a clip's chunks, and empty the chunks: memory holds them once."""
    names = tuple(chunks[0])
    return {name: np.concatenate([chunk.pop(name) for chunk in chunks]) for name in names}
