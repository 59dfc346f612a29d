"""Which plans there are, and for which shapes: named here once.

The configs in model_repository/ repeat the largest; tests/export/test_engines.py ties the two.
Nothing here needs torch, onnx or TensorRT: the container that builds plans has only the last.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Precision = Literal["fp16", "int8"]


class Span(NamedTuple):
    """The lengths that an axis can have: the least, that which kernels are tuned for, the most."""

    low: int
    common: int
    high: int


@dataclass(frozen=True, kw_only=True)
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
    frame: tuple[int | Span, ...]
    low: int
    common: int
    high: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, the common and the largest shape."""
        low, common, high = (
            (num_frames, *(dim[i] if isinstance(dim, Span) else dim for dim in self.frame))
            for i, num_frames in enumerate((self.low, self.common, self.high))
        )
        return low, common, high


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One TensorRT plan.

    Args:
        network: that it is of, as `videofer export --model` knows it.
        model: its folder in model_repository/.
        precision: of the graph it is built from; never a builder's flag.
        filename: as the configs name it.
        profile: its shapes.
    """

    network: str
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


def both(network: str, model: str, profile: Profile) -> tuple[Plan, Plan]:
    """The plans of a model that looks at frames."""
    return (
        Plan(
            network=network, model=model, precision="fp16", filename="model.plan", profile=profile
        ),
        Plan(
            network=network,
            model=model,
            precision="int8",
            filename="model_int8.plan",
            profile=profile,
        ),
    )


# 32 frames: three seconds of a clip at 10 frames a second, or a few clips that arrive together.
FRAMES = Profile(tensor="frames", frame=(224, 224, 3), low=1, common=32, high=128)
# RAN looks at up to 8 regions of each.
FRAMES_OF_REGIONS = Profile(tensor="frames", frame=(224, 224, 3), low=1, common=4, high=16)
# An hour at 10 frames a second is 36,000.
FEATURES = Profile(tensor="features", frame=(512,), low=1, common=64, high=65_536)
BATCH_OF_FEATURES = Profile(tensor="features", frame=(512,), low=1, common=32, high=128)
SCORES = Profile(tensor="scores", frame=(Span(2, 7, 64),), low=1, common=64, high=65_536)

# What pools frames, in FP16 or in FP32, serves platform trt_int8 too.
PLANS = (
    *both("fan", "fan_embedder", FRAMES),
    Plan(
        network="fan",
        model="fan_attention",
        precision="fp16",
        filename="model.plan",
        profile=FEATURES,
    ),
    Plan(
        network="fan",
        model="fan_classifier",
        precision="fp16",
        filename="model.plan",
        profile=BATCH_OF_FEATURES,
    ),
    *both("dan", "dan_frames", FRAMES),
    *both("ran", "ran_frames", FRAMES_OF_REGIONS),
    *both("deep_emotion", "deep_emotion_frames", FRAMES),
    Plan(
        network="fan", model="score_fusion", precision="fp16", filename="model.plan", profile=SCORES
    ),
)
