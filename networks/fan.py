"""Frame Attention Networks: the two halves that Triton serves.

    frames (N, 224, 224, 3) uint8  ->  FrameEmbedder   ->  features (N, 512)
    features (N, 512)              ->  FrameAttention  ->  logits, probabilities, weights, ...

`networks.checkpoint` fills them with weights; `export.to_onnx` traces them. Their tensors' names
are those of model_repository/fan_embedder/config.pbtxt and fan_attention/config.pbtxt.

Source: Meng et al., "Frame Attention Networks for Facial Expression Recognition in Videos",
ICIP 2019. Parameter names are those of the authors' checkpoints.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from networks.preprocessing import Normaliser, Preprocessing
from networks.resnet import NUM_FEATURES, ResNet18

Variant = Literal["relation", "self"]  # full FAN, or its first stage alone


class FrameEmbedder(nn.Module):
    """Turn face frames, as they come over the wire, into features."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normaliser = Normaliser(preprocessing, preprocessing.num_channels)
        self.backbone = ResNet18()

    def forward(self, frames: Tensor) -> Tensor:
        """Embed N >= 1 frames.

        Args:
            frames: (N, 224, 224, 3) uint8, RGB, 0..255, one aligned face each.

        Returns:
            features: (N, 512) float32.
        """
        return self.backbone(self.normaliser(frames)).float()


class FrameClassifier(nn.Module):
    """Classify every frame on its own: the paper's baseline, pooled by `networks.score_fusion`."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()
        self.fc = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Turn (N, 512) float32 features into (N, C) float32 logits."""
        return linear(self.fc, features)


class ClipAnswer(NamedTuple):
    """What FrameAttention says of a clip; the fields are the served tensors' names.

    Args:
        logits: (C,) float32, unnormalised, in the order of labels.txt.
        probabilities: (C,) float32, softmax of `logits`.
        weights: (N,) float32, each frame's share of the answer; sums to 1.
        frame_logits: (N, C) float32; `logits` is their mean weighted by `weights`.
        self_weights: (N,) float32 in (0, 1), the self-attention values before normalisation.
    """

    logits: Tensor
    probabilities: Tensor
    weights: Tensor
    frame_logits: Tensor
    self_weights: Tensor


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in its weights' precision; give back float32.

    In FP16 the products are half and every sum over frames is not: 65,536 of them would overflow.
    """
    y = layer(x.to(next(layer.parameters()).dtype))
    return y.float() if y.dtype == torch.half else y


class FrameAttention(nn.Module):
    """Weigh a clip's frames by themselves (alpha), then by their relation to the clip (beta).

    Source: Meng et al., ICIP 2019, equations 1 to 5. The authors' evaluation script leaves beta
    out of one numerator; the paper's formula and their training path, followed here, do not.
    """

    def __init__(self, num_classes: int = 7, variant: Variant = "relation") -> None:
        super().__init__()
        if variant not in ("relation", "self"):
            raise ValueError(f"variant is {variant!r}; expected 'relation' or 'self'")
        self.variant = variant
        self.alpha = nn.Sequential(nn.Linear(NUM_FEATURES, 1), nn.Sigmoid())
        self.beta = nn.Sequential(nn.Linear(2 * NUM_FEATURES, 1), nn.Sigmoid())
        self.pred_fc1 = nn.Linear(NUM_FEATURES, num_classes)
        self.pred_fc2 = nn.Linear(2 * NUM_FEATURES, num_classes)

    def forward(self, features: Tensor) -> ClipAnswer:
        """Pool the frames of one clip.

        Args:
            features: (N, 512) float32, N >= 1.
        """
        alphas = linear(self.alpha[0], features).sigmoid()  # (N, 1)
        shares = alphas / alphas.sum(0)
        if self.variant == "self":
            frame_logits = linear(self.pred_fc1, features)
        else:
            clip = (shares * features).sum(0, keepdim=True)  # (1, 512)
            relations = torch.cat([features, clip.expand_as(features)], dim=1)  # (N, 1024)
            weights = alphas * linear(self.beta[0], relations).sigmoid()
            shares = weights / weights.sum(0)
            frame_logits = linear(self.pred_fc2, relations)
        # The classifier is affine and the shares sum to 1, so pooling the frames' logits equals
        # classifying the pooled features, and every frame's evidence is exact.
        logits = (shares * frame_logits).sum(
            0, keepdim=True
        )  # (1, C): TensorRT's softmax wants 2-D
        return ClipAnswer(
            logits.squeeze(0),
            logits.softmax(1).squeeze(0),
            shares.squeeze(1),
            frame_logits,
            alphas.squeeze(1),
        )
