"""Deep-Emotion: a spatial transformer finds the window to look at, a small network looks.

    frames (N, 224, 224, 3) uint8  ->  DeepEmotion  ->  frame_logits (N, C), theta (N, 2, 3)

Source: Minaee and Abdolrashidi, "Deep-Emotion: Facial Expression Recognition Using Attentional
Convolutional Network", 2019. Parameter names are those of its common public implementation.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from networks.preprocessing import Normaliser, Preprocessing

SIZE = 48  # pixels of a side, gray
NUM_CHANNELS = 10
# Convolutions that INT8 spares: docs/measured/quantisation.md has what was tried.
SPARED = ("localization.0", "localization.3", "conv1", "conv2", "conv3")


class DeepEmotionAnswer(NamedTuple):
    """What DeepEmotion says of frames; the fields are the served tensors' names.

    Args:
        frame_logits: (N, C) float32, unnormalised.
        theta: (N, 2, 3) float32: where the window's pixels (x, y, 1) lie on the face, both from -1
            to 1.
    """

    frame_logits: Tensor
    theta: Tensor


class DeepEmotion(nn.Module):
    """Deep-Emotion from pixels to logits."""

    grid: Tensor  # (48 * 48, 3)

    def __init__(self, num_classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normaliser = Normaliser(preprocessing, channels=1)
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, 7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, NUM_CHANNELS, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.fc_loc = nn.Sequential(
            nn.Linear(NUM_CHANNELS * 8 * 8, 32), nn.ReLU(), nn.Linear(32, 6)
        )
        self.conv1 = nn.Conv2d(1, NUM_CHANNELS, 3)
        self.conv2 = nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 3)
        self.conv3 = nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 3)
        self.conv4 = nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 3)
        self.norm = nn.BatchNorm2d(NUM_CHANNELS)  # of conv4's output, beside which it must stand
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout()
        self.fc1 = nn.Linear(NUM_CHANNELS * 9 * 9, 50)
        self.fc2 = nn.Linear(50, num_classes)
        self.register_buffer("grid", pixel_centres(), persistent=False)

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Look at (N, 1, 48, 48) pictures through the window: the view, theta (N, 2, 3)."""
        theta = self.fc_loc(self.localization(x).flatten(1)).unflatten(1, (2, 3))
        # affine_grid by hand: ONNX has an operator for it that TensorRT does not know.
        places = (self.grid @ theta.transpose(1, 2)).unflatten(1, (SIZE, SIZE))
        return grid_sample(x, places, align_corners=False), theta

    def classify(self, x: Tensor) -> Tensor:
        """Classify (N, 1, 48, 48) normalised pictures: (N, C) logits."""
        return self.read(self.transform(x)[0])

    def read(self, x: Tensor) -> Tensor:
        """Classify (N, 1, 48, 48) views through the window: (N, C) logits."""
        x = self.pool(self.conv2(self.conv1(x).relu())).relu()
        x = self.pool(self.norm(self.conv4(self.conv3(x).relu()))).relu()
        return self.fc2(self.fc1(self.dropout(x).flatten(1)).relu())

    def forward(self, frames: Tensor) -> DeepEmotionAnswer:
        """Classify N >= 1 frames, (N, 224, 224, 3) uint8 RGB."""
        view, theta = self.transform(self.normaliser(frames))
        return DeepEmotionAnswer(self.read(view).float(), theta.float())


def pixel_centres() -> Tensor:
    """List every pixel's centre, row by row, as (x, y, 1) with both from -1 to 1."""
    centres = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], 2).flatten(0, 1)
