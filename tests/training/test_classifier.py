"""Others' faces move the classifier of single frames, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from networks.checkpoint import LABELS, Embedder
from training import TrainingError
from training.classifier import Told, fit
from training.command import main
from training.data import Dataset
from training.run import Options, train, train_network
from training.stills import Phase, StillClassifier, as_embedder

FER2013 = LABELS["fer2013"]


def faces(num, frames=1, seed=0, channels=1):
    """Clips of random pictures whose labels take turns."""
    shape = (num * frames, channels, 48, 48)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Dataset(
        name="made up",
        frames=torch.from_numpy(images),
        starts=torch.arange(num + 1) * frames,
        labels=torch.arange(num) % 7,
        label_names=FER2013,
        subjects=(None,) * num,
    )


def options(folder, **changes):
    torch.manual_seed(0)
    embedder = as_embedder(StillClassifier(7).state_dict(), FER2013, (1 / 7,) * 7)
    usual = Options(
        out=folder, size=56, phases=(), clip_epochs=2.0, seed=0, initial=embedder, others_times=5.0
    )
    return replace(usual, **changes)


def told(features, labels, weight=1.0):
    return Told(
        features=features,
        targets=nn.functional.one_hot(labels, 2).float(),
        weights=torch.full((len(labels),), weight),
    )


def test_classifier_minimises_the_loss_and_stays_where_nothing_pulls():
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    fc = nn.Linear(8, 2)
    with torch.no_grad():
        fc.weight.zero_()
        fc.bias.zero_()
    features[:, 7] = 0  # says nothing: its weights have no reason to move
    labels = (features[:, 0] > 0).long()
    after, before = fit(fc, told(features, labels), torch.zeros(2))
    assert after < 0.2 * before
    assert (fc(features).argmax(1) == labels).float().mean() > 0.97
    assert fc.weight[:, 7].abs().max() < 1e-4


def test_shares_that_are_kept_apart_are_not_learnt():
    # Nothing tells the two apart, and one comes nine times as often.
    labels = torch.tensor([0] * 90 + [1] * 10)
    fc = nn.Linear(4, 2)
    with torch.no_grad():
        fc.weight.zero_()
        fc.bias.zero_()
    fit(fc, told(torch.zeros(100, 4), labels), torch.tensor([0.9, 0.1]).log())
    assert fc.bias.softmax(0)[0] == pytest.approx(0.5, abs=0.02)


def test_others_change_the_heads_and_not_the_embedder(tmp_path):
    alone = train(faces(28), None, options(tmp_path / "alone"))
    joined = train(faces(28), None, options(tmp_path / "joined", others=faces(14, 3, seed=9)))
    for name, value in alone.state.items():
        heads = name.startswith(("fc", "pred_fc", "alpha", "beta"))
        assert torch.equal(joined.state[name], value) != heads, name
    assert "also" not in alone.notes
    assert joined.notes["also"].startswith("5 x made up: 14 clips, 42 frames, ")
    assert joined.natural == alone.natural


def test_run_with_others_is_another_run(tmp_path):
    train(faces(28), None, options(tmp_path))
    with pytest.raises(TrainingError, match="also"):
        train(faces(28), None, options(tmp_path, others=faces(14, 3, seed=9)))


def test_coloured_faces_are_turned_gray_beside_gray_ones(tmp_path):
    others = faces(14, channels=3, seed=9)
    gray = others.gray()
    assert gray.frames.shape == (14, 1, 48, 48)
    assert train(faces(28), None, options(tmp_path, others=others)).preprocessing.color == "gray"


def test_data_that_cannot_have_others_refuse_them(tmp_path):
    others = faces(7)
    with pytest.raises(TrainingError, match="--also: made up is of clips"):
        train(faces(14, 2), None, options(tmp_path, others=others))
    asked = options(tmp_path, others=others, phases=(Phase(56, 1.0),), initial=None)
    with pytest.raises(TrainingError, match="--also: expected --model fan"):
        train_network("dan", faces(28), None, asked)


@pytest.fixture
def folder(tmp_path):
    """Sequences by label, of three emotions, contempt among them."""
    for label in ("happy", "sad", "contempt"):
        for sequence in ("S001_001", "S002_001"):
            path = tmp_path / "others" / label / sequence
            path.mkdir(parents=True)
            for i in range(2):
                pixels = np.random.default_rng(i).integers(0, 256, (48, 48), dtype=np.uint8)
                Image.fromarray(pixels).save(path / f"{i}.png")
    return tmp_path / "others"


def npz(folder):
    images = np.random.default_rng(0).integers(0, 256, (28, 48, 48), dtype=np.uint8)
    np.savez(folder / "faces.npz", images=images, labels=np.arange(28, dtype=np.uint8) % 7)
    return folder / "faces.npz"


def init(folder):
    torch.manual_seed(0)
    embedder: Embedder = options(folder).initial
    content = {"state_dict": dict(embedder.state), "labels": list(FER2013)}
    torch.save({**content, "natural": [1 / 7] * 7}, folder / "init.pth.tar")
    return folder / "init.pth.tar"


def test_emotions_that_are_not_learnt_are_left_out_and_said(folder, tmp_path, caplog):
    command = ["--init", init(tmp_path), "--phases", "", "--size", "56", "--clip-epochs", "1"]
    also = ["--also", folder, "--also-times", "2", "--out", tmp_path / "out"]
    caplog.set_level("INFO")
    assert main(list(map(str, [npz(tmp_path), *command, *also]))) == 0
    assert "others: 2 of contempt left out" in caplog.text


@pytest.mark.parametrize(
    ("also", "words"),
    [("missing", "expected an .npz or .csv file, or a folder"), ("odd", "are named for no label")],
)
def test_others_that_cannot_be_read_are_told_in_one_line(folder, tmp_path, also, words, capsys):
    if also == "odd":
        (tmp_path / "odd" / "puzzled").mkdir(parents=True)
    command = ["--init", init(tmp_path), "--phases", "", "--also", tmp_path / also]
    assert main(list(map(str, [npz(tmp_path), *command]))) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
