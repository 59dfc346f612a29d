"""Score fusion: every frame counts alike. What pools the networks that look at single frames.

    scores (N, C)  ->  ScoreFusion  ->  logits, probabilities, weights, frame_logits

One model serves all of them, whatever their number of classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class FusedScores(NamedTuple):
    """What ScoreFusion says of a clip; the fields are the served tensors' names.

    Args:
        logits: (C,) float32, the mean of the frames'.
        probabilities: (C,) float32, the mean of the frames' softmax, not the softmax of `logits`.
        weights: (N,) float32, 1 / N each.
        frame_logits: (N, C) float32, the scores as they came: Triton 2.51 answers a request for
            some of an ensemble's outputs with "unexpected deadlock" where one of its models takes
            what the ensemble gives out, so that the two have different names.
    """

    logits: Tensor
    probabilities: Tensor
    weights: Tensor
    frame_logits: Tensor


class ScoreFusion(nn.Module):
    """Average over frames, as FAN's paper does in its baseline. No parameters."""

    def forward(self, scores: Tensor) -> FusedScores:
        """Pool the frames of one clip, (N, C) float32, N >= 1."""
        weights = torch.ones_like(scores[:, 0]) / scores.shape[0]
        return FusedScores(scores.mean(0), scores.softmax(1).mean(0), weights, scores.clone())
