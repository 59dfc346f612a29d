"""DAN, RAN and Deep-Emotion are trained on stills, and nothing else."""

import csv
from dataclasses import replace

import pytest
import torch
from conftest import random_checkpoint
from made_up import FER2013, dataset, options

from base.errors import ExportError
from networks.checkpoint import (
    read_checkpoint,
    write_checkpoint,
)
from networks.entries import NETWORKS
from training import evaluate, measure
from training.run import (
    train_network,
    train_stills,
)
from training.stills import Phase, StillClassifier, StillsRecipe, as_embedder

FUSION = "score fusion"  # the one system that they have


@pytest.mark.parametrize(("network", "size"), [("dan", 56), ("ran", 56), ("deep_emotion", 48)])
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
        "stills": StillsRecipe(phases=()).learning_rate,
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
