"""FAN learns to pool, and keeps what stage one learnt."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from made_up import FER2013, dataset, draws, options

from training import clips, run
from training.attention import (
    EXPRESSION,
    Embedded,
    loss_of,
    round_weights,
    shares_of,
)
from training.clips import ClipClassifier, ClipsRecipe
from training.run import (
    train_clips,
)
from training.spoil import (
    CLEAR,
    DARK,
    blur,
)
from training.stills import StillClassifier, as_embedder


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


def test_each_frames_evidence_is_its_own_and_their_mean_is_the_answer():
    model = ClipClassifier(7).eval()
    scores = model.pool(torch.randn(4, 5, 512, generator=draws(0)))
    mean = (scores.weights[..., None] * scores.evidence).sum(1)
    assert torch.allclose(mean, scores.logits, atol=1e-5)


def test_frames_of_a_clip_of_two_emotions_speak_for_their_own():
    """Four frames of one emotion and two of another: the clip's is not every frame's."""
    generator = draws(0)
    kinds = torch.randint(7, (96, 2), generator=generator)
    kinds[:, 1] = (kinds[:, 0] + 1 + kinds[:, 1] % 6) % 7
    shown = kinds[:, [0, 0, 0, 0, 1, 1]]
    faces = torch.randn(7, 512, generator=generator)
    features = F.one_hot(shown, 7).float() @ faces
    said = 6.0 * F.one_hot(shown, 7)
    model = ClipClassifier(7).eval()
    heads = model.attention
    with torch.no_grad():  # the clip's half names the clip, and every frame after it
        heads.pred_fc2.weight.copy_(F.pad(6 * torch.linalg.pinv(faces).T, (512, 0)))
    clips = Embedded(features, said, torch.full((96, 6), 1 / 6))
    optimiser = torch.optim.Adam(heads.parameters(), 0.003)
    for _ in range(60):
        optimiser.zero_grad()
        loss_of(model, features, clips.votes(), clips.shares, said.softmax(2)).backward()
        optimiser.step()
    with torch.no_grad():
        evidence = model.pool(features).evidence
    assert (evidence.argmax(2) == shown).float().mean() > 0.95


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
    recipe = ClipsRecipe(steps=3, epoch=1, batch=4, heads_first=1.0)
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
