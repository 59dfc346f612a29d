"""FAN's embedder on OpenVINO, in a process of its own, for it lives in .venv-peers.

    python -m benchmarks.peer_servers.openvino_worker model.onnx clip.npy features.npy [hint]

Reads the clip once, writes its features, to be checked, and prints `ready`. Then it embeds the clip
as many times as each line of its input says, and prints `done`. No frame crosses between processes
while it is timed; the two lines take some 0.1 ms of a second.
"""

import sys
from pathlib import Path

import numpy as np
import openvino


class Embedder:
    """The embedder on OpenVINO, with its defaults or with a hint.

    Args:
        path: its ONNX file.
        hint: THROUGHPUT has clips run side by side; empty for the default, one after the other.
    """

    def __init__(self, path: Path, hint: str) -> None:
        self.hint = hint
        options = {"PERFORMANCE_HINT": hint} if hint else {}
        if "int8" not in path.stem:
            # By default OpenVINO would compute in bfloat16 where the processor can.
            options["INFERENCE_PRECISION_HINT"] = "f32"
        self.model = openvino.Core().compile_model(str(path), "CPU", options)

    def embed(self, frames: np.ndarray) -> np.ndarray:
        """Embed frames (N, 224, 224, 3) uint8: features (N, 512) float32."""
        return np.array(self.model({"frames": frames})["features"])

    def embed_often(self, frames: np.ndarray, times: int) -> None:
        """Embed the same frames again and again; with a hint, as many at once as OpenVINO likes."""
        if not self.hint:
            for _ in range(times):
                self.model({"frames": frames})
            return
        queue = openvino.AsyncInferQueue(self.model)  # of its optimal number of requests
        for _ in range(times):
            queue.start_async({"frames": frames})
        queue.wait_all()


def main() -> None:
    path, clip, target = map(Path, sys.argv[1:4])
    embedder = Embedder(path, "".join(sys.argv[4:]))
    frames = np.load(clip)
    np.save(target, embedder.embed(frames))
    print("ready", flush=True)
    for line in sys.stdin:
        embedder.embed_often(frames, int(line))
        print("done", flush=True)


if __name__ == "__main__":
    main()
