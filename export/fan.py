"""Frame Attention Networks: the two halves that Triton serves.

    frames (N, 224, 224, 3) uint8  ->  FrameEmbedder   ->  features (N, 512)
    features (N, 512)              ->  FrameAttention  ->  logits, probabilities, weights, ...

`export.checkpoint` fills them with weights; `export.to_onnx` traces them. Their tensors' names
are those of model_repository/fan_embedder/config.pbtxt and fan_attention/config.pbtxt.

Source: Meng et al., "Frame Attention Networks for Facial Expression Recognition in Videos",
ICIP 2019. Parameter names are those of the authors' checkpoints.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from export.resnet import ResNet18

NUM_FEATURES = 512
FRAME_SIZE = 224  # pixels, height and width of a face
SIZES = (FRAME_SIZE, FRAME_SIZE // 2, FRAME_SIZE // 4)  # of what the first convolution sees

Color = Literal["rgb", "gray"]
Variant = Literal["relation", "self"]  # full FAN, or its first stage alone

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL and OpenCV call gray


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a face's pixels before the first convolution.

    Args:
        color: "rgb", or "gray": luma repeated over three channels.
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


class FrameEmbedder(nn.Module):
    """Turn face frames, as they come over the wire, into features."""

    to_gray: Tensor  # (3, 3)
    mean: Tensor  # (3,)
    std: Tensor  # (3,)

    def __init__(self, backbone: ResNet18, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing
        # One product does both: weigh the colours, and repeat the result over three channels.
        self.register_buffer("to_gray", torch.tensor(LUMA).repeat(3, 1).T.contiguous())
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("std", torch.tensor(preprocessing.std))

    def normalise(self, frames: Tensor) -> Tensor:
        """Bring (N, 224, 224, 3) uint8 RGB to (N, 3, size, size) float as the weights expect."""
        # The cast comes first: TensorRT takes a UINT8 tensor into a Cast and nothing else.
        x = frames.to(self.mean.dtype) / 255
        if self.preprocessing.color == "gray":
            x = x @ self.to_gray
        if self.preprocessing.standardises:
            x = (x - self.mean) / self.std
        x = x.permute(0, 3, 1, 2)
        shrink = FRAME_SIZE // self.preprocessing.size
        return avg_pool2d(x, shrink) if shrink > 1 else x

    def forward(self, frames: Tensor) -> Tensor:
        """Embed N >= 1 frames.

        Args:
            frames: (N, 224, 224, 3) uint8, RGB, 0..255, one aligned face each.

        Returns:
            features: (N, 512) float32.
        """
        return self.backbone(self.normalise(frames)).float()


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
