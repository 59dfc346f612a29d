"""A user's commands end in a checkpoint and a report."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_checkpoint
from made_up import dataset, options, pictures
from PIL import Image

from base.errors import CheckpointError
from networks.checkpoint import (
    LABELS,
    embedder_weights,
    read_checkpoint,
    read_embedder,
)
from training import crossval, evaluate, measure
from training.command import main
from training.stills import StillClassifier


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
