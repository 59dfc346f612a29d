"""Which plans there are, and for which shapes: named here once.

The configs in model_repository/ repeat the largest; tests/test_engines.py ties the two together.
Nothing here needs torch, onnx or TensorRT: the container that builds plans has only the last.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
Precision = Literal["fp16", "int8"]


@dataclass(frozen=True)
class Profile:
    """TensorRT's shapes of the one dynamic input.

    Args:
        tensor: the input's name.
        frame: the dims after the number of frames.
        low: fewest frames.
        common: the number that kernels are tuned for.
        high: most frames.
    """

    tensor: str
    frame: tuple[int, ...]
    low: int
    common: int
    high: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, the common and the largest shape."""
        low, common, high = ((n, *self.frame) for n in (self.low, self.common, self.high))
        return low, common, high


@dataclass(frozen=True)
class Plan:
    """One TensorRT plan.

    Args:
        model: its folder in model_repository/.
        precision: of the graph it is built from; never a builder's flag.
        filename: as the configs name it.
        profile: its shapes.
    """

    model: str
    precision: Precision
    filename: str
    profile: Profile

    @property
    def graph(self) -> Path:
        """The ONNX file it is built from, relative to the project."""
        return Path("build") / self.precision / f"{self.model}.onnx"

    @property
    def path(self) -> Path:
        """The plan, relative to the project."""
        return Path("model_repository") / self.model / "1" / self.filename


# 32 frames: three seconds of a clip at 10 frames a second, or a few clips that arrive together.
FRAMES = Profile("frames", (224, 224, 3), low=1, common=32, high=128)
# An hour at 10 frames a second is 36,000.
FEATURES = Profile("features", (512,), low=1, common=64, high=65_536)

PLANS = (
    Plan("fan_embedder", "fp16", "model.plan", FRAMES),
    Plan("fan_embedder", "int8", "model_int8.plan", FRAMES),
    Plan("fan_attention", "fp16", "model.plan", FEATURES),  # platform int8 serves it too
)
