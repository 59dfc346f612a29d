"""A prior is a bias: exact through every network's pooling, said once, and kept with the export."""

import json
import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, copy_repository, faces, random_checkpoint

from base.errors import CheckpointError
from export.calibrate import calibrate, fingerprint, ranges_path, read_calibration
from export.command import main
from export.exported import recall
from export.parity import main as parity
from networks.checkpoint import LABELS, Source, build, read_checkpoint, write_checkpoint
from networks.checkpoint import main as convert
from networks.entries import NETWORKS
from networks.prior import with_prior, words_of
from networks.score_fusion import ScoreFusion

FER2013 = LABELS["fer2013"]
NATURAL = (0.1, 0.01, 0.03, 0.26, 0.13, 0.12, 0.35)
SHARES = dict(zip(FER2013, (0.2, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1), strict=True))


def balanced(network="fan", natural=NATURAL, **options):
    """Weights that learnt with the emotions' shares kept apart; FAN's with all its classifiers."""
    checkpoint = random_checkpoint(network=network, **options)
    state = dict(checkpoint.state)
    if network == "fan":
        draws = torch.Generator().manual_seed(7)
        state |= {"fc.weight": torch.randn(7, 512, generator=draws) / 16, "fc.bias": torch.zeros(7)}
    return replace(checkpoint, state=state, natural=natural)


@pytest.fixture
def shares_file(tmp_path):
    def write(content, name="shares.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def constant(difference):
    """Whether all classes' logits moved alike, within float32's rounding."""
    return (difference - difference.mean(-1, keepdim=True)).abs().max() < 1e-4


def logs(shares):
    return torch.tensor([math.log(share) for share in shares])


# --- exact ---


@pytest.mark.parametrize("variant", ["relation", "self"])
def test_prior_is_exact_through_fans_pooling(variant):
    checkpoint = balanced(variant=variant)
    before, after = build(checkpoint), build(with_prior(checkpoint, "natural"))
    features = torch.rand(9, 512, generator=torch.Generator().manual_seed(0))
    plain, known = (parts["fan_attention"].module(features) for parts in (before, after))
    shift = logs(NATURAL)
    assert torch.allclose(known.logits - plain.logits, shift, atol=1e-5)
    assert torch.allclose(known.frame_logits - plain.frame_logits, shift.expand(9, 7), atol=1e-5)
    expected = plain.probabilities * torch.tensor(NATURAL)
    assert torch.allclose(known.probabilities, expected / expected.sum(), atol=1e-6)
    # Whom it believes does not change.
    assert torch.equal(known.weights, plain.weights)
    assert torch.equal(known.self_weights, plain.self_weights)


def test_prior_is_exact_through_score_fusion():
    checkpoint = balanced()
    features = torch.rand(9, 512, generator=torch.Generator().manual_seed(0))
    plain, known = (
        ScoreFusion()(build(c)["fan_classifier"].module(features))
        for c in (checkpoint, with_prior(checkpoint, "natural"))
    )
    shift = logs(NATURAL)
    assert torch.allclose(known.frame_logits - plain.frame_logits, shift.expand(9, 7), atol=1e-5)
    assert torch.allclose(known.logits - plain.logits, shift, atol=1e-5)
    each = plain.frame_logits.softmax(1) * torch.tensor(NATURAL)
    expected = (each / each.sum(1, keepdim=True)).mean(0)
    assert torch.allclose(known.probabilities, expected, atol=1e-6)
    assert torch.equal(known.weights, plain.weights)


@pytest.mark.parametrize("network", ["dan", "ran", "deep_emotion"])
def test_prior_is_exact_for_networks_of_single_frames(network):
    checkpoint = balanced(network)
    frames = torch.from_numpy(faces(2))
    plain, known = (
        next(p for p in build(c).values() if p.tensor == "frames").module(frames)
        for c in (checkpoint, with_prior(checkpoint, "natural"))
    )
    difference = known.frame_logits - plain.frame_logits
    scale = plain.frame_logits.abs().max() * 1e-6 + 1e-5  # float32's rounding
    assert torch.allclose(difference, logs(NATURAL).expand(2, 7), atol=scale.item())


def test_even_changes_no_answer():
    checkpoint = balanced()
    features = torch.rand(5, 512, generator=torch.Generator().manual_seed(1))
    plain, even = (
        build(c)["fan_attention"].module(features)
        for c in (checkpoint, with_prior(checkpoint, "even"))
    )
    assert constant(even.logits - plain.logits)
    assert torch.allclose(even.probabilities, plain.probabilities, atol=1e-6)


def test_file_of_shares_is_by_name_in_any_order_and_unit(shares_file):
    turned = {name: 50 * SHARES[name] for name in reversed(FER2013)}
    state = with_prior(balanced(), shares_file(turned)).state
    moved = state["pred_fc2.bias"] - balanced().state["pred_fc2.bias"]
    assert torch.allclose(moved, logs(SHARES.values()), atol=1e-6)


def test_every_classifier_learns_of_the_prior_and_nothing_else():
    for network in NETWORKS:
        before = balanced(network)
        after = with_prior(before, "natural")
        biases = {name for name in NETWORKS[network].classifiers if name in before.state}
        changed = {
            name for name in before.state if not torch.equal(before.state[name], after.state[name])
        }
        assert changed == biases
        assert len(biases) == (3 if network == "fan" else 1)
    assert "fc.bias" not in with_prior(replace(random_checkpoint(), natural=NATURAL)).state


# --- said once ---


def test_checkpoints_own_prior_is_the_default():
    checkpoint = balanced()
    for own in ("even", "natural"):
        chosen = replace(checkpoint, prior=own)
        default, named = with_prior(chosen), with_prior(chosen, own)
        assert torch.equal(default.state["pred_fc2.bias"], named.state["pred_fc2.bias"])
        assert words_of(chosen, None) == own
    assert words_of(checkpoint, "even") == "even"
    assert words_of(checkpoint, "some/where/shares.json") == "of shares.json"
    assert words_of(random_checkpoint(), None) == "of what the weights learnt from"


@pytest.mark.parametrize("prior", ["even", "natural", "shares.json"])
def test_prior_is_added_once(prior):
    known = with_prior(balanced())
    assert known.natural == ()
    assert with_prior(known) is known
    with pytest.raises(
        CheckpointError, match=rf"--prior {prior}: these weights know .*--balance 1"
    ):
        with_prior(known, prior)


def test_file_keeps_shares_and_default(tmp_path):
    for prior in ("even", "natural"):
        write_checkpoint(replace(balanced(), prior=prior), tmp_path / "a.safetensors")
        read = read_checkpoint(tmp_path / "a.safetensors")
        assert (read.natural, read.prior) == (NATURAL, prior)
    write_checkpoint(with_prior(balanced()), tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors").natural == ()


@pytest.mark.parametrize(
    "bad",
    [
        {"natural": NATURAL[:6]},
        {"natural": (*NATURAL[:6], 0.0)},
        {"natural": (*NATURAL[:6], -0.1)},
        {"natural": (*NATURAL[:6], math.nan)},
        {"natural": (*NATURAL[:6], 1.5)},
        {"natural": NATURAL, "prior": "odd"},
    ],
)
def test_shares_that_are_none_make_no_checkpoint(bad):
    with pytest.raises(CheckpointError, match=r"its (natural shares are|prior is)"):
        replace(random_checkpoint(), **bad)


# --- refused ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**SHARES, "calm": 0.1}, "its names are not the labels angry, disgust"),
        ({k: v for k, v in SHARES.items() if k != "sad"}, "its names are not the labels"),
        ({}, "its names are not the labels"),
        ([0.1] * 7, "its names are not the labels"),
        ("0.5", "its names are not the labels"),
        ('{"shares": {"angry": 0.5}}', "its names are not the labels"),
        ({**SHARES, "sad": {"share": 0.1}}, "the share of sad is {'share': 0.1}"),
        ({**SHARES, "sad": "0.1"}, "the share of sad is '0.1'; expected a number above 0"),
        ({**SHARES, "sad": None}, "the share of sad is None"),
        ({**SHARES, "sad": True}, "the share of sad is True"),
        ({**SHARES, "sad": 0}, "the share of sad is 0"),
        ({**SHARES, "sad": -0.1}, "the share of sad is -0.1"),
        ({**SHARES, "sad": math.nan}, "the share of sad is nan"),
        ({**SHARES, "sad": math.inf}, "the share of sad is inf"),
        (dict.fromkeys(FER2013, 1e308), "too far apart"),
        ({**SHARES, "sad": 1e-300}, "too far apart"),
        ({**SHARES, "sad": 10**400}, "too far apart"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_file_of_other_than_shares_is_refused_in_one_line(shares_file, content, words):
    path = shares_file(content)
    with pytest.raises(CheckpointError) as error:
        with_prior(balanced(), path)
    assert str(error.value).startswith(f"--prior {path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_shares_that_are_no_file_are_refused_with_what_is_expected(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\x00")
    for path in ("equal", str(tmp_path / "none.json"), str(tmp_path), str(tmp_path / "bytes.json")):
        with pytest.raises(CheckpointError, match="expected even, natural or a JSON file such as"):
            with_prior(balanced(), path)


# --- through the commands ---


@pytest.fixture
def exported(tmp_path):
    """Export a Deep-Emotion by the command; give the exit code and where its graphs are."""
    weights = tmp_path / "mine.safetensors"
    write_checkpoint(balanced("deep_emotion"), weights)
    repository = copy_repository(tmp_path / "model_repository")
    where = ["--repository", str(repository), "--build", str(tmp_path / "build")]

    def export(*options):
        chosen = ["--checkpoint", str(weights)] if options else []
        return main([*chosen, *where, *options]), tmp_path / "build"

    return export


def answer(folder):
    session = onnxruntime.InferenceSession(folder / "fp32" / "deep_emotion_frames.onnx")
    return session.run(["frame_logits"], {"frames": faces(2)})[0]


def test_exports_prior_is_in_the_graph_and_remembered(exported, shares_file, tmp_path):
    prior = shares_file(SHARES)
    code, folder = exported("--prior", prior)
    assert code == 0
    repository = tmp_path / "model_repository"
    source = recall("deep_emotion", repository)
    assert source.prior == prior
    first = answer(folder)
    known = with_prior(read_checkpoint(tmp_path / "mine.safetensors"), prior)
    module = build(known)["deep_emotion_frames"].module
    expected = module(torch.from_numpy(faces(2))).frame_logits.numpy()
    assert np.allclose(first, expected, rtol=1e-4, atol=1e-3)
    # Exported again, it is the same.
    (folder / "fp32" / "deep_emotion_frames.onnx").unlink()
    assert exported() == (0, folder)
    assert np.array_equal(answer(folder), first)
    assert recall("deep_emotion", repository) == source


def test_hints_tell_of_the_prior():
    source = Source(path=ROOT / "weights" / "fan.safetensors", prior="even")
    assert source.to_command("export") == "videofer export --prior even"


def test_prior_that_cannot_be_given_exports_nothing(exported, tmp_path, capsys):
    code, folder = exported("--prior", str(tmp_path / "none.json"))
    assert code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export: --prior {tmp_path / 'none.json'}: cannot be read")
    assert not folder.exists()
    write_checkpoint(random_checkpoint(network="deep_emotion"), tmp_path / "mine.safetensors")
    assert exported("--prior", "even")[0] == 1
    assert "these weights know how common" in capsys.readouterr().err
    assert not folder.exists()


def test_parity_compares_what_was_exported_last_with_its_prior(tmp_path, capsys):
    assert parity(["--build", str(tmp_path), "--prior", "even"]) == 1
    assert "--prior go with a --checkpoint" in capsys.readouterr().err


def test_conversion_keeps_shares_and_sets_the_default(tmp_path, capsys):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_checkpoint(balanced("deep_emotion"), source)
    for options, prior in (([], "natural"), (["--prior", "even"], "even")):
        assert convert([str(source), str(target), *options]) == 0
        read = read_checkpoint(target)
        assert (read.natural, read.prior) == (NATURAL, prior)
    assert convert([str(source), str(tmp_path / "c.safetensors"), "--prior", "odd"]) == 1
    assert "expected 'even' or 'natural'" in capsys.readouterr().err
    write_checkpoint(random_checkpoint(network="deep_emotion"), source)
    assert convert([str(source), str(tmp_path / "c.safetensors"), "--prior", "even"]) == 1
    assert "these weights know" in capsys.readouterr().err
    assert not (tmp_path / "c.safetensors").exists()


# --- INT8 ---


@pytest.mark.parametrize("network", NETWORKS)
def test_ranges_fit_whatever_the_prior(network):
    checkpoint = balanced(network)
    names = {fingerprint(with_prior(checkpoint, prior)) for prior in ("even", "natural", None)}
    assert names == {fingerprint(checkpoint)}
    other = dict(checkpoint.state)
    weight = NETWORKS[network].classifiers[0].replace("pred_fc2.bias", "conv1.weight")
    weight = weight.replace("bias", "weight")
    other[weight] = other[weight] + 1
    assert fingerprint(replace(checkpoint, state=other)) != fingerprint(checkpoint)


def test_no_range_moves_with_the_prior():
    checkpoint = balanced("deep_emotion")
    one, other = (
        calibrate(with_prior(checkpoint, prior), faces(2), "made up")
        for prior in ("even", "natural")
    )
    assert one == other


@pytest.mark.parametrize(
    "path", sorted((ROOT / "weights").glob("*.ranges.json")), ids=lambda p: p.stem
)
def test_shipped_ranges_fit_the_weights_beside_them(path):
    weights = path.with_name(path.name.replace(".ranges.json", ".safetensors"))
    assert ranges_path(weights) == path
    assert read_calibration(path, read_checkpoint(weights)).ranges
