"""Weights are read exactly, or refused with words that say what is wrong with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, random_checkpoint
from safetensors.torch import save_file

from base.errors import CheckpointError, ExportError
from export.command import export
from networks.checkpoint import (
    LABELS,
    Source,
    build,
    main,
    parse_labels,
    read_checkpoint,
    write_checkpoint,
)
from networks.preprocessing import LUMA, SIZES, Normaliser, Preprocessing, cells_of
from networks.resnet import ResNet18

WEIGHTS = ROOT / "weights"


@pytest.fixture
def authors_file(tmp_path):
    """A checkpoint as the authors save theirs, from DataParallel."""

    def write(state=None, **content):
        state = dict(random_checkpoint().state) if state is None else state
        path = tmp_path / "fan.pth.tar"
        parallel = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "state_dict": parallel, "accuracy": 51.18, **content}, path)
        return path

    return write


def test_authors_checkpoint_loads_with_every_weight(authors_file):
    expected = random_checkpoint().state
    state = read_checkpoint(authors_file(), labels=LABELS["afew"]).state
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_batch_counters_may_be_there_or_not(authors_file):
    state = dict(random_checkpoint().state)
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    checkpoint = read_checkpoint(authors_file(state), labels=LABELS["afew"])
    assert "bn1.num_batches_tracked" not in checkpoint.state
    assert "fan_embedder" in build(checkpoint)


def test_own_format_keeps_weights_labels_variant_and_preprocessing(tmp_path):
    preprocessing = Preprocessing("gray", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    notes = {"data": "none"}
    written = random_checkpoint(preprocessing=preprocessing, variant="self", notes=notes)
    write_checkpoint(written, tmp_path / "fan.safetensors")
    read = read_checkpoint(tmp_path / "fan.safetensors")
    assert (read.labels, read.variant) == (written.labels, "self")
    assert (read.preprocessing, read.notes) == (preprocessing, notes)
    for name, value in written.state.items():
        assert torch.equal(read.state[name], value.half().float()), name


def test_shipped_weights_say_how_they_are_to_be_used(shipped):
    assert shipped.labels == LABELS["fer2013"]
    assert shipped.preprocessing == Preprocessing("gray", size=112)
    assert shipped.variant == "relation"
    assert shipped.notes["source"]


def test_backbone_without_heads_is_refused_by_name(authors_file):
    state = {k: v for k, v in random_checkpoint().state.items() if "alpha" not in k}
    state["fc.weight"] = torch.zeros(8, 512)
    with pytest.raises(
        CheckpointError,
        match=r"missing 3 \(alpha.0.weight, alpha.0.bias, fc.bias\).*videofer train --init",
    ):
        read_checkpoint(authors_file(state), labels=LABELS["afew"])


def test_another_network_is_refused_with_the_count_of_its_strangers(authors_file):
    strangers = {f"features.{i}.weight": torch.zeros(1) for i in range(20)}
    with pytest.raises(
        CheckpointError, match=r"missing 108 .* and 96 more.*unexpected 20 .* 8 more"
    ):
        read_checkpoint(authors_file(strangers), labels=LABELS["afew"])


@pytest.mark.parametrize("network", ["dan", "ran", "deep_emotion"])
def test_another_of_our_networks_is_refused_by_its_name(authors_file, network):
    path = authors_file(random_checkpoint(network=network).state)
    with pytest.raises(CheckpointError, match=rf"not FAN's: .* --model {network}"):
        read_checkpoint(path, labels=LABELS["afew"])


def test_what_is_to_be_typed_again_is_written_as_it_is_typed():
    assert Source(path=WEIGHTS / "fan.safetensors").to_command("export") == "videofer export"
    assert Source(path=WEIGHTS / "deep_emotion.safetensors", network="deep_emotion").to_command(
        "calibrate"
    ) == ("videofer calibrate --model deep_emotion")
    source = Source(
        path=Path("ran.pth"),
        network="ran",
        labels=LABELS["ferplus"],
        color="rgb",
        variant="regions6",
    )
    assert source.to_command("export") == (
        "videofer export --model ran --checkpoint ran.pth --labels ferplus --color rgb "
        "--variant regions6"
    )
    own = Source(path=Path("my fan.pth"), labels=("calm", "wild"))
    expected = "videofer export --checkpoint 'my fan.pth' --labels labels.txt"
    assert own.to_command("export") == expected


def test_misshapen_weight_is_refused_by_name_and_shape(authors_file):
    state = {**random_checkpoint().state, "beta.0.weight": torch.zeros(1, 512)}
    with pytest.raises(CheckpointError, match=r"beta.0.weight has shape \[1, 512\].*\[1, 1024\]"):
        read_checkpoint(authors_file(state), labels=LABELS["afew"])


def test_labels_are_asked_for_where_the_file_has_none(authors_file):
    with pytest.raises(CheckpointError, match=r"name them with --labels fer2013"):
        read_checkpoint(authors_file())


def test_labels_must_fit_the_classes(authors_file):
    with pytest.raises(CheckpointError, match=r"2 labels \(sad, happy\) for 7 classes"):
        read_checkpoint(authors_file(), labels=("sad", "happy"))


@pytest.mark.parametrize(
    "name", ["missing.pth.tar", "text.pth.tar", "hello.pth", "passwd", "text.safetensors"]
)
def test_unreadable_file_is_refused_in_words(tmp_path, name):
    # torch's unpickler trips over each of the texts in another way: KeyError, IndexError.
    (tmp_path / "text.pth.tar").write_text("not weights")
    (tmp_path / "hello.pth").write_text("hello")
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/bash")
    (tmp_path / "text.safetensors").write_text("not weights either")
    with pytest.raises(CheckpointError, match=f"{name}: (no such file|not a readable)"):
        read_checkpoint(tmp_path / name, labels=LABELS["afew"])


def test_truncated_checkpoint_is_refused_in_words(authors_file):
    path = authors_file()
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(CheckpointError, match="not a readable torch checkpoint"):
        read_checkpoint(path, labels=LABELS["afew"])


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("harm",))

    torch.save({"state_dict": Harmful()}, tmp_path / "fan.pth.tar")
    with pytest.raises(CheckpointError, match="not a readable torch checkpoint"):
        read_checkpoint(tmp_path / "fan.pth.tar", labels=LABELS["afew"])


def test_color_option_leaves_mean_and_std_alone(tmp_path):
    preprocessing = Preprocessing("rgb", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    write_checkpoint(random_checkpoint(preprocessing=preprocessing), tmp_path / "a.safetensors")
    read = read_checkpoint(tmp_path / "a.safetensors", color="gray").preprocessing
    assert read == Preprocessing("gray", preprocessing.mean, preprocessing.std)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_a_number_is_refused_by_name(authors_file, value):
    state = {**random_checkpoint().state, "bn1.bias": torch.full((64,), value)}
    with pytest.raises(CheckpointError, match=r"bn1.bias has values that are NaN or infinite"):
        read_checkpoint(authors_file(state), labels=LABELS["afew"])


def test_weight_that_fp16_cannot_hold_is_kept_as_it_is(tmp_path):
    state = {**random_checkpoint().state, "bn1.running_var": torch.full((64,), 70_001.0)}
    write_checkpoint(replace(random_checkpoint(), state=state), tmp_path / "fan.safetensors")
    read = read_checkpoint(tmp_path / "fan.safetensors").state
    assert torch.equal(read["bn1.running_var"], state["bn1.running_var"])
    assert (tmp_path / "fan.safetensors").stat().st_size < 0.51 * 4 * sum(
        map(torch.numel, state.values())
    )


def test_weight_that_is_not_a_number_is_not_written(tmp_path):
    state = {**random_checkpoint().state, "bn1.bias": torch.full((64,), float("inf"))}
    with pytest.raises(CheckpointError, match=r"bn1.bias has values that are NaN or infinite"):
        write_checkpoint(replace(random_checkpoint(), state=state), tmp_path / "fan.safetensors")
    assert not (tmp_path / "fan.safetensors").exists()


@pytest.mark.parametrize(
    "metadata", [{"variant": "foo"}, {"preprocessing": "[1]"}, {"preprocessing": '{"hue": 1}'}]
)
def test_metadata_that_makes_no_sense_is_refused_in_words(tmp_path, metadata):
    path = tmp_path / "fan.safetensors"
    own = {"architecture": "fan", "labels": '["a", "b", "c", "d", "e", "f", "g"]', **metadata}
    save_file(dict(random_checkpoint().state), path, own)
    with pytest.raises(CheckpointError, match=r"fan.safetensors: .*(variant|preprocessing|hue)"):
        read_checkpoint(path)


def test_labels_come_by_name_or_from_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text("calm\n very wild \n\n")
    assert parse_labels("ckplus")[5] == "contempt"
    assert parse_labels(str(tmp_path / "mine.txt")) == ("calm", "very wild")


def test_conversion_is_one_command(authors_file, tmp_path, capsys):
    source, target = authors_file(), tmp_path / "own.safetensors"
    arguments = [str(source), str(target), "--labels", "afew", "--note", "source=nobody"]
    assert main(arguments) == 0
    assert read_checkpoint(target).notes == {"source": "nobody"}
    assert main([str(source), str(target)]) == 1
    assert "--labels" in capsys.readouterr().err


def test_gray_weights_see_no_colour():
    embedder = build(random_checkpoint(preprocessing=Preprocessing("gray")))["fan_embedder"].module
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8))
    luma = (frames.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.double)) / 255
    pixels = embedder.normaliser(frames).double()
    assert pixels.shape == (1, 1, 224, 224)  # one channel stands for three
    assert (pixels - luma[:, None]).abs().max() < 1e-6  # float32 rounding of values below 1


def test_one_gray_channel_is_seen_as_three_equal_ones():
    torch.manual_seed(0)
    backbone, gray = ResNet18().eval(), torch.rand(2, 1, 64, 64)
    # float32, added up in another order
    assert torch.allclose(backbone(gray), backbone(gray.expand(-1, 3, -1, -1)), 1e-4, 1e-5)


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("size", SIZES)
def test_faces_are_averaged_down_to_the_size_whatever_their_colour(color, size):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)  # unlike, so that gray keeps three channels
    normaliser = Normaliser(Preprocessing(color, mean, std, size))
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    pixels = torch.from_numpy(frames).double() / 255
    if color == "gray":
        pixels = (pixels @ torch.tensor(LUMA).double())[..., None].expand(-1, -1, -1, 3)
    cells = cells_of(size).double()
    expected = cells @ ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    found = normaliser(torch.from_numpy(frames))
    assert torch.allclose(found.double(), expected @ cells.T, atol=1e-5)  # float32 rounding


def test_standardised_weights_see_standardised_pixels():
    preprocessing = Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    embedder = build(random_checkpoint(preprocessing=preprocessing))["fan_embedder"].module
    pixels = embedder.normaliser(torch.full((1, 4, 4, 3), 51, dtype=torch.uint8))
    expected = torch.tensor([(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225])
    assert torch.allclose(pixels[0, :, 2, 2], expected, atol=1e-6)  # float32 rounding


def test_every_class_of_the_attention_model_has_a_label(shipped):
    assert build(shipped)["fan_attention"].module.pred_fc2.out_features == len(shipped.labels)


@pytest.mark.parametrize("path", sorted(WEIGHTS.glob("fan*.safetensors")), ids=lambda p: p.stem)
def test_every_shipped_fan_says_what_it_is_and_is_small(path):
    checkpoint = read_checkpoint(path)
    assert checkpoint.labels == LABELS["fer2013"]
    assert {"fan_embedder", "fan_attention", "fan_classifier"} <= build(checkpoint).keys()
    assert "commit" in checkpoint.notes["made"]
    assert path.stat().st_size < 30e6


def test_checkpoint_of_more_classes_than_are_served_is_refused(tmp_path):
    eight = {"pred_fc1.": torch.zeros(8, 512), "pred_fc2.": torch.zeros(8, 1024)}
    state = dict(random_checkpoint().state)
    for name, weight in eight.items():
        state |= {f"{name}weight": weight, f"{name}bias": torch.zeros(8)}
    checkpoint = replace(random_checkpoint(), state=state, labels=tuple("abcdefgh"))
    with pytest.raises(ExportError, match=r"8 classes; fan serves 7"):
        export(checkpoint, None, ROOT / "model_repository", tmp_path)
