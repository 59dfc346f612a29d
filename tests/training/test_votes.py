"""Training learns from what ten people said of a picture, and refuses what nobody could have."""

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_checkpoint

from networks.checkpoint import LABELS, read_checkpoint, read_embedder, write_checkpoint
from training import clips, run, stills
from training.clips import Scores
from training.command import main
from training.data import MAX_REPEATS, Dataset, read_dataset
from training.run import (
    COMMON,
    Options,
    fingerprint,
    log_prior,
    natural_of,
    recipe_of,
    train_network,
)
from training.spoil import CLEAR
from training.stills import Phase, StillClassifier, as_embedder, weighed_loss, write_embedder
from training.votes import COLUMNS, NAMES, column_of, distribution, majority

FER2013 = LABELS["fer2013"]
# As FER+ publishes its file.
HEADER = (
    *("Usage", "Image name", "neutral", "happiness", "surprise", "sadness", "anger", "disgust"),
    *("fear", "contempt", "unknown", "NF"),
)


def vote(**counts):
    """Ten people's votes, by name; no_face for the last column."""
    named = {name.replace("_", " "): count for name, count in counts.items()}
    assert named.keys() <= set(COLUMNS)
    return [named.get(name, 0) for name in COLUMNS]


def votes_of(*rows):
    return torch.tensor(rows, dtype=torch.uint8)


HAPPY = vote(happiness=8, neutral=2)
SAD = vote(sadness=6, neutral=3, fear=1)
SCORN = vote(contempt=10)
NOBODY = vote(no_face=7, unknown=3)


def stills_of(rows, labels=None, label_names=FER2013):
    num = len(rows)
    rng = np.random.default_rng(0)
    return Dataset(
        name="made up",
        frames=torch.from_numpy(rng.integers(0, 256, (num, 1, 48, 48), dtype=np.uint8)),
        starts=torch.arange(num + 1),
        labels=torch.tensor(labels if labels is not None else [0] * num),
        label_names=label_names,
        subjects=(None,) * num,
        votes=votes_of(*rows),
    )


def options(folder, **changes):
    usual = Options(
        out=folder, size=48, phases=(Phase(48, 2.0),), clip_epochs=1.0, seed=0, initial=None
    )
    return replace(usual, **changes)


# --- what is learnt of votes ---


def test_target_is_how_votes_for_the_networks_emotions_are_spread():
    targets, weights = distribution(votes_of(HAPPY, SAD), FER2013)
    happy, sad, neutral = (FER2013.index(name) for name in ("happy", "sad", "neutral"))
    assert targets[0, [happy, neutral]].tolist() == pytest.approx([0.8, 0.2])
    # The one vote for fear is dropped.
    assert targets[1, [sad, neutral]].tolist() == pytest.approx([6 / 9, 3 / 9])
    assert targets.sum(1).tolist() == pytest.approx([1, 1])
    assert weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("row", "weight"),
    [
        (vote(happiness=5, unknown=5), 0.5),
        (vote(happiness=6, no_face=2), 0.75),
        (vote(happiness=4, contempt=6), 0.4),
        (vote(happiness=9, unknown=1), 1.0),  # one vote is none
        (NOBODY, 0.0),
        (SCORN, 0.0),
        (vote(**dict.fromkeys(NAMES, 1), unknown=1, no_face=1), 0.0),
    ],
)
def test_what_is_no_emotion_of_the_network_lowers_the_weight_alone(row, weight):
    targets, weights = distribution(votes_of(row), FER2013)
    assert weights.tolist() == pytest.approx([weight])
    expected = torch.zeros(7)
    expected[FER2013.index("happy")] = float(weight > 0)
    assert torch.equal(targets[0], expected)


def test_contempt_is_learnt_by_a_network_that_has_it():
    for data_set in ("affectnet8", "ferplus", "ckplus"):
        names = LABELS[data_set]
        targets, weights = distribution(votes_of(SCORN, vote(contempt=6, anger=4)), names)
        contempt, anger = names.index("contempt"), [column_of(name) for name in names].index(4)
        assert targets[:, contempt].tolist() == pytest.approx([1.0, 0.6])
        assert targets[1, anger].item() == pytest.approx(0.4)
        assert weights.tolist() == [1, 1]


@pytest.mark.parametrize("data_set", LABELS)
def test_every_data_sets_names_find_their_column(data_set):
    names = LABELS[data_set]
    columns = [column_of(name) for name in names]
    same = {"happy": "happiness", "sad": "sadness", "angry": "anger"}
    assert [NAMES[c] for c in columns] == [same.get(name, name) for name in names]
    rows = [vote(**{NAMES[c].replace(" ", "_"): 10}) for c in columns]
    targets, _ = distribution(votes_of(*rows), names)
    assert torch.equal(targets, torch.eye(len(names)))


def test_names_that_nobody_could_vote_for_have_no_column():
    assert [column_of(name) for name in ("calm", "unknown", "no face", "")] == [None] * 4
    assert column_of("Happy") == column_of("happiness") == 1
    targets, weights = distribution(votes_of(HAPPY), ("calm", "happy"))
    assert targets.tolist() == [[0, 1]]
    assert weights.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (vote(happiness=10), "happiness"),
        (vote(happiness=6, neutral=4), "happiness"),
        (vote(happiness=5, neutral=5), None),  # a tie
        (vote(happiness=5, neutral=3, sadness=2), None),  # exactly half
        (vote(happiness=5, neutral=3, sadness=1, fear=1), "happiness"),  # 5 of the 8 that are left
        (vote(happiness=4, neutral=2, sadness=2, fear=2), None),
        (vote(unknown=6, happiness=4), None),
        (vote(no_face=10), None),
        (vote(happiness=6, unknown=4), "happiness"),
        (vote(happiness=4, unknown=4), None),
        (vote(contempt=7, anger=3), "contempt"),
        (vote(**dict.fromkeys(NAMES, 1)), None),  # nothing is left
        (vote(fear=2, **dict.fromkeys(("anger", "disgust", "sadness"), 1)), "fear"),
    ],
)
def test_majority_is_that_of_ferplus(row, name):
    assert majority(votes_of(row)).tolist() == [-1 if name is None else NAMES.index(name)]


def test_label_is_a_part_of_what_is_learnt_where_asked():
    data = stills_of([HAPPY], labels=[0])
    assert data.targets()[0][0, 3].item() == pytest.approx(0.8)
    shared = replace(data, label_share=0.3)
    targets, weights = shared.targets()
    assert targets[0, [0, 3, 6]].tolist() == pytest.approx([0.3, 0.56, 0.14])
    assert weights.tolist() == [1]
    assert replace(data, label_share=1.0).targets()[0][0].argmax() == 0
    # What is named is by votes, whatever the label's part.
    assert replace(data, label_share=1.0).emotions().tolist() == [3]


def test_pictures_that_nobody_names_are_left_out():
    data = stills_of([HAPPY, NOBODY, SAD, SCORN], labels=[3, 0, 4, 1])
    named = data.named()
    assert named.labels.tolist() == [3, 4]
    assert torch.equal(named.votes, votes_of(HAPPY, SAD))
    assert torch.equal(named.frames, data.frames[[0, 2]])
    eight = LABELS["affectnet8"]
    assert len(replace(data, label_names=eight).named()) == 3
    assert replace(data, votes=None).named().labels.tolist() == [3, 0, 4, 1]


def test_votes_stay_with_their_pictures():
    data = stills_of([HAPPY, SAD, SCORN], labels=[3, 4, 1])
    assert torch.equal(data.choose([2, 0]).votes, votes_of(SCORN, HAPPY))
    afew = data.renumber(LABELS["afew"])
    assert torch.equal(afew.votes, data.votes)
    assert [afew.label_names[i] for i in afew.emotions()[:2]] == ["happy", "sad"]


def test_a_pictures_weight_is_what_it_counts_in_the_loss():
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.eye(7)[[3, 4]]
    losses = torch.stack([weighed_loss(logits[i, None], targets[i, None], 0.0) for i in range(2)])
    weights = torch.tensor([1.0, 0.25])
    loss = weighed_loss(logits, targets * weights[:, None], 0.0)
    assert loss.item() == pytest.approx(((losses * weights).sum() / weights.sum()).item())
    # Of one-hot targets it is the usual one, smoothed or not.
    for smoothing in (0.0, 0.1):
        usual = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        assert weighed_loss(logits, targets, smoothing).item() == pytest.approx(usual.item())


# --- how common emotions are ---


def test_logits_learn_with_the_log_of_the_shares():
    rows = [HAPPY] * 6 + [SAD] * 2 + [vote(happiness=5, unknown=5)] * 4
    data = stills_of(rows)
    sums = {"happy": 6 * 0.8 + 4 * 0.5, "sad": 2 * 6 / 9, "neutral": 6 * 0.2 + 2 * 3 / 9}
    for name, share in zip(FER2013, data.prior(), strict=True):
        assert share == pytest.approx(sums.get(name, 0) / 10)
    shift = log_prior(data, 1.0)
    for name, share in sums.items():
        assert shift[FER2013.index(name)] == pytest.approx(math.log(share / 10))
    assert math.isfinite(min(shift))  # of emotions that the data do not have, too
    assert log_prior(data, 0.5) == pytest.approx([x / 2 for x in shift])
    assert set(log_prior(data, 0.0)) == {0}


def test_shift_is_of_what_an_epoch_shows(tmp_path):
    data = stills_of([HAPPY] * 40 + [vote(fear=10)])
    repeated, asked = data.repeat_rare(COMMON), options(tmp_path)
    assert len(repeated) > len(data)
    assert recipe_of(data, asked).shift == pytest.approx(log_prior(repeated, 1.0))
    assert set(recipe_of(data, replace(asked, balance=0.0)).shift) == {0}
    # What was kept apart is said of the pictures as they are.
    assert natural_of(data, asked)[2] == pytest.approx(1 / 41, rel=0.05)


def test_the_shift_is_in_the_loss(tmp_path, monkeypatch):
    def seen_by_the_loss(shift):
        monkeypatch.setattr(stills, "weighed_loss", lambda logits, *_: seen.append(logits.detach()))
        seen = []
        monkeypatch.setattr(stills.Fit, "run", lambda fit, loss_at, _: loss_at(0))
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48 * 48, 7))
        data = stills_of([HAPPY] * 4)
        recipe = replace(recipe_of(data, options(tmp_path)), shift=shift)
        stills.train(network, data.frames, data.targets, recipe, tmp_path, {})
        return seen[0]

    shift = tuple(math.log(share) for share in (0.3, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1))
    moved = seen_by_the_loss(shift) - seen_by_the_loss((0.0,) * 7)
    assert torch.allclose(moved, torch.tensor(shift).expand_as(moved), atol=1e-5)


def test_checkpoint_carries_the_shares_that_its_weights_were_spared(tmp_path):
    rows = [HAPPY] * 12 + [SAD] * 4
    data = replace(stills_of(rows, labels=[0] * 16), label_share=0.3)
    checkpoint = train_network("deep_emotion", data, None, options(tmp_path))
    # By votes alone: nobody named anger, whatever the labels say.
    assert checkpoint.natural == pytest.approx(natural_of(data.by_votes(), options(tmp_path)))
    assert checkpoint.natural[3] == pytest.approx(12 * 0.8 / 16, abs=0.05)
    assert checkpoint.natural[0] < 0.01
    assert sum(checkpoint.natural) == pytest.approx(1)
    write_checkpoint(checkpoint, tmp_path / "a.safetensors")
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert (read.natural, read.prior) == (checkpoint.natural, "natural")


def test_weights_that_know_the_shares_carry_none(tmp_path):
    data = stills_of([HAPPY] * 12 + [SAD] * 4)
    checkpoint = train_network("deep_emotion", data, None, options(tmp_path, balance=0.0))
    assert checkpoint.natural == ()
    write_checkpoint(checkpoint, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors").natural == ()


NATURAL = (0.1, 0.01, 0.03, 0.26, 0.13, 0.12, 0.35)


def test_embedders_file_keeps_the_shares(tmp_path):
    state = StillClassifier(7).state_dict()
    for natural in (NATURAL, ()):
        write_embedder(as_embedder(state, FER2013, natural), tmp_path / "embedder.pth.tar")
        read = read_embedder(tmp_path / "embedder.pth.tar")
        assert (read.labels, read.natural) == (FER2013, natural)
    known = replace(random_checkpoint(), natural=NATURAL)
    write_checkpoint(known, tmp_path / "fan.safetensors")
    assert read_embedder(tmp_path / "fan.safetensors").natural == NATURAL


@pytest.mark.parametrize("natural", [NATURAL, ()])
def test_heads_carry_the_shares_of_the_classifier_they_learn_from(tmp_path, monkeypatch, natural):
    monkeypatch.setattr(run, "train_attention", lambda *_: SimpleNamespace(made=[]))
    embedder = as_embedder(StillClassifier(7).state_dict(), LABELS["afew"], natural)
    data = stills_of([HAPPY] * 4)
    checkpoint = run.train_clips(data, None, embedder, options(tmp_path, size=56))
    # Numbered as the data are, whose own shares the heads do not know.
    shares = dict(zip(LABELS["afew"], natural, strict=False))
    assert checkpoint.natural == tuple(shares[name] for name in FER2013 if shares)


def test_shift_is_in_stage_twos_loss_of_every_system():
    draws = torch.Generator().manual_seed(0)
    scores = Scores(
        *(torch.randn(size, generator=draws) for size in ((4, 3, 7), (4, 7), (4, 7))),
        *(torch.full((4, 3), 1 / 3),) * 2,
        torch.zeros(4, 3, 7),
    )
    shift = torch.tensor([math.log(share) for share in NATURAL])
    moved = scores._replace(
        frame_logits=scores.frame_logits + shift,
        self_logits=scores.self_logits + shift,
        logits=scores.logits + shift,
    )
    labels, kinds = torch.tensor([3, 4, 0, 6]), torch.full((4, 3), CLEAR)
    loss = clips.loss_of(scores, labels, kinds, 0.1, shift)
    assert loss.item() == pytest.approx(clips.loss_of(moved, labels, kinds, 0.1, shift * 0).item())
    assert loss.item() != pytest.approx(clips.loss_of(scores, labels, kinds, 0.1, shift * 0).item())


def test_pictures_of_rare_emotions_come_more_often():
    rows = [vote(happiness=10)] * 95 + [vote(fear=10)] * 4 + [vote(disgust=10)]
    repeated = stills_of(rows, labels=[3] * 95 + [2] * 4 + [1]).repeat_rare(0.1)
    counts = repeated.labels.bincount(minlength=7)
    assert counts[3] == 95
    assert counts[2] == 4 * round(math.sqrt(0.1 / 0.04))
    assert counts[1] == round(math.sqrt(0.1 / 0.01)) <= MAX_REPEATS
    assert torch.equal(repeated.emotions(), repeated.labels)  # votes come with them
    rarest = stills_of([vote(happiness=10)] * 999 + [vote(fear=10)]).repeat_rare(0.1)
    assert len(rarest) == 999 + MAX_REPEATS


def test_balanced_data_are_left_alone():
    rows = [vote(**{name: 10}) for name in ("anger", "disgust", "fear", "happiness", "sadness")]
    data = stills_of(rows * 4)
    assert data.repeat_rare(COMMON) is data


# --- where votes come from ---


def write_csvs(folder, images, labels, usages, votes, names=None):
    """The challenge's own file, and FER+'s beside it."""
    with (folder / "fer2013.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["emotion", "pixels", "Usage"])
        for image, label, usage in zip(images, labels, usages, strict=True):
            rows.writerow([label, " ".join(map(str, image.flat)), usage])
    with (folder / "fer2013new.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(HEADER)
        for i, (usage, row) in enumerate(zip(usages, votes, strict=True)):
            rows.writerow([usage, f"fer{i:07}.png" if names is None else names[i], *row])
    return folder / "fer2013.csv"


def faces(num):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (num, 48, 48), dtype=np.uint8), np.arange(num) % 7


def test_npz_with_votes_and_ferplus_beside_the_challenges_file_are_the_same(tmp_path):
    images, labels = faces(6)
    votes = np.array([HAPPY, SAD, SCORN, NOBODY, HAPPY, SAD], np.uint8)
    usages = ["Training"] * 4 + ["PublicTest", "PrivateTest"]
    table = read_dataset(write_csvs(tmp_path, images, labels, usages, votes), FER2013)
    np.savez(tmp_path / "a.npz", images=images[:4], labels=labels[:4], votes=votes[:4])
    npz = read_dataset(tmp_path / "a.npz", FER2013)
    for name in ("frames", "starts", "labels", "votes"):
        assert torch.equal(getattr(table, name), getattr(npz, name)), name
    assert npz.votes.dtype == torch.uint8
    held_out = read_dataset(tmp_path / "fer2013.csv", FER2013, "PublicTest")
    assert held_out.votes.tolist() == [HAPPY]


def test_pictures_that_ferplus_removed_are_left_out(tmp_path):
    images, labels = faces(4)
    votes = [HAPPY, vote(), SAD, vote(no_face=10)]
    names = ["fer0000000.png", "", "fer0000002.png", "  "]
    path = write_csvs(tmp_path, images, labels, ["Training"] * 4, votes, names)
    data = read_dataset(path, FER2013)
    assert data.votes.tolist() == [HAPPY, SAD]
    assert data.labels.tolist() == [0, 2]
    assert torch.equal(data.frames[:, 0], torch.from_numpy(images[[0, 2]]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int16, np.uint32])
def test_votes_of_any_whole_numbers_are_read(tmp_path, dtype):
    images, labels = faces(2)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, votes=np.array([HAPPY, SAD], dtype))
    assert read_dataset(tmp_path / "a.npz", FER2013).votes.tolist() == [HAPPY, SAD]


# --- through the command ---


def command(path, out, *more):
    return [
        *(str(path), "--model", "deep_emotion", "--phases", "48x0.5", "--out", str(out)),
        *("--device", "cpu", *more),
    ]


def test_command_learns_from_votes_unless_told_otherwise(tmp_path):
    images, labels = faces(12)
    votes = np.array([HAPPY, SAD, SAD, SAD, NOBODY, SCORN] * 2, np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, votes=votes)
    for target, words, num in (
        ((), "targets votes, label share 0.3", 8),
        (("--target", "votes", "--label-share", "0"), "targets votes, label share 0", 8),
        (("--target", "labels"), "targets labels", 12),
    ):
        out = tmp_path / "-".join(("run", *target))
        assert main(command(tmp_path / "a.npz", out, *target)) == 0
        checkpoint = read_checkpoint(out / "deep_emotion.safetensors")
        assert f"{words}, " in checkpoint.notes["recipe"]
        assert f"{num} clips" in checkpoint.notes["data"]
        # Six of twelve are sad by votes; by labels every emotion is as common.
        sad = FER2013.index("sad")
        assert (checkpoint.natural[sad] > 0.4) == ("labels" not in target)


def test_another_label_share_is_another_run(tmp_path, capsys):
    images, labels = faces(12)
    votes = np.array([HAPPY, SAD] * 6, np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, votes=votes)
    assert main(command(tmp_path / "a.npz", tmp_path / "out")) == 0
    assert main(command(tmp_path / "a.npz", tmp_path / "out", "--label-share", "0.5")) == 1
    assert "label share" in capsys.readouterr().err


def test_bad_votes_are_no_matter_to_who_learns_labels(tmp_path):
    images, labels = faces(8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, votes=np.zeros((3, 2)))
    assert main(command(tmp_path / "a.npz", tmp_path / "out", "--target", "labels")) == 0


def test_changed_labels_are_other_data_beside_the_same_votes(tmp_path):
    images, labels = faces(8)
    votes = np.array([HAPPY, SAD] * 4, np.uint8)
    for name, told in (("a", labels), ("b", (labels + 1) % 7)):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=told, votes=votes)
    one, other = (read_dataset(tmp_path / f"{name}.npz", FER2013) for name in "ab")
    assert fingerprint(one) != fingerprint(other)


def test_votes_that_are_not_there_cannot_be_learnt_from(tmp_path, capsys):
    images, labels = faces(4)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    refused(command(tmp_path / "a.npz", tmp_path / "out", "--target", "votes"), capsys, "nobody")
    assert not (tmp_path / "out").exists()


def refused(arguments, capsys, *words):
    """One line says why, and nothing else is said."""
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("train: ")
    for word in words:
        assert word in line


GOOD = np.array([HAPPY, SAD, HAPPY, SAD], np.int64)


def changed(row, column, value):
    votes = GOOD.copy()
    votes[row, column] = value
    return votes


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        (GOOD[:3], ["(3, 10)", "expected whole numbers (4, 10)", *COLUMNS]),
        (GOOD[:, :8], ["(4, 8)", "(4, 10)"]),
        (GOOD[:, 0], ["(4,)", "(4, 10)"]),
        (GOOD[:, :, None], ["(4, 10, 1)", "(4, 10)"]),
        (GOOD.astype(np.float32), ["float32", "whole numbers"]),
        (GOOD / 10, ["float64", "whole numbers"]),
        (GOOD > 0, ["bool", "whole numbers"]),
        (GOOD.astype(str), ["whole numbers"]),
        (GOOD.astype(object), ["`votes`"]),
        (GOOD * [[1], [1], [0], [1]], ["votes of picture 2 are all 0", "1 pictures in all"]),
        (changed(1, 3, -2), ["votes of picture 1", "-2", "expected 0 to 255"]),
        (changed(3, 0, 256), ["votes of picture 3", "256", "expected 0 to 255"]),
        (np.array([NOBODY] * 4), ["none of its 4 pictures is named"]),
    ],
)
def test_votes_that_are_none_are_refused_in_one_line(tmp_path, capsys, votes, words):
    images, labels = faces(4)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, votes=votes)
    refused(command(tmp_path / "a.npz", tmp_path / "out"), capsys, "a.npz", *words)
    assert not (tmp_path / "out").exists()


def edit(number, column, value):
    """Change one field of FER+'s file; `number` counts rows beneath the header from 1."""

    def change(rows):
        rows[number][HEADER.index(column)] = value

    return change


def drop(column):
    def change(rows):
        at = HEADER.index(column)
        for row in rows:
            del row[at]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop(), ["3 rows, and fer2013.csv has 4", "same rows"]),
        (lambda rows: rows.append(rows[-1]), ["5 rows, and fer2013.csv has 4", "same rows"]),
        (edit(3, "Usage", "PublicTest"), ["row 3 is of Usage PublicTest", "of Training"]),
        (edit(2, "fear", "two"), ["row 2: expected columns", "'two'"]),
        (edit(2, "fear", "1.5"), ["row 2: expected columns", "'1.5'"]),
        (edit(4, "NF", "9" * 30), ["row 4: expected columns"]),
        (edit(2, "fear", "-1"), ["votes of row 2", "expected 0 to 255"]),
        (edit(2, "fear", "300"), ["votes of row 2", "expected 0 to 255"]),
        (lambda rows: rows[3].__setitem__(slice(2, None), ["0"] * 10), ["row 3 are all 0"]),
        (lambda rows: rows[3].__delitem__(slice(5, None)), ["row 3: expected columns"]),
        (drop("contempt"), ["row 1: expected columns", "contempt"]),
        (drop("NF"), ["row 1: expected columns", "'NF'"]),
        (drop("Usage"), ["row 1: expected columns", "'Usage'"]),
        (drop("Image name"), ["row 1: expected columns", "'Image name'"]),
        (lambda rows: rows.clear(), ["0 rows, and fer2013.csv has 4"]),
    ],
)
def test_ferplus_that_does_not_fit_is_refused_in_one_line(tmp_path, capsys, change, words):
    images, labels = faces(4)
    path = write_csvs(tmp_path, images, labels, ["Training"] * 4, GOOD)
    voted = tmp_path / "fer2013new.csv"
    rows = list(csv.reader(voted.open(newline="")))
    change(rows)
    with voted.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    refused(command(path, tmp_path / "out"), capsys, "fer2013new.csv", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"", b"PK\x03\x04"])
def test_ferplus_of_other_bytes_is_refused_in_one_line(tmp_path, capsys, content):
    images, labels = faces(4)
    path = write_csvs(tmp_path, images, labels, ["Training"] * 4, GOOD)
    (tmp_path / "fer2013new.csv").write_bytes(content)
    refused(command(path, tmp_path / "out"), capsys, "fer2013new.csv")
    assert not (tmp_path / "out").exists()
