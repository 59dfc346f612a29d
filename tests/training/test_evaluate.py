"""Evaluation holds a network against both truths, and says which is meant beside every figure."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_checkpoint

from networks.checkpoint import LABELS, write_checkpoint
from networks.preprocessing import Preprocessing
from training import evaluate, measure
from training.data import Dataset
from training.measure import UNKNOWN, Minority, truths_of, weigh_minority
from training.run import with_figures
from training.votes import NAMES, column_of

FER2013 = LABELS["fer2013"]
NATURAL = (0.1, 0.01, 0.03, 0.26, 0.13, 0.12, 0.35)
# Columns: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, no face.
HAPPY = [2, 8, 0, 0, 0, 0, 0, 0, 0, 0]
SAD = [2, 0, 0, 7, 0, 0, 1, 0, 0, 0]
SCORN = [1, 0, 0, 0, 1, 0, 0, 8, 0, 0]
DIVIDED = [5, 0, 0, 5, 0, 0, 0, 0, 0, 0]
NOBODY = [0, 0, 0, 0, 0, 0, 0, 0, 0, 10]
ROWS = [HAPPY, SAD, SCORN, DIVIDED, NOBODY]
OWN = [3, 6, 0, 4, 2]  # what FER2013 says of them


def voted(rows=ROWS, labels=OWN, label_names=FER2013):
    images = np.random.default_rng(0).integers(0, 256, (len(rows), 1, 48, 48), dtype=np.uint8)
    return Dataset(
        name="made up",
        frames=torch.from_numpy(images),
        starts=torch.arange(len(rows) + 1),
        labels=torch.tensor(labels),
        label_names=label_names,
        subjects=(None,) * len(rows),
        votes=torch.tensor(rows, dtype=torch.uint8),
    )


def naming(named, num_classes=7):
    """Probabilities of a network that is sure of these."""
    return torch.nn.functional.one_hot(torch.tensor(named), num_classes).float()


# --- truths ---


def test_ferplus_majority_comes_first_and_the_label_beside_it():
    majority, label = truths_of(voted())
    assert (majority.name, label.name) == ("FER+ majority", "label")
    assert label.labels.tolist() == OWN
    assert label.label_names == FER2013
    # Faces on which people do not agree are left out of the first.
    assert majority.labels.tolist() == [3, 4, 7, UNKNOWN, UNKNOWN]
    assert majority.label_names == (*FER2013, "contempt")
    assert (majority.total, label.total) == (3, 5)


@pytest.mark.parametrize("data_set", LABELS)
def test_majority_is_numbered_as_the_network_is(data_set):
    names = LABELS[data_set]
    rows = (10 * np.eye(10, dtype=int)[:8]).tolist()
    majority, _ = truths_of(voted(rows, [0] * 8, names))
    named = [majority.label_names[i] for i in majority.labels]
    assert [column_of(name) for name in named] == list(range(8))
    assert majority.label_names[: len(names)] == names
    missing = set(range(8)) - {column_of(name) for name in names}
    assert majority.label_names[len(names) :] == tuple(NAMES[i] for i in sorted(missing))


def test_data_without_votes_or_agreement_have_the_label_alone():
    (alone,) = truths_of(replace(voted(), votes=None))
    assert alone.name == "label"
    for rows in ([DIVIDED, NOBODY], [SCORN, SCORN]):
        (alone,) = truths_of(voted(rows, [3, 4]))
        assert alone.labels.tolist() == [3, 4]


def test_unknown_is_left_out_and_what_the_network_has_not_is_wrong():
    (majority, label), probabilities = truths_of(voted()), naming([3, 4, 0, 0, 0])
    measured = measure.measure(probabilities, majority.labels)
    assert (measured.correct, measured.total) == (2, 3)
    assert measured.confusion.shape == (8, 7)
    assert measured.confusion[7].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert measured.recalls[[3, 4]].tolist() == [1, 1]
    assert measured.balanced == 1  # of the emotions that it has
    assert measured.calibration_error == pytest.approx(1 / 3)
    assert (measure.measure(probabilities, label.labels).correct) == 2
    eight = LABELS["affectnet8"]
    majority, _ = truths_of(voted(label_names=eight))
    named = [eight.index(name) for name in ("happy", "sad", "contempt", "fear", "fear")]
    measured = measure.measure(naming(named, 8), majority.labels)
    assert (measured.correct, measured.total) == (3, 3)


# --- what clear frames of another emotion weigh ---


def test_minority_is_held_against_the_majority_of_its_clip():
    weights = torch.tensor([[0.2, 0.2, 0.4, 0.2], [0.3, 0.3, 0.3, 0.1]])
    others = torch.tensor([[False, False, False, True], [False, False, True, True]])
    found = weigh_minority(weights, others)
    ratios = [0.2 / (0.8 / 3), 0.3 / 0.3, 0.1 / 0.3]
    assert found.mean == pytest.approx(np.mean(ratios))
    assert found.fifth == pytest.approx(np.quantile(ratios, 0.05), abs=1e-6)
    alike = weigh_minority(torch.full((3, 8), 1 / 8), torch.arange(8).expand(3, 8) < 3)
    assert (alike.mean, alike.fifth) == pytest.approx((1, 1))


def test_minority_of_one_emotion_is_none():
    found = weigh_minority(torch.full((2, 4), 1 / 4), torch.zeros(2, 4, dtype=torch.bool))
    assert math.isnan(found.mean)
    assert math.isnan(found.fifth)
    made = evaluate.MadeClips(spoilt=(), weighed=(), minority=[found], lengths={})
    assert evaluate.describe_minority(made) == []
    made = replace(made, minority=[Minority(mean=0.5, fifth=0.2), Minority(mean=0.7, fifth=0.4)])
    assert "weighs 0.60 of one of the others" in "".join(evaluate.describe_minority(made))
    assert "0.30 at the 5th percentile" in "".join(evaluate.describe_minority(made))


def test_mixed_clips_are_clear_and_the_few_are_known():
    checkpoint = random_checkpoint(preprocessing=Preprocessing("gray", size=56))
    model = measure.build(checkpoint, torch.device("cpu"))
    scores, others = measure.score_mixed_clips(model, voted([HAPPY, SAD], [3, 4]), checkpoint, 0)
    assert scores.weights.shape == others.shape == (2, measure.NUM_FRAMES)
    assert others.sum(1).tolist() == [measure.NUM_OTHERS] * 2


# --- the command ---


def run(tmp_path, checkpoint, *options, rows=ROWS, labels=OWN):
    images = np.random.default_rng(0).integers(0, 256, (len(rows), 48, 48), dtype=np.uint8)
    votes = np.array(rows, np.uint8)
    np.savez(tmp_path / "faces.npz", images=images, labels=np.array(labels), votes=votes)
    write_checkpoint(checkpoint, tmp_path / "mine.safetensors")
    command = [str(tmp_path / "faces.npz"), "--checkpoint", str(tmp_path / "mine.safetensors")]
    command += ["--seeds", "1", "--device", "cpu", "--out", str(tmp_path / "out"), *options]
    code = evaluate.main(command)
    report = tmp_path / "out" / "report.md"
    return code, report.read_text() if report.is_file() else None


def test_report_has_both_truths_beside_each_other(tmp_path):
    checkpoint = random_checkpoint(network="deep_emotion")
    code, text = run(tmp_path, checkpoint, rows=ROWS * 3, labels=OWN * 3)
    assert code == 0
    assert text.startswith("# mine.safetensors on faces.npz\n")
    first, voted_part, label_part = re.split(r"\nBy .*:\n", text)
    assert re.findall(r"\nBy (.*):\n", text) == ["FER+ majority (9)", "label (15)"]
    assert "15 stills" in first
    for part, total in ((voted_part, 9), (label_part, 15)):
        assert re.search(rf"\| score fusion \| .* % \(\d+ / {total}\) \| .* % \| .* % \|", part)
        assert "| system | top-1 | mean recall | calibration error |" in part
        assert f"| {' | '.join(FER2013)} |" in part
    assert "3 of contempt, which the network does not have, count as wrong." in voted_part
    assert "contempt" not in label_part
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000


def test_made_clips_are_of_faces_whose_emotion_is_known(tmp_path):
    checkpoint = random_checkpoint(preprocessing=Preprocessing("gray", size=56))
    code, text = run(tmp_path, replace(checkpoint, natural=NATURAL), "--lengths", "2")
    assert code == 0
    assert "made of each of 2 stills" in text
    assert "prior natural" in text
    assert re.search(r"of another emotion: each of those weighs \d\.\d\d of one of the", text)
    assert "Clips of clear frames alone, 2 faces" in text


def test_data_of_one_emotion_are_measured_too(tmp_path):
    checkpoint = random_checkpoint(preprocessing=Preprocessing("gray", size=56))
    code, text = run(tmp_path, checkpoint, rows=[HAPPY] * 2, labels=[3] * 2)
    assert code == 0
    assert "of another emotion" not in text


def test_prior_of_the_report_is_the_one_asked_for(tmp_path, capsys):
    checkpoint = replace(random_checkpoint(network="deep_emotion"), natural=NATURAL)
    for options, words in (([], "natural"), (["--prior", "even"], "even")):
        code, text = run(tmp_path, checkpoint, *options)
        assert code == 0
        assert f"float32, prior {words}. " in text
    capsys.readouterr()
    known = random_checkpoint(network="deep_emotion")
    assert run(tmp_path, known)[1].count("prior of what the weights learnt from") == 1
    capsys.readouterr()
    assert run(tmp_path, known, "--prior", "even")[0] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluate: --prior even: these weights know how common")


def test_prior_moves_what_is_named(tmp_path):
    sure = tuple(1 - 6e-9 if name == "happy" else 1e-9 for name in FER2013)
    checkpoint = replace(random_checkpoint(network="deep_emotion"), natural=sure)
    state = {**checkpoint.state, "fc2.weight": checkpoint.state["fc2.weight"] * 1e-6}
    _, text = run(tmp_path, replace(checkpoint, state=state))
    assert re.search(r"\| score fusion \| 33.33 % \(1 / 3\) \|", text)  # the happy one
    figures = with_figures(replace(checkpoint, state=state), voted()).notes["measured"]
    assert figures == "top-1 on made up (FER+ majority, 3): score fusion 33.33 %"


def test_votes_that_are_none_are_refused_in_one_line(tmp_path, capsys):
    checkpoint = random_checkpoint(network="deep_emotion")
    assert run(tmp_path, checkpoint, rows=[HAPPY, [0] * 10], labels=[3, 4]) == (1, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluate: ")
    assert "votes of picture 1 are all 0" in line
