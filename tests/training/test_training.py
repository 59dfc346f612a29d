"""Training can be stopped anywhere, reads what people have, and measures what is served."""

import csv
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from conftest import ffmpeg, random_checkpoint
from PIL import Image

import training.attention
import training.loop
import training.options
from base.errors import CheckpointError, ExportError
from export.faces import to_face
from networks.checkpoint import (
    LABELS,
    Embedder,
    build,
    embedder_weights,
    read_checkpoint,
    read_embedder,
    write_checkpoint,
)
from networks.entries import NETWORKS
from networks.preprocessing import SIZES, Preprocessing
from training import TrainingError, clips, crossval, evaluate, measure, run, stills
from training.attention import (
    EXPRESSION,
    Embedded,
    round_weights,
    shares_of,
)
from training.augment import Variation, mix_up, vary
from training.clips import ClipClassifier, ClipsRecipe
from training.command import main
from training.data import Dataset, folds_by_subject, read_dataset
from training.distill import softened
from training.loop import Fit, Recipe, choose_device, generator
from training.run import (
    FRAMES_PER_MADE_CLIP,
    Options,
    draw_clips,
    take_clips,
    train,
    train_clips,
    train_network,
    train_stills,
)
from training.spoil import (
    CLEAR,
    DARK,
    KINDS,
    MIXED_SHARE,
    TURNED,
    blur,
    draw_kinds,
    make_clips,
    mixed_sources,
    other_emotions,
    pictures_of,
)
from training.stills import Phase, StillClassifier, StillsRecipe, as_embedder, batch_at

FER2013 = LABELS["fer2013"]
CPU = torch.device("cpu")


def draws(*numbers):
    return generator(CPU, *numbers)


def pictures(num, side=48, seed=0):
    """Gray pictures, (num, side, side) uint8, and labels that take turns."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, side, side), dtype=np.uint8), np.arange(num) % 7


def dataset(num=28, frames_per_clip=1, seed=0):
    images, _ = pictures(num * frames_per_clip, seed=seed)
    return Dataset(
        "made up",
        torch.from_numpy(images)[:, None],
        torch.arange(num + 1) * frames_per_clip,
        torch.arange(num) % 7,
        FER2013,
        tuple(f"S{i // 2:03}" for i in range(num)),
    )


def options(folder, **changes):
    usual = Options(folder, 56, (Phase(56, 3.0),), 3.0, seed=0, initial=None)
    return replace(usual, **changes)


# --- a run ---


class Killed(Exception):
    pass


def same(one, other):
    assert one.state.keys() == other.state.keys()
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_killed_run_ends_with_the_weights_it_would_have_had(tmp_path, monkeypatch):
    monkeypatch.setattr(training.loop, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training.loop, "LOG_STEPS", 2)
    data = dataset(128)

    def start(folder, killed_at=None):
        def vary_until(*arguments):
            if folder.exists() and len(seen) == killed_at:
                raise Killed
            seen.append(1)
            return vary(*arguments)

        seen = []
        monkeypatch.setattr(stills, "vary", vary_until)
        return train_stills(data, None, options(folder))

    whole = start(tmp_path / "whole")
    with pytest.raises(Killed):
        start(tmp_path / "killed", killed_at=5)
    resumed = start(tmp_path / "killed")
    assert same(whole, resumed)
    logs = [(tmp_path / name / "stills" / "log.csv").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]


def test_state_of_a_run_with_other_settings_is_refused(tmp_path):
    data = dataset(64)
    train_stills(data, None, options(tmp_path, phases=(Phase(56, 1.0),)))
    usual = options(tmp_path, phases=(Phase(56, 1.0),))
    others = [
        (data, options(tmp_path, phases=(Phase(56, 2.0),)), "recipe's phases"),
        (data, options(tmp_path, phases=(Phase(56, 1.0),), size=112), "size 56"),
        (replace(data, label_names=(*FER2013[:6], "calm")), usual, "labels"),
        (dataset(64, seed=1), usual, "data"),
    ]
    for other, changed, what in others:
        words = rf"state.pt belongs to a run with other settings: (steps .*)?{what} .*--out"
        with pytest.raises(ExportError, match=words):
            train_stills(other, None, changed)


def test_stage_two_killed_ends_with_the_weights_it_would_have_had(tmp_path, monkeypatch):
    monkeypatch.setattr(training.loop, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training.loop, "LOG_STEPS", 1)
    data = dataset(48)

    def start(folder, killed_at=None):
        def make_until(*arguments):
            if len(seen) == killed_at:
                raise Killed
            seen.append(1)
            return make_clips(*arguments)

        seen = []
        monkeypatch.setattr(run, "make_clips", make_until)
        return train_clips(data, None, None, options(folder))

    whole = start(tmp_path / "whole")
    with pytest.raises(Killed):
        start(tmp_path / "killed", killed_at=4)
    assert same(whole, start(tmp_path / "killed"))


def test_attention_killed_ends_with_the_weights_it_would_have_had(tmp_path, monkeypatch):
    monkeypatch.setattr(training.loop, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training.loop, "LOG_STEPS", 1)
    monkeypatch.setattr(training.attention, "BATCH", 24)
    embedder = as_embedder(StillClassifier(7).state_dict(), FER2013)
    loss_of = training.attention.loss_of

    def start(folder, killed_at=None):
        def loss_until(*arguments):
            if len(seen) == killed_at:
                raise Killed
            seen.append(1)
            return loss_of(*arguments)

        seen = []
        monkeypatch.setattr(training.attention, "loss_of", loss_until)
        return train_clips(dataset(28), None, embedder, options(folder)), len(seen)

    whole, num_steps = start(tmp_path / "whole")
    with pytest.raises(Killed):
        start(tmp_path / "killed", killed_at=4)
    resumed, num_left = start(tmp_path / "killed")
    assert same(whole, resumed)
    assert num_left == num_steps - 4


def test_state_that_is_cut_off_is_refused(tmp_path):
    fit = Fit(StillClassifier(7), Recipe(1, 0.1), tmp_path, {})
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ExportError, match=r"state.pt: not a readable torch .*; delete it"):
        fit.resume()
    for content in ([1, 2], {"identity": {}}):
        torch.save(content, tmp_path / "state.pt")
        with pytest.raises(ExportError, match="not a state that was saved here"):
            fit.resume()


def test_validation_touches_nothing(tmp_path):
    data, held_out = dataset(48), dataset(14, seed=9)  # fewer than a batch
    alone = train_stills(data, None, options(tmp_path / "alone"))
    beside = train_stills(data, held_out, options(tmp_path / "beside"))
    assert same(alone, beside)
    rows = list(csv.DictReader((tmp_path / "beside" / "stills" / "log.csv").open()))
    assert any(row["validation"] for row in rows)


def test_checkpoint_says_what_it_reaches_on_the_validation_faces(tmp_path):
    held_out = dataset(14, seed=9)
    checkpoint = train(dataset(28), held_out, options(tmp_path, phases=(), clip_epochs=1.0))
    assert re.fullmatch(
        r"top-1 on made up \(label, 14\): score fusion .* %, self-attention .* %, FAN .* %",
        checkpoint.notes["measured"],
    )


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = StillClassifier(7)
    fit = Fit(model, Recipe(3, 0.1), tmp_path, {})
    with pytest.raises(ExportError, match=r"loss is nan at step"):
        fit.run(lambda step: model.fc.bias.sum() * float("nan"))


@pytest.mark.parametrize("sam", [0.0, 0.5])
def test_sam_steps_from_where_it_stands_along_the_gradient_uphill(tmp_path, sam):
    model = torch.nn.BatchNorm1d(1)  # its bias is the weight; half its square, the loss
    torch.nn.init.constant_(model.bias, 2.0)
    fit = Fit(model, Recipe(1, 0.1, sam=sam), tmp_path, {})

    def loss_at(step):
        model(torch.tensor([[1.0], [3.0]]))
        return model.bias.square().sum() / 2

    fit.run(loss_at)
    gradient = 2.0 + sam  # of half a square, at the weight and that much further from 0
    assert model.bias.item() == pytest.approx(2.0 - 0.1 * 1.9 * gradient)  # Nesterov's first step
    # The look uphill leaves no trace in BatchNorm: one batch was seen, of mean 2.
    assert model.num_batches_tracked == 1
    assert model.running_mean.item() == pytest.approx(0.1 * 2)


def test_training_follows_its_loss(tmp_path):
    # Bright pictures are happy, dark ones sad: a few steps must be enough to see that.
    data = dataset(64)
    bright = (torch.arange(64) % 2).bool()
    frames = torch.where(bright[:, None, None, None], 220, 30).expand(64, 1, 48, 48).byte()
    data = replace(data, frames=frames.contiguous(), labels=torch.where(bright, 3, 4))
    state = train_stills(data, None, options(tmp_path, phases=(Phase(56, 12.0),)))
    model = StillClassifier(7)
    model.load_embedder(state, FER2013)
    # With the data's own shares: the weights know nothing of emotions that the data do not have.
    logits = stills.classify(model, frames, 56) + torch.tensor(run.log_prior(data, 1.0))
    assert (logits.argmax(1) == data.labels).all()


# --- what a step sees ---


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
    still = Variation((1, 1), 0, 0, 0, 0, 0, 0, 0, 0)
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


# --- networks of single frames ---

FUSION = "score fusion"  # the one system that they have


@pytest.mark.parametrize(("network", "size"), [("dan", 56), ("deep_emotion", 48)])
def test_network_of_single_frames_trains_is_measured_and_comes_back(tmp_path, network, size):
    data = dataset(14)
    short = options(tmp_path, phases=(Phase(size, 1.0),))
    checkpoint = train_network(network, data, data, short)
    assert checkpoint.preprocessing.size == size
    assert FUSION in checkpoint.notes["measured"]
    write_checkpoint(checkpoint, tmp_path / "a.safetensors")
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert read.network == network
    (probabilities,) = measure.score_dataset(read, data).values()
    assert torch.allclose(probabilities.sum(1), torch.ones(14))
    report = evaluate.evaluate(read, data, range(1))
    (judged,) = report.judged
    assert (report.served, list(judged.systems), report.made) == (FUSION, [FUSION], None)


def test_dan_starts_from_the_embedder_it_is_given(tmp_path):
    embedder = as_embedder(StillClassifier(7).state_dict(), FER2013)
    begun = options(tmp_path, phases=(Phase(56, 0.001),), initial=embedder)  # not one step
    state = train_network("dan", dataset(14), None, begun).state
    assert torch.equal(state["layer4.1.conv2.weight"], embedder.state["layer4.1.conv2.weight"])


@pytest.mark.parametrize("asked", [0.03, None])
def test_learning_rate_is_the_one_asked_for_or_the_networks_own(tmp_path, asked):
    own = {
        "stills": StillsRecipe(()).learning_rate,
        "deep_emotion": NETWORKS["deep_emotion"].recipe.learning_rate,
    }
    step = options(tmp_path, phases=(Phase(48, 1.0),), learning_rate=asked)
    train_stills(dataset(64), None, step)
    train_network("deep_emotion", dataset(64), None, step)
    for folder, usual in own.items():
        (row,) = csv.DictReader((tmp_path / folder / "log.csv").read_text().splitlines())
        assert float(row["rate"]) == (asked or usual)


def test_deep_emotion_refuses_other_sizes(tmp_path):
    with pytest.raises(ExportError, match=r"--phases 56 pixels: Deep-Emotion sees 48"):
        train_network("deep_emotion", dataset(14), None, options(tmp_path))


def test_options_that_a_network_has_no_use_for_are_refused(tmp_path):
    with pytest.raises(ExportError, match="--phases is empty: nothing would be trained of dan"):
        train_network("dan", dataset(14), None, options(tmp_path, phases=()))
    embedder = as_embedder(StillClassifier(7).state_dict(), FER2013)
    with pytest.raises(ExportError, match=r"--init .* Deep-Emotion has none"):
        begun = options(tmp_path, phases=(Phase(48, 1.0),), initial=embedder)
        train_network("deep_emotion", dataset(14), None, begun)
    with pytest.raises(ExportError, match="deep_emotion looks at single frames"):
        evaluate.evaluate(random_checkpoint(network="deep_emotion"), dataset(14), range(1), [2])


def test_clips_frames_are_averaged_over_each_clip():
    data = dataset(4, frames_per_clip=3)
    checkpoint = random_checkpoint(network="deep_emotion")
    whole = measure.score_frames(checkpoint, data)
    frames = measure.score_frames(checkpoint, dataset_of_frames(data))
    assert torch.allclose(whole, frames.unflatten(0, (4, 3)).mean(1), atol=1e-6)


def dataset_of_frames(data):
    """Every frame as a clip of its own."""
    num = len(data.frames)
    return replace(
        data,
        starts=torch.arange(num + 1),
        labels=data.frame_labels(),
        subjects=(None,) * num,
    )


# --- stage two ---


def test_stage_two_on_stills_learns_to_pool_and_keeps_what_stage_one_learnt(tmp_path):
    embedder = as_embedder(StillClassifier(7).state_dict(), FER2013)
    state = train_clips(dataset(28), None, embedder, options(tmp_path)).state
    for name, value in embedder.state.items():
        seen = state[name]
        if name == "conv1.weight":  # of a gray network the sum means something, and it alone
            seen, value = seen.sum(1), value.sum(1)
        # Half a step of 64, of the greatest weight.
        atol = value.abs().max() / 127 if seen.ndim > 2 else 0
        assert torch.allclose(seen, value, rtol=0, atol=atol), name
    torch.manual_seed(0)  # that of options()
    before = ClipClassifier(7).attention.state_dict()
    for name in ("alpha.0.weight", "beta.0.weight"):
        assert not torch.equal(state[name], before[name])
    # They begin as `fc`.
    for rows in (state["pred_fc1.weight"], state["pred_fc2.weight"][:, :512]):
        assert F.cosine_similarity(rows, state["fc.weight"]).max() < 0.9999
    assert state["pred_fc2.weight"][:, 512:].any()


@pytest.mark.parametrize("is_gray", [True, False])
def test_rounded_weights_are_those_int8_has(is_gray):
    backbone = StillClassifier(7).backbone
    before = backbone.narrow_weight() if is_gray else backbone.conv1.weight.clone()
    round_weights(backbone, is_gray=is_gray)
    seen = backbone.narrow_weight() if is_gray else backbone.conv1.weight
    for weight in (seen, backbone.layer3[0].downsample[0].weight):
        steps = weight / (weight.abs().amax((1, 2, 3), keepdim=True) / 64)
        assert (steps - steps.round()).abs().max() < 1e-3  # float32's own rounding
    step = before.abs().amax((1, 2, 3)) / 64
    assert ((seen - before).abs().amax((1, 2, 3)) < 0.51 * step).all()


def test_channels_too_small_for_fp16_become_zeros():
    backbone = StillClassifier(7).backbone
    with torch.no_grad():
        backbone.conv1.weight[3] *= 1e-6
    others = backbone.conv1.weight[4:].clone()
    round_weights(backbone, is_gray=True)
    assert not backbone.conv1.weight[3].any()
    assert backbone.conv1.weight[4:].sum(1).allclose(others.sum(1), atol=0.02)


def test_blurred_faces_are_moved_or_out_of_focus():
    stripes = torch.zeros(64, 1, 56, 56)
    stripes[:, :, ::4] = 1.0  # a horizontal motion leaves them, being out of focus does not
    seen = blur(stripes, torch.ones(64, dtype=torch.bool), draws(0))
    left = seen[:, 0, 14:42, 28].std(1)
    assert (left < 0.05).any()
    assert (left > 0.2).any()
    assert torch.equal(blur(stripes, torch.zeros(64, dtype=torch.bool), draws(0)), stripes)


def test_clear_frames_vote_and_spoilt_ones_do_not():
    sure, unsure, wrong = torch.eye(3)[0] * 9, torch.eye(3)[1] * 0.5, torch.eye(3)[2] * 99
    kinds = torch.tensor([[CLEAR, CLEAR, CLEAR, DARK]])
    said = torch.stack([sure, unsure, unsure, wrong])[None]
    clips = Embedded(torch.zeros(1, 4, 512), said, shares_of(kinds, said, None))
    assert torch.allclose(clips.votes()[0], said[0, :3].softmax(1).mean(0))


def test_clear_frames_share_alike_but_neutral_ones_have_less():
    said = 99 * torch.eye(7)[[3, 4, 6, 6]][None]  # happy, sad, neutral, and neutral in the dark
    kinds = torch.tensor([[CLEAR, CLEAR, CLEAR, DARK]])
    happy, sad, neutral, dark = shares_of(kinds, said, 6)[0].tolist()
    assert happy == sad
    assert neutral == pytest.approx((1 - EXPRESSION) * happy)
    assert dark == 0
    assert happy + sad + neutral == pytest.approx(1)
    # Emotions without a neutral one have no less expressive one.
    assert shares_of(kinds, said, None)[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_stage_two_on_stills_of_other_labels_learns_end_to_end(tmp_path):
    embedder = as_embedder(StillClassifier(7).state_dict(), ("unknown",) * 7)
    state = train_clips(dataset(28), None, embedder, options(tmp_path)).state
    assert torch.equal(state["bn1.running_mean"], embedder.state["bn1.running_mean"])
    assert not torch.equal(state["conv1.weight"], embedder.state["conv1.weight"])


def test_heads_learn_first(tmp_path):
    data = dataset(28)
    embedder = as_embedder(StillClassifier(7).state_dict(), FER2013)
    model = ClipClassifier(7)
    model.load_embedder(embedder, FER2013)
    recipe = ClipsRecipe(3, 1, batch=4, heads_first=1.0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    clips.train(model, run.clip_source(data, 4, options(tmp_path)), recipe, tmp_path, {})
    changed = {name for name, v in model.named_parameters() if not torch.equal(v, before[name])}
    assert "attention.alpha.0.weight" in changed
    assert not any(name.startswith("backbone.") for name in changed)


def test_classifier_of_single_frames_does_not_pull_at_the_embedder():
    model = ClipClassifier(7)
    features = torch.randn(2, 6, 512, requires_grad=True)
    model.pool(features).frame_logits.sum().backward()
    assert features.grad is None or not features.grad.any()


# --- the three systems ---


@pytest.mark.parametrize(("variant", "logits"), [("relation", "logits"), ("self", "self_logits")])
def test_training_pools_as_the_served_model_does(variant, logits):
    checkpoint = random_checkpoint(variant=variant)
    features = torch.randn(5, 6, 512, generator=torch.Generator().manual_seed(0))
    scores = measure.build(checkpoint, CPU).pool(features)
    weights = scores.weights if variant == "relation" else scores.self_weights
    attention = build(checkpoint)["fan_attention"].module
    for i, clip in enumerate(features):
        answer = attention(clip)
        # float32 sums in another order.
        assert torch.allclose(getattr(scores, logits)[i], answer.logits, rtol=1e-4, atol=1e-4)
        assert torch.allclose(weights[i], answer.weights, atol=1e-6)


def test_clips_that_grow_keep_their_first_frames():
    checkpoint = random_checkpoint(preprocessing=Preprocessing("gray", size=56))
    model = measure.build(checkpoint, CPU)
    scores = measure.score_growing_clips(model, dataset(3), checkpoint, (5, 1, 2))
    assert list(scores) == [5, 1, 2]
    for length in scores:
        assert scores[length].weights.shape == (3, length)
        first = scores[5].frame_logits[:, :length]
        assert torch.allclose(scores[length].frame_logits, first, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_sees_faces_as_the_served_embedder_does(size):
    checkpoint = random_checkpoint(preprocessing=Preprocessing("gray", size=size))
    images, _ = pictures(3)
    frames = torch.from_numpy(np.stack([to_face(image) for image in images]))
    served = build(checkpoint)["fan_embedder"].module.normaliser(frames)
    seen = measure.prepare(torch.from_numpy(images)[:, None], checkpoint)
    # The wire rounds a pixel to a grey level, twice where PIL resizes in two passes.
    assert served.shape == seen.shape
    assert (served - seen).abs().max() < 1.5 / 255


def test_trained_checkpoint_exports_with_its_classifier_of_frames(tmp_path):
    checkpoint = train(dataset(28), None, options(tmp_path, phases=(), clip_epochs=1.0))
    assert checkpoint.preprocessing == Preprocessing("gray", size=56)
    assert checkpoint.state["fc.weight"].shape == (7, 512)
    assert {"data", "recipe", "made"} <= checkpoint.notes.keys()
    assert {"fan_embedder", "fan_attention", "fan_classifier"} <= build(checkpoint).keys()


def test_stage_two_begins_as_the_classifier_of_single_frames():
    embedder = as_embedder(StillClassifier(7).state_dict(), FER2013)
    model = ClipClassifier(7).eval()
    model.load_embedder(embedder, FER2013)
    features = torch.randn(4, 1, 512)
    scores = model.pool(features)
    # In a clip of one frame all three see the same.
    assert torch.allclose(scores.logits, scores.frame_logits[:, 0], atol=1e-5)
    assert torch.allclose(scores.self_logits, scores.frame_logits[:, 0], atol=1e-5)


def test_classifier_of_other_labels_is_left_and_of_another_order_is_reordered():
    state = as_embedder(StillClassifier(7).state_dict(), FER2013).state
    bias = torch.arange(7.0)
    embedder = Embedder({**state, "fc.bias": bias}, FER2013)
    afew, ckplus = StillClassifier(7), StillClassifier(7)
    afew.load_embedder(embedder, LABELS["afew"])
    assert afew.fc.bias.tolist() == [FER2013.index(name) for name in LABELS["afew"]]
    untouched = ckplus.fc.bias.clone()
    ckplus.load_embedder(embedder, LABELS["ckplus"])
    assert torch.equal(ckplus.fc.bias, untouched)
    assert torch.equal(ckplus.backbone.conv1.weight, state["conv1.weight"])


def test_target_is_label_and_mean_of_the_teachers_over_frame_and_mirror_image():
    data = dataset(4)
    labels = F.one_hot(data.labels, 7).float()
    fan = random_checkpoint(preprocessing=Preprocessing("gray", size=56))
    # Another network, that knows the emotions in another order.
    other = random_checkpoint(network="deep_emotion", labels=LABELS["afew"])
    order = [LABELS["afew"].index(name) for name in FER2013]
    mirrored = replace(data, frames=data.frames.flip(-1))
    said = [
        next(iter(measure.score_dataset(teacher, view).values()))[:, order]
        for teacher, order in ((fan, list(range(7))), (other, order))
        for view in (data, mirrored)
    ]
    targets = softened(labels, data, [fan, other])
    assert torch.allclose(targets, 0.7 * torch.stack(said).mean(0) + 0.3 * labels, atol=1e-6)
    assert (said[0] - said[2]).abs().max() > 0.05


def test_every_frame_of_a_clip_is_asked_about():
    data = dataset(3, frames_per_clip=2)
    targets = F.one_hot(data.frame_labels(), 7).float()
    teacher = random_checkpoint(network="deep_emotion")
    assert softened(targets, data, [teacher]).shape == (6, 7)


def test_teacher_of_other_emotions_is_refused():
    teacher = random_checkpoint(network="deep_emotion", labels=LABELS["ckplus"])
    with pytest.raises(TrainingError, match=r"deep_emotion knows .*contempt.*; expected"):
        softened(torch.eye(7), dataset(7), [teacher])


def test_run_with_other_teachers_is_another_run(tmp_path):
    teacher = random_checkpoint(network="deep_emotion")
    usual = options(tmp_path, phases=(Phase(48, 1.0),))
    taught = train_network("deep_emotion", dataset(), None, replace(usual, teachers=(teacher,)))
    assert "teachers none" not in taught.notes["recipe"]
    with pytest.raises(TrainingError, match=r"other settings: .*teacher 1"):
        train_network("deep_emotion", dataset(), None, usual)


def test_teachers_are_named_on_the_command_line(tmp_path, capsys):
    images, labels = pictures(14)
    np.savez(tmp_path / "faces.npz", images=images, labels=labels)
    teacher = tmp_path / "teacher.safetensors"
    write_checkpoint(random_checkpoint(network="deep_emotion"), teacher)
    command = [str(tmp_path / "faces.npz"), "--model", "deep_emotion", "--phases", "48x1"]
    assert main([*command, "--out", str(tmp_path), "--teachers", str(teacher)]) == 0
    notes = read_checkpoint(tmp_path / "deep_emotion.safetensors").notes
    assert re.search(r"teachers [0-9a-f]{16}$", notes["recipe"])
    assert main([*command, "--out", str(tmp_path / "b"), "--teachers", "missing.pth"]) == 1
    assert "missing.pth: no such file" in capsys.readouterr().err


def test_stage_ones_options_without_stage_one_are_refused(tmp_path):
    teacher = random_checkpoint(network="deep_emotion")
    with pytest.raises(TrainingError, match="only stage one learns from them"):
        train(dataset(), None, options(tmp_path, phases=(), teachers=(teacher,)))
    with pytest.raises(TrainingError, match="--learning-rate: it is stage one's"):
        train(dataset(), None, options(tmp_path, phases=(), learning_rate=0.1))
    with pytest.raises(TrainingError, match="--sam: it is stage one's"):
        train(dataset(), None, options(tmp_path, phases=(), sam=0.1))


def test_evaluation_numbers_the_data_as_the_checkpoint_does(tmp_path, capsys):
    write_checkpoint(
        random_checkpoint(preprocessing=Preprocessing(size=56)), tmp_path / "a.safetensors"
    )
    images, labels = pictures(14)
    afew = np.array([LABELS["afew"].index(FER2013[i]) for i in labels])
    np.savez(tmp_path / "fer2013.npz", images=images, labels=labels)
    np.savez(tmp_path / "afew.npz", images=images, labels=afew)
    tables = []
    for data in ("fer2013", "afew"):
        command = [str(tmp_path / f"{data}.npz"), "--checkpoint", str(tmp_path / "a.safetensors")]
        command += ["--labels", data, "--seeds", "1", "--out", str(tmp_path / data)]
        assert evaluate.main(command) == 0
        tables.append((tmp_path / data / "report.md").read_text().partition("| system")[2])
    assert tables[0] == tables[1]
    assert evaluate.main([*command, "--num-clips", "10"]) == 0
    assert "afew.npz, 10 of 14 chosen at random" in (tmp_path / "afew" / "report.md").read_text()
    command[command.index("afew")] = "ckplus"
    assert evaluate.main(command) == 1
    assert "expected angry, disgust" in capsys.readouterr().err


def test_measures_are_those_of_a_hand_made_example():
    probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]])
    measured = measure.measure(probabilities, torch.tensor([0, 1, 1]))
    assert measured.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert (measured.correct, measured.total) == (2, 3)
    assert measured.recalls[:2].tolist() == [1.0, 0.5]
    assert measured.balanced == 0.75  # of the emotions there were
    assert measured.calibration_error == pytest.approx((0.2 + 0.6 + 0.1) / 3, abs=1e-6)


def test_auc_is_the_share_of_pairs_in_order():
    above, below = torch.rand(50), torch.rand(40) * 0.8
    above[:5] = below[:5]  # ties count half
    pairs = (above[:, None] > below).double() + (above[:, None] == below).double() / 2
    assert measure.auc(above, below) == pytest.approx(pairs.mean().item(), abs=1e-9)


# --- data people have ---


def test_npz_csv_and_folder_give_the_same_stills(tmp_path):
    images, labels = pictures(14)
    np.savez(tmp_path / "faces.npz", images=images, labels=labels.astype(np.uint8))
    with (tmp_path / "fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for image, label in zip(images, labels, strict=True):
            writer.writerow([label, " ".join(map(str, image.flat)), "Training"])
        writer.writerow([0, "0 " * 2304, "PrivateTest"])
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "folder" / FER2013[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    npz, table, folder = (
        read_dataset(tmp_path / name, FER2013) for name in ("faces.npz", "fer2013.csv", "folder")
    )
    assert torch.equal(npz.frames, table.frames)
    assert torch.equal(npz.labels, table.labels)
    assert npz.is_stills
    assert len(folder) == 14
    assert folder.frames.shape == (14, 1, 128, 128)  # without colour, one channel is enough
    assert folder.labels.bincount().tolist() == [2] * 7


def test_folder_of_sequences_gives_clips_in_the_order_of_their_names(tmp_path):
    for name, levels in (("S001_001", (10, 20, 30)), ("S002_001", (40, 50))):
        folder = tmp_path / "happy" / name
        folder.mkdir(parents=True)
        for i, level in enumerate(levels):
            Image.new("L", (64, 64), level).save(folder / f"{i:03}.png")
    data = read_dataset(tmp_path, FER2013)
    assert data.starts.tolist() == [0, 3, 5]
    assert data.frames[:, 0, 0, 0].tolist() == [10, 20, 30, 40, 50]
    assert data.subjects == ("S001", "S002")
    assert data.frame_labels().tolist() == [3] * 5


def test_folder_of_videos_gives_the_faces_in_them(tmp_path, sample):
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy" / "one.mp4").symlink_to(sample)
    data = read_dataset(tmp_path, FER2013)
    assert len(data) == 1
    assert data.frames.shape[1:] == (3, 128, 128)
    assert len(data.frames) > 10


def test_ckplus_as_published_gives_the_last_three_frames(tmp_path):
    from skimage.data import astronaut

    face = Image.fromarray(astronaut()).crop((100, 0, 400, 300))
    for subject, label in (("S005", 5), ("S006", None), ("S010", 2)):
        folder = tmp_path / "cohn-kanade-images" / subject / "001"
        folder.mkdir(parents=True)
        for i in range(5):
            face.save(folder / f"{subject}_001_{i:08}.png")
        if label:
            emotion = tmp_path / "Emotion" / subject / "001"
            emotion.mkdir(parents=True)
            (emotion / f"{subject}_001_00000004_emotion.txt").write_text(
                f"   {label}.0000000e+00\n"
            )
    data = read_dataset(tmp_path, LABELS["ckplus"])
    assert data.starts.tolist() == [0, 3, 6]
    assert [data.label_names[i] for i in data.labels] == ["happy", "contempt"]
    assert data.subjects == ("S005", "S010")
    with pytest.raises(ExportError, match="--labels ckplus"):
        read_dataset(tmp_path, FER2013)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "expected an .npz or .csv file, or a folder"),
        (lambda p: (p / "data").mkdir(), "no labelled faces found"),
        (lambda p: (p / "data" / "glad").mkdir(parents=True), "glad are named for no label"),
        (lambda p: np.savez(p / "data.npz", images=pictures(2)[0]), "no array `labels`"),
        (
            lambda p: np.savez(p / "data.npz", images=pictures(2)[0], labels=np.array([0, 7])),
            r"labels 0 to 7; there are names for 0 to 6",
        ),
        (lambda p: (p / "data.csv").write_text("a,b\n1,2\n"), "columns emotion, pixels and Usage"),
        (
            lambda p: (p / "data.csv").write_text("emotion,pixels,Usage\n0,1 2 3 4\n"),
            "row 1 is cut off",
        ),
        (
            lambda p: (p / "data.csv").write_text("emotion,pixels,Usage\n0,1 2 3 4,PublicTest\n"),
            "no rows of Usage Training; there are PublicTest",
        ),
        (lambda p: (p / "data.csv").write_text("a,b\n"), "there are none at all"),
        (lambda p: (p / "data.npz").write_text("a,b"), "data.npz: not an npz file"),
        (
            lambda p: np.savez(p / "data.npz", images=pictures(2)[0], labels=np.array([0.5, 1])),
            "expected whole numbers",
        ),
        (lambda p: damaged_picture(p / "data" / "happy"), "not a picture that can be read"),
    ],
)
def test_data_of_no_known_form_is_refused_with_words(tmp_path, make, words, capsys):
    make(tmp_path)
    path = next(iter(tmp_path.iterdir()), tmp_path / "data")
    assert main([str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "train: " in error
    assert re.search(words, error)


def damaged_picture(folder):
    folder.mkdir(parents=True)
    Image.fromarray(pictures(1)[0][0]).save(folder / "a.png")
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[: len(content) // 2])


def test_videos_without_a_face_are_counted(tmp_path, sample):
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy" / "a.mp4").symlink_to(sample)
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=160x120:r=5:d=1", tmp_path / "happy" / "b.mp4")
    data = read_dataset(tmp_path, FER2013)
    assert len(data) == 1
    assert data.left_out == ("happy/b.mp4",)


@pytest.mark.parametrize(
    "option",
    [
        ("--phases", "0x5"),
        ("--phases", "96x-1"),
        ("--phases", "96xnan"),
        ("--phases", "96"),
        ("--clip-epochs", "nan"),
        ("--clip-epochs", "0"),
        ("--learning-rate", "0"),
        ("--seed", "-1"),
        ("--seed", "99999999999999"),
        ("--size", "100"),
    ],
)
def test_values_that_mean_nothing_are_refused(option, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["faces.npz", *option])
    assert ended.value.code == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:99"])
def test_device_that_is_not_there_is_refused(name):
    with pytest.raises(ExportError, match=f"device {name}"):
        choose_device(name)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device"), 1, "No space left"),
    ],
)
def test_commands_end_in_one_plain_line(error, code, words, capsys):
    def command():
        raise error

    assert training.options.run_command("training", command, "stopped") == code
    assert words in capsys.readouterr().err


def test_nobody_is_in_two_folds():
    subjects = [f"S{i % 23:03}" for i in range(100)]
    folds = folds_by_subject(subjects, 10)
    assert sorted(np.concatenate(folds)) == list(range(100))
    people = [{subjects[i] for i in fold} for fold in folds]
    assert sum(map(len, people)) == 23
    # Ascending order, every tenth.
    assert people[0] == {"S000", "S010", "S020"}
    with pytest.raises(ExportError, match="3 subjects for 10 folds"):
        folds_by_subject(["a", "b", "c"], 10)
    with pytest.raises(ExportError, match="do not say whose faces"):
        folds_by_subject([None, "b", "c"], 2)


# --- commands ---


def test_cross_validation_counts_every_clip_once(tmp_path):
    data = dataset(12, frames_per_clip=3)
    small = options(tmp_path, phases=(), clip_epochs=4.0)
    measured = crossval.cross_validate(data, small, 3)
    assert {m.total for m in measured.values()} == {12}


def test_best_epoch_is_chosen_on_the_held_out_clips_and_said_so(tmp_path, monkeypatch):
    data = dataset(12, frames_per_clip=3)
    small = options(tmp_path, phases=(), clip_epochs=3.0)

    def score(checkpoint, held_out):
        # Right in a fold's second epoch alone.
        seen[held_out.subjects] += 1
        right = torch.nn.functional.one_hot(held_out.labels, 7).float()
        return dict.fromkeys(measure.SYSTEMS, right if seen[held_out.subjects] == 2 else 1 - right)

    monkeypatch.setattr(crossval, "score_dataset", score)
    seen = Counter()
    best = crossval.cross_validate(data, small, 3, best_epoch=True)
    assert best["FAN"].correct == 12
    seen = Counter()
    # A run that was killed finds the epochs of finished folds again.
    again = crossval.cross_validate(data, small, 3, best_epoch=True)
    assert again["FAN"].correct == 12
    seen = Counter()
    last = crossval.cross_validate(data, replace(small, out=tmp_path / "last"), 3)
    assert last["FAN"].correct == 0
    assert "optimistic" in crossval.report(best, data, 3, crossval.BEST_EPOCH)
    assert "optimistic" not in crossval.report(last, data, 3, crossval.LAST_EPOCH)


def test_a_users_commands_end_in_a_checkpoint_and_a_report(tmp_path, capsys):
    images, labels = pictures(28)
    np.savez(tmp_path / "faces.npz", images=images, labels=labels)
    # The authors' backbones have eight classes and no heads.
    state = StillClassifier(8).state_dict()
    backbone = {f"module.{k}": v for k, v in state.items() if "backbone" not in k}
    state = {
        k: v for k, v in random_checkpoint().state.items() if not k.startswith(("a", "be", "p"))
    }
    backbone |= {f"module.{k}": v for k, v in state.items()}
    torch.save({"state_dict": backbone, "epoch": 1}, tmp_path / "Resnet18_FER+_pytorch.pth.tar")
    out = tmp_path / "run"
    command = [str(tmp_path / "faces.npz"), "--out", str(out), "--size", "56", "--device", "cpu"]
    command += ["--init", str(tmp_path / "Resnet18_FER+_pytorch.pth.tar")]
    assert main([*command, "--phases", "56x2", "--clip-epochs", "1"]) == 0
    read_checkpoint(out / "fan.safetensors")
    said = capsys.readouterr().out
    assert said.startswith("not measured: no --validation")
    assert f"`videofer export --checkpoint {out / 'fan.safetensors'}`" in said
    command = [str(tmp_path / "faces.npz"), "--checkpoint", str(out / "fan.safetensors")]
    command += ["--out", str(tmp_path / "report"), "--seeds", "2", "--lengths", "1", "3"]
    command += ["--embedder", str(out / "stills" / "embedder.pth.tar")]
    assert evaluate.main(command) == 0, capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text()
    for words in ("score fusion", "self-attention", "FAN", "AUC", "calibration error", "disgust"):
        assert words in text
    assert Image.open(tmp_path / "report" / "confusion.png").size > (400, 400)


def test_weights_to_start_from_must_be_a_resnet18(tmp_path):
    state = embedder_weights(random_checkpoint().state)
    bad = {
        "missing 99": {"conv1.weight": state["conv1.weight"]},
        "unexpected 1 (layer1.2.conv1.weight)": {**state, "layer1.2.conv1.weight": torch.zeros(1)},
        "of another shape 1": {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)},
        "bn1.bias has values that are NaN": {**state, "bn1.bias": torch.full((64,), torch.nan)},
    }
    for words, weights in bad.items():
        torch.save({"state_dict": weights}, tmp_path / "other.pth.tar")
        with pytest.raises(CheckpointError, match=rf"other.pth.tar: .*{re.escape(words)}"):
            read_embedder(tmp_path / "other.pth.tar")
    # Half a classifier is no classifier.
    torch.save({"state_dict": {**state, "fc.weight": torch.zeros(7, 512)}}, tmp_path / "a.pth.tar")
    assert "fc.weight" not in read_embedder(tmp_path / "a.pth.tar").state


@pytest.mark.parametrize("prefix", ["", "layers.", "module.net.backbone."])
def test_any_files_resnet18_can_be_started_from(tmp_path, prefix):
    state = embedder_weights(random_checkpoint().state)
    wrapped = {f"{prefix}{k}": v for k, v in state.items()}
    # Classifiers of other classes: torchvision's, one of two layers, and one beside the ResNet-18.
    wrapped |= {f"{prefix}fc.weight": torch.zeros(1000, 512), f"{prefix}fc.bias": torch.zeros(1000)}
    wrapped[f"{prefix}fc.3.weight"] = torch.zeros(10, 256)
    if prefix:
        wrapped["head.weight"] = torch.zeros(10, 512)
    torch.save(wrapped, tmp_path / "any.pth")
    model = StillClassifier(7)
    classifier = model.fc.weight.clone()
    model.load_embedder(read_embedder(tmp_path / "any.pth"), LABELS["fer2013"])
    begun = model.backbone.state_dict()
    assert all(torch.equal(begun[name], state[name]) for name in state)
    assert torch.equal(model.fc.weight, classifier)


def test_file_of_two_resnet18s_is_refused(tmp_path):
    state = embedder_weights(random_checkpoint().state)
    torch.save(state | {f"ema.{k}": v for k, v in state.items()}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"two.pth: 2 ResNet-18s, behind .*'', 'ema.'"):
        read_embedder(tmp_path / "two.pth")
