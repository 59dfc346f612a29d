"""The paper's three systems are measured as they are served."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from conftest import random_checkpoint
from made_up import CPU, FER2013, dataset, options, pictures

from export.faces import to_face
from networks.checkpoint import (
    LABELS,
    Embedder,
    build,
    read_checkpoint,
    write_checkpoint,
)
from networks.preprocessing import SIZES, Preprocessing
from training import TrainingError, evaluate, measure
from training.clips import ClipClassifier
from training.command import main
from training.distill import softened
from training.run import (
    train,
    train_network,
)
from training.stills import Phase, StillClassifier, as_embedder


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
