"""RAN: the face and crops of it, weighed against each other as FAN weighs frames.

    frames (N, 224, 224, 3) uint8  ->  Ran  ->  frame_logits (N, C), region_weights (N, R)

The regions are cut inside the graph, so that the wire stays one face a frame.

Source: Wang et al., "Region Attention Networks for Pose and Occlusion Robust Facial Expression
Recognition", TIP 2020, and the authors' code, which takes a softmax over the regions of both
attentions' sigmoids. Parameter names are those of the authors' checkpoints.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from networks.preprocessing import Normaliser, Preprocessing
from networks.resnet import NUM_FEATURES, ResNet18

# Left, top, right and bottom, as shares of the face; the whole face comes last.
BOXES = (
    (0.125, 0.25, 0.875, 1.0),
    (0.0, 0.0, 0.75, 0.75),
    (0.25, 0.0, 1.0, 0.75),
    (0.05, 0.05, 0.95, 0.95),
    (0.1, 0.1, 0.9, 0.9),
    (0.125, 0.125, 0.875, 0.875),
    (0.125, 0.0, 0.875, 0.75),
    (0.0, 0.0, 1.0, 1.0),
)
# The authors' script for AffectNet takes all of them, that for FERPlus six.
VARIANTS = {"regions8": BOXES, "regions6": (*BOXES[:5], BOXES[7])}


class Regions(NamedTuple):
    """What RAN makes of N faces' R regions.

    Args:
        alphas: (N, R) in (0, 1), of each region by itself.
        betas: (N, R) in (0, 1), of each region beside the face's mean.
        weights: (N, R), each region's share of the answer; rows sum to 1.
        pooled: (N, 1024), what is classified.
    """

    alphas: Tensor
    betas: Tensor
    weights: Tensor
    pooled: Tensor


class RanAnswer(NamedTuple):
    """What Ran says of frames; the fields are the served tensors' names.

    Args:
        frame_logits: (N, C) float32, unnormalised.
        region_weights: (N, R) float32, each region's share of the answer; rows sum to 1.
    """

    frame_logits: Tensor
    region_weights: Tensor


class Ran(nn.Module):
    """RAN from pixels to logits."""

    columns: Tensor  # (R - 1, 1, S, S)
    rows: Tensor  # (R - 1, 1, S, S)

    def __init__(
        self, num_classes: int, preprocessing: Preprocessing, variant: str = "regions8"
    ) -> None:
        super().__init__()
        *parts, _ = VARIANTS[variant]
        self.normaliser = Normaliser(preprocessing, preprocessing.num_channels)
        size = preprocessing.size
        columns = [enlarge(left, right, size) for left, _, right, _ in parts]
        rows = [enlarge(top, bottom, size) for _, top, _, bottom in parts]
        self.register_buffer("columns", torch.stack(columns)[:, None], persistent=False)
        self.register_buffer("rows", torch.stack(rows)[:, None], persistent=False)
        self.backbone = ResNet18()
        self.alpha = nn.Sequential(nn.Linear(NUM_FEATURES, 1), nn.Sigmoid())
        self.beta = nn.Sequential(nn.Linear(2 * NUM_FEATURES, 1), nn.Sigmoid())
        self.fc = nn.Linear(2 * NUM_FEATURES, num_classes)

    def cut(self, faces: Tensor) -> Tensor:
        """Cut (N, C, S, S) faces into (N, R, C, S, S) regions, each enlarged."""
        whole = faces[:, None]
        parts = self.rows @ whole @ self.columns.transpose(2, 3)
        return torch.cat([parts, whole], 1)

    def embed(self, regions: Tensor) -> Tensor:
        """Embed (N, R, 3 or 1, S, S) normalised regions: (N, R, 512)."""
        return self.backbone(regions.flatten(0, 1)).unflatten(0, (-1, regions.shape[1]))

    def pool(self, features: Tensor) -> Regions:
        """Pool (N, R, 512) features."""
        alphas = weigh(self.alpha, features)
        face = (alphas.softmax(1)[:, :, None] * features).sum(1, keepdim=True)
        relations = torch.cat([features, face.expand_as(features)], 2)
        betas = weigh(self.beta, relations)
        weights = alphas.softmax(1) * betas.softmax(1)
        weights = weights / weights.sum(1, keepdim=True)
        return Regions(alphas, betas, weights, (weights[:, :, None] * relations).sum(1))

    def look(self, x: Tensor) -> tuple[Tensor, Regions]:
        """Classify (N, 3 or 1, S, S) normalised faces: (N, C) logits, and what the regions say."""
        regions = self.pool(self.embed(self.cut(x)))
        return self.fc(regions.pooled), regions

    def classify(self, x: Tensor) -> Tensor:
        """Classify (N, 3 or 1, S, S) normalised faces: (N, C) logits."""
        return self.look(x)[0]

    def forward(self, frames: Tensor) -> RanAnswer:
        """Classify N >= 1 frames, (N, 224, 224, 3) uint8 RGB."""
        logits, regions = self.look(self.normaliser(frames))
        return RanAnswer(logits.float(), regions.weights.float())


def weigh(head: nn.Module, x: Tensor) -> Tensor:
    """Apply an attention head to (N, R, D): (N, R)."""
    return head(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1])).squeeze(2)


def enlarge(low: float, high: float, size: int) -> Tensor:
    """Say which of a side's pixels each of as many others, between two places, is made of.

    Args:
        low, high: as shares of a side.
        size: pixels of a side.

    Returns:
        (size, size) float32; rows sum to 1. Cubic interpolation as PIL does it (a = -0.5), with the
        crop's own pixels alone.
    """
    places = (low + (torch.arange(size) + 0.5) * (high - low) / size) * size
    pixels = torch.arange(size)
    distances = (places[:, None] - pixels - 0.5).abs()
    near = (1.5 * distances - 2.5) * distances**2 + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    weights = torch.where(distances < 1, near, torch.where(distances < 2, far, 0))
    weights = weights * ((pixels + 1 > low * size) & (pixels < high * size))
    return weights / weights.sum(1, keepdim=True)
