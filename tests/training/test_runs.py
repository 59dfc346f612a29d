"""Training can be stopped anywhere, and ends with the weights it would have had."""

import csv
import re
from dataclasses import replace

import pytest
import torch
from made_up import FER2013, dataset, options

import training.attention
import training.loop
import training.options
from base.errors import ExportError
from training import run, stills
from training.augment import vary
from training.loop import Fit, Recipe
from training.run import (
    train,
    train_clips,
    train_stills,
)
from training.spoil import (
    make_clips,
)
from training.stills import Phase, StillClassifier, as_embedder


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
    fit = Fit(StillClassifier(7), Recipe(steps=1, learning_rate=0.1), tmp_path, {})
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
    fit = Fit(model, Recipe(steps=3, learning_rate=0.1), tmp_path, {})
    with pytest.raises(ExportError, match=r"loss is nan at step"):
        fit.run(lambda step: model.fc.bias.sum() * float("nan"))


@pytest.mark.parametrize("sam", [0.0, 0.5])
def test_sam_steps_from_where_it_stands_along_the_gradient_uphill(tmp_path, sam):
    model = torch.nn.BatchNorm1d(1)  # its bias is the weight; half its square, the loss
    torch.nn.init.constant_(model.bias, 2.0)
    fit = Fit(model, Recipe(steps=1, learning_rate=0.1, sam=sam), tmp_path, {})

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
