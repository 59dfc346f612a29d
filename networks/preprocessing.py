"""What happens to a face's pixels before the first convolution, inside the graph.

    frames (N, 224, 224, 3) uint8 RGB  ->  Normaliser  ->  (N, channels, size, size) float

Every network begins with it, so that clients send the same bytes to all of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

FRAME_SIZE = 224  # pixels, height and width of a face on the wire
SIZES = (FRAME_SIZE, 112, 56, 48)  # of what the first convolution sees

Color = Literal["rgb", "gray"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL and OpenCV call gray


@dataclass(frozen=True)
class Preprocessing:
    """What a network's weights expect of pixels.

    Args:
        color: "rgb", or "gray": luma, as if repeated where the network has three channels.
        mean: subtracted from pixels / 255, one value a channel.
        std: divides what is left, one value a channel.
        size: pixels of a side to which a face is averaged down; weights that learnt from small
            pictures gain nothing from more, and a quarter of the pixels is a quarter of the work.
    """

    color: Color = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    size: int = FRAME_SIZE

    def __post_init__(self) -> None:
        if self.color not in ("rgb", "gray"):
            raise ValueError(f"color is {self.color!r}; expected 'rgb' or 'gray'")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std}; expected three values each, std above 0"
            )
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size}; expected one of {SIZES}")

    @property
    def standardises(self) -> bool:
        """Whether mean and std change anything; the graph has no node for them otherwise."""
        return any(self.mean) or set(self.std) != {1.0}

    @property
    def num_channels(self) -> int:
        """Channels that differ: 1 where a network of three would see the same in all of them."""
        equal = self.color == "gray" and len(set(self.mean)) == 1 and len(set(self.std)) == 1
        return 1 if equal else 3


class Normaliser(nn.Module):
    """Do to frames what a Preprocessing says.

    Args:
        channels: that it gives: 3, or 1 for a network of gray pictures alone; a ResNet-18 takes
            `preprocessing.num_channels`.
    """

    weigh: Tensor  # (3, channels)
    weigh_columns: Tensor  # (3 * factor, channels)
    mean: Tensor  # (channels,)
    std: Tensor  # (channels,)
    cells: Tensor  # (size, 224)

    def __init__(self, preprocessing: Preprocessing, channels: int = 3) -> None:
        super().__init__()
        if channels != 3 and preprocessing.color != "gray":
            raise ValueError(f"color is {preprocessing.color!r}; the network takes gray alone")
        self.preprocessing = preprocessing
        self.channels = channels
        # Pixels to a cell, along a side, and what is left over.
        self.factor, self.rest = divmod(FRAME_SIZE, preprocessing.size)
        # One product does both: weigh the colours, and repeat the result over the channels.
        gray = torch.tensor(LUMA).repeat(channels, 1).T.contiguous()
        weigh = gray if preprocessing.color == "gray" else torch.eye(3)
        columns = weigh.repeat(self.factor, 1) / (self.factor * 255)
        # None of these is a weight: a checkpoint has its Preprocessing instead.
        self.register_buffer("weigh", weigh, persistent=False)
        self.register_buffer("weigh_columns", columns, persistent=False)
        self.register_buffer("mean", to_float(preprocessing.mean[:channels]), persistent=False)
        self.register_buffer("std", to_float(preprocessing.std[:channels]), persistent=False)
        self.register_buffer("cells", cells_of(preprocessing.size), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Bring (N, 224, 224, 3) uint8 RGB to (N, channels, size, size) as the weights expect."""
        # The cast comes first: TensorRT takes a UINT8 tensor into a Cast and nothing else.
        x = frames.to(self.mean.dtype)
        if self.rest:
            return self.cells @ self.standardise(x / 255).permute(0, 3, 1, 2) @ self.cells.T
        x = self.scale(self.average(x)) if self.factor > 1 else self.standardise(x / 255)
        return x.permute(0, 3, 1, 2)

    def average(self, x: Tensor) -> Tensor:
        """Average (N, 224, 224, 3), 0..255, over cells: (N, size, size, channels), 0..1.

        Rows first, as they lie in memory; then one product for columns and colours.
        """
        size = self.preprocessing.size
        rows = x.reshape(-1, size, self.factor, FRAME_SIZE * 3).mean(2)
        return rows.reshape(-1, size, size, 3 * self.factor) @ self.weigh_columns

    def standardise(self, x: Tensor) -> Tensor:
        """Bring (..., 3) RGB, 0..1, to (..., channels) of the colour, mean and std expected."""
        return self.scale(x @ self.weigh if self.preprocessing.color == "gray" else x)

    def scale(self, x: Tensor) -> Tensor:
        """Take off the mean and divide by std."""
        return (x - self.mean) / self.std if self.preprocessing.standardises else x


def to_float(values: tuple[float, ...]) -> Tensor:
    """Make float32 of numbers that a file may have written as whole ones."""
    return torch.tensor(values, dtype=torch.float32)


def cells_of(size: int) -> Tensor:
    """Say which of 224 pixels each of `size` cells averages: (size, 224), rows sum to 1.

    Those that lie wholly in it. A picture of `size` pixels that was enlarged by repeating them
    comes back as it was, to the bit, whichever way the enlarging rounded.
    """
    edges = torch.arange(size + 1) * FRAME_SIZE / size
    pixels = torch.arange(FRAME_SIZE)
    inside = (pixels >= edges[:-1, None]) & (pixels + 1 <= edges[1:, None])
    return inside / inside.sum(1, keepdim=True)
