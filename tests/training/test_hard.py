"""Faces made harder to read: hidden in part, or turned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up import dataset

from training.hard import HARD, PATCHES, SIZE, harden


@pytest.mark.parametrize("kind", list(HARD))
def test_every_network_is_measured_on_the_same_hard_faces(kind):
    data = dataset(14)
    hard = harden(data, kind)
    assert torch.equal(hard.frames, harden(data, kind).frames)
    assert hard.frames.shape == (14, data.frames.shape[1], SIZE, SIZE)
    assert torch.equal(hard.labels, data.labels)
    assert hard.name.endswith(kind)


def test_occluded_faces_lose_eyes_mouth_or_a_half_and_nothing_else():
    data = dataset(64)
    still = torch.nn.functional.interpolate(
        data.frames.float(), (SIZE, SIZE), mode="bilinear", align_corners=False
    )
    places = (np.arange(SIZE) + 0.5) / SIZE
    seen = set()
    for before, after in zip(still, harden(data, "occluded").frames.float(), strict=True):
        changed = ((after - before).abs() > 1).any(0).numpy()
        rows, columns = places[changed.any(1)], places[changed.any(0)]
        box = np.array([columns[0], rows[0], columns[-1], rows[-1]])
        (fits,) = [i for i, patch in enumerate(PATCHES) if np.abs(box - patch).max() < 0.03]
        inside = after[:, changed]
        assert inside.std() < 1  # one gray
        seen.add(fits)
    assert len(seen) == len(PATCHES)


def test_turned_faces_are_narrower_and_tilted():
    data = dataset(32)
    disc = torch.zeros(1, 48, 48, dtype=torch.uint8)
    disc[:, 16:32, 16:32] = 255
    frames = disc.expand_as(data.frames[:, :1]).contiguous()
    seen = harden(replace(data, frames=frames), "turned").frames[:, 0].float() / 255
    area = seen.mean((1, 2))
    # A turned square covers less, by the cosine of 20 to 45 degrees; nearer parts a little more.
    assert ((area > 0.65 / 9) & (area < 1.0 / 9)).all()
    # And none of its sides is upright any more: corners stick out of where it stood.
    assert (seen.amax(1).sum(1) > 1.05 * SIZE / 3 * area.mul(9).clamp(max=1)).all()
