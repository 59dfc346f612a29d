"""FAN's embedder behind LitServe: one worker, with or without its batching of requests.

    python -m benchmarks.peer_servers.litserve_app model.onnx 8000 2

The last number is how many clips LitServe may put together. They must be of one length.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import litserve  # type: ignore[import-not-found]
import numpy as np
from fastapi import Body, Response  # type: ignore[import-not-found]

from benchmarks.peer_servers.embedder import Embedder, to_frames
from benchmarks.peer_servers.fastapi_app import KEEP_ALIVE_S

BATCH_TIMEOUT_S = 0.005  # short beside a batch in FP32 for more clips


class EmbedderAPI(litserve.LitAPI):
    """The embedder, in the hooks that LitServe calls; their names are its own.

    Args:
        path: the embedder's ONNX file.
        max_clips: of one batch.
    """

    def __init__(self, path: Path, max_clips: int) -> None:
        timeout_s = BATCH_TIMEOUT_S if max_clips > 1 else 0.0
        super().__init__(max_batch_size=max_clips, batch_timeout=timeout_s, api_path="/embed")
        self.path = path

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self.embedder = Embedder(self.path)

    # The annotation has the body come as bytes; without one, LitServe reads JSON.
    def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray:
        """Read a clip's frames (N, 224, 224, 3) uint8."""
        return to_frames(request)

    def predict(self, clips: np.ndarray) -> np.ndarray:
        """Embed one clip (N, 224, 224, 3), or a batch of them (B, N, 224, 224, 3)."""
        features = self.embedder.embed(clips.reshape(-1, *clips.shape[-3:]))
        return features.reshape(*clips.shape[:-3], -1)

    def encode_response(self, output: np.ndarray) -> Response:
        """Write a clip's features as bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


def main() -> None:
    # LitServe ends its workers on Ctrl-C; have it do so when it is terminated, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = litserve.LitServer(
        EmbedderAPI(Path(sys.argv[1]), int(sys.argv[3])),
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


if __name__ == "__main__":
    main()
