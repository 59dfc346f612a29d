"""DAN: four cross-attention heads over a ResNet-18's map, kept apart by their fusion.

    frames (N, 224, 224, 3) uint8  ->  Dan  ->  frame_logits (N, C)

Source: Wen et al., "Distract Your Attention: Multi-head Cross Attention Network for Facial
Expression Recognition", 2021. Parameter names are those of the authors' checkpoints, except that
the ResNet's, numbered there (`features.4.0.conv1`), have its own names here (`layer1.0.conv1`).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from networks.preprocessing import Normaliser, Preprocessing
from networks.resnet import NUM_FEATURES, ResNet18

NUM_HEADS = 4
INNER_CHANNELS = 256  # of the spatial attention
SQUEEZED = 32  # of the channel attention

# torchvision's ResNet as a Sequential: the stem is 0 to 3, the stages follow.
STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def rename(key: str) -> str:
    """Turn a name of the authors' checkpoints into ours: features.4.0.conv1 -> layer1.0.conv1."""
    room, _, rest = key.partition(".")
    if room != "features":
        return key
    stage, _, rest = rest.partition(".")
    return f"{STAGES.get(stage, stage)}.{rest}"


def convolution(height: int, width: int) -> nn.Sequential:
    """One arm of the spatial attention: a convolution that keeps the map's size, and BatchNorm."""
    padding = (height // 2, width // 2)
    return nn.Sequential(
        nn.Conv2d(INNER_CHANNELS, NUM_FEATURES, (height, width), padding=padding),
        nn.BatchNorm2d(NUM_FEATURES),
    )


class SpatialAttention(nn.Module):
    """Weigh the places of a map by one map, made of three convolutions' sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(
            nn.Conv2d(NUM_FEATURES, INNER_CHANNELS, 1), nn.BatchNorm2d(INNER_CHANNELS)
        )
        self.conv_3x3 = convolution(3, 3)
        self.conv_1x3 = convolution(1, 3)
        self.conv_3x1 = convolution(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh (N, 512, H, W)."""
        y = self.conv1x1(x)
        y = (self.conv_3x3(y) + self.conv_1x3(y) + self.conv_3x1(y)).relu()
        return x * y.sum(1, keepdim=True)


class ChannelAttention(nn.Module):
    """Pool a map, and weigh what comes out by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(NUM_FEATURES, SQUEEZED),
            nn.BatchNorm1d(SQUEEZED),
            nn.ReLU(),
            nn.Linear(SQUEEZED, NUM_FEATURES),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Turn (N, 512, H, W) into (N, 512)."""
        pooled = x.mean((2, 3))
        return pooled * self.attention(pooled)


class CrossAttention(nn.Module):
    """One head: where to look, then at what."""

    def __init__(self) -> None:
        super().__init__()
        self.sa = SpatialAttention()
        self.ca = ChannelAttention()

    def forward(self, x: Tensor) -> Tensor:
        """Turn (N, 512, H, W) into (N, 512)."""
        return self.ca(self.sa(x))


class DanAnswer(NamedTuple):
    """What Dan says of frames; the fields are the served tensors' names.

    Args:
        frame_logits: (N, C) float32, unnormalised.
    """

    frame_logits: Tensor


class Dan(nn.Module):
    """DAN from pixels to logits."""

    def __init__(self, num_classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normaliser = Normaliser(preprocessing, preprocessing.num_channels)
        self.backbone = ResNet18()
        for i in range(NUM_HEADS):
            self.add_module(f"cat_head{i}", CrossAttention())
        self.fc = nn.Linear(NUM_FEATURES, num_classes)
        self.bn = nn.BatchNorm1d(num_classes)

    def attend(self, features: Tensor) -> Tensor:
        """Look at (N, 512, h, w) maps with every head: (N, 4, 512), each head's log-share."""
        heads = [self.get_submodule(f"cat_head{i}")(features) for i in range(NUM_HEADS)]
        return torch.stack(heads, 1).log_softmax(1)

    def classify(self, x: Tensor) -> Tensor:
        """Classify (N, 3 or 1, S, S) normalised pictures: (N, C) logits."""
        return self.bn(self.fc(self.attend(self.backbone.stages(x)).sum(1)))

    def forward(self, frames: Tensor) -> DanAnswer:
        """Classify N >= 1 frames, (N, 224, 224, 3) uint8 RGB."""
        return DanAnswer(self.classify(self.normaliser(frames)).float())
