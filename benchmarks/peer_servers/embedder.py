"""The embedder as a Python web server has it: ONNX Runtime with its defaults, bytes in and out.

    a clip's bytes, N * 224 * 224 * 3 uint8  ->  N * 512 float32, as bytes

Runs in .venv-peers: needs NumPy and ONNX Runtime alone.
"""

from pathlib import Path

import numpy as np
import onnxruntime

FRAME = (224, 224, 3)  # height, width, RGB


class Embedder:
    """FAN's embedder in this process.

    Args:
        path: its ONNX file.
    """

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def embed(self, frames: np.ndarray) -> np.ndarray:
        """Embed frames (N, 224, 224, 3) uint8: features (N, 512) float32."""
        (features,) = self.session.run(["features"], {"frames": frames})
        return np.asarray(features)

    def answer(self, body: bytes) -> bytes:
        """Answer one request: embed a clip's bytes."""
        return self.embed(to_frames(body)).tobytes()


def to_frames(body: bytes) -> np.ndarray:
    """Read a clip's bytes as frames (N, 224, 224, 3) uint8, without a copy.

    Raises:
        ValueError: for bytes that are not whole frames.
    """
    num_bytes = int(np.prod(FRAME))
    if not body or len(body) % num_bytes:
        raise ValueError(f"{len(body)} bytes; expected frames of {num_bytes} each, one or more")
    return np.frombuffer(body, np.uint8).reshape(-1, *FRAME)
