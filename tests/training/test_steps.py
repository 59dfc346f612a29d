"""What a step of training sees depends on its number alone."""

from dataclasses import replace

import torch
from made_up import dataset, draws, pictures

from training.augment import Variation, mix_up, vary
from training.run import (
    FRAMES_PER_MADE_CLIP,
    draw_clips,
    take_clips,
)
from training.spoil import (
    CLEAR,
    DARK,
    KINDS,
    MIXED_SHARE,
    TURNED,
    draw_kinds,
    make_clips,
    mixed_sources,
    other_emotions,
    pictures_of,
)
from training.stills import batch_at


def test_every_picture_comes_once_an_epoch():
    steps = [batch_at(step, 100, 32, 0) for step in range(25)]  # 8 epochs of 100 pictures
    assert (torch.cat(steps).bincount(minlength=100) == 8).all()
    assert all(len(step) == 32 for step in steps)


def test_draws_depend_on_the_step_alone():
    images = torch.from_numpy(pictures(4)[0])[:, None]
    first, again, other = (vary(images, 56, Variation(), draws(0, n)) for n in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 1, 56, 56)
    assert 0 <= first.min() <= first.max() <= 1


def test_no_variation_shows_the_picture_as_it_is():
    images = torch.from_numpy(pictures(6)[0])[:, None]
    still = Variation(
        crop=(1, 1), turn=0, shear=0, shift=0, light=0, erase=0, gamma=0, detail=0, noise=0
    )
    faces = vary(images, 48, still, draws(0)) * 255
    # Within a rounding of float32; flips are drawn whatever else is not.
    for face, image in zip(faces, images.float(), strict=True):
        assert min((face - i).abs().max() for i in (image, image.flip(2))) < 0.01


def test_mixed_labels_remain_distributions():
    targets = torch.eye(7)[:6]
    faces, mixed = mix_up(torch.rand(6, 1, 8, 8), targets, 0.2, draws(1))
    assert torch.allclose(mixed.sum(1), torch.ones(6))
    assert faces.shape == (6, 1, 8, 8)
    assert mix_up(faces, targets, 0.0, draws(1)) == (faces, targets)


def test_as_many_frames_are_spoilt_as_asked():
    num_spoilt = torch.tensor([0, 1, 4, 8])
    kinds = draw_kinds(4, 8, num_spoilt, draws(0))
    assert ((kinds != CLEAR).sum(1) == num_spoilt).all()
    assert set(draw_kinds(200, 8, torch.full((200,), 8), draws(0)).unique().tolist()) == set(
        range(len(KINDS))
    )


def test_another_emotion_is_any_of_the_others_alike():
    emotions = torch.tensor([0] * 90 + [3] * 9 + [6])
    own = torch.tensor([0, 3, 6]).repeat(400)
    other = other_emotions(emotions, own, draws(0))
    assert (other != own).all()
    counts = other[own == 0].bincount(minlength=7)
    assert counts[[3, 6]].sum() == 400
    assert (counts[[3, 6]] > 150).all()  # however rare its pictures are
    # Where the data have one emotion, there is no other to show.
    assert (other_emotions(torch.full((5,), 2), torch.full((4,), 2), draws(0)) == 2).all()


def test_pictures_are_of_the_emotion_wanted_and_not_always_the_same():
    emotions = torch.arange(70) % 7
    wanted = torch.arange(7).repeat(20)
    found = pictures_of(emotions, wanted, draws(0))
    assert torch.equal(emotions[found], wanted)
    assert len(found.unique()) > 50


def test_mixed_clips_show_as_many_frames_of_one_other_emotion_as_asked():
    emotions = torch.arange(70) % 7
    chosen = torch.arange(70).repeat(4)
    num_others = torch.arange(4).repeat_interleave(70)
    sources = mixed_sources(emotions, chosen, num_others, 8, draws(0))
    shown, own = emotions[sources], emotions[chosen, None]
    assert ((shown != own).sum(1) == num_others).all()
    assert all(len(clip.unique()) <= 2 for clip in shown)
    # A clip of one emotion is of one face; of two, each is one face's in about half of them.
    assert (sources[num_others == 0] == chosen[num_others == 0, None]).all()
    two = num_others >= 2
    alike = torch.tensor([len(clip.unique()) == 2 for clip in sources[two]])
    assert 0.35 < alike.float().mean() < 0.65


def test_clips_to_learn_from_keep_their_emotion_and_clear_frames():
    emotions = torch.arange(70) % 7
    chosen = torch.arange(70).repeat(10)
    sources, kinds = draw_clips(emotions, chosen, draws(0))
    assert sources.shape == kinds.shape == (700, FRAMES_PER_MADE_CLIP)
    assert ((kinds == CLEAR).sum(1) >= 2).all()
    others = (emotions[sources] != emotions[chosen, None]).sum(1)
    assert others.max() <= FRAMES_PER_MADE_CLIP // 2
    assert abs((others > 0).float().mean() - MIXED_SHARE) < 0.08


def test_spoilt_frames_are_spoilt_and_clear_ones_are_not():
    images = torch.full((14, 1, 48, 48), 128, dtype=torch.uint8)
    sources = torch.arange(14)[:, None].repeat(1, 8)
    kinds = draw_kinds(14, 8, torch.full((14,), 4), draws(1))
    made = make_clips(images, torch.arange(14) % 7, sources, kinds, 56, draws(0))
    assert made.faces.shape == (14, 8, 1, 56, 56)
    assert torch.equal(made.labels, torch.arange(14) % 7)
    assert torch.equal(made.kinds, kinds)
    brightness = made.faces.mean((2, 3, 4))
    assert brightness[kinds == CLEAR].min() > 0.3
    assert brightness[kinds == DARK].max() < 0.12


def test_every_frame_shows_its_source():
    images = torch.tensor([60, 180], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 1, 48, 48)
    sources = torch.tensor([[0, 1, 0, 1]])
    kinds = torch.full((1, 4), CLEAR)
    made = make_clips(images, torch.tensor([3]), sources, kinds, 56, draws(0))
    assert torch.equal((made.faces.mean((2, 3, 4)) > 0.47).long(), sources)


def test_face_that_is_turned_away_is_narrow():
    images = torch.zeros(1, 1, 48, 48, dtype=torch.uint8)
    images[..., 8:40, 8:40] = 255  # a face as wide as it is high
    kinds = torch.tensor([[CLEAR, TURNED] * 16])
    made = make_clips(images, torch.tensor([3]), torch.zeros_like(kinds), kinds, 56, draws(0))
    seen = made.faces[0, :, 0] > 0.5
    widths, heights = seen.any(1).sum(1), seen.any(2).sum(1)
    turned = kinds[0] == TURNED
    assert (widths[turned] < 0.75 * heights[turned]).all()
    assert (widths[~turned] > 0.75 * heights[~turned]).all()


def test_real_clips_give_one_frame_of_each_third():
    data = dataset(6, frames_per_clip=9)
    values = torch.arange(54).repeat_interleave(48 * 48).view(54, 1, 48, 48)
    data = replace(data, frames=(values * 4).byte())
    plain = Variation(light=0, erase=0, gamma=0, detail=0, noise=0)
    for step in range(4):
        taken = take_clips(data, torch.arange(6), 56, draws(step), plain)
        numbers = (taken.faces.mean((2, 3, 4)) * 255 / 4).round().long()
        assert (numbers // 3 == torch.arange(18).view(6, 3)).all()
        assert (taken.kinds == CLEAR).all()
