"""Training reads what people have, and tells in one line what it cannot read."""

import csv
import re

import numpy as np
import pytest
import torch
from conftest import ffmpeg
from made_up import FER2013, pictures
from PIL import Image

import training.attention
import training.loop
import training.options
from base.errors import ExportError
from networks.checkpoint import (
    LABELS,
)
from training.command import main
from training.data import folds_by_subject, read_dataset
from training.loop import choose_device


def test_npz_csv_and_folder_give_the_same_stills(tmp_path):
    images, labels = pictures(14)
    np.savez(tmp_path / "faces.npz", images=images, labels=labels.astype(np.uint8))
    with (tmp_path / "fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for image, label in zip(images, labels, strict=True):
            writer.writerow([label, " ".join(map(str, image.flat)), "Training"])
        writer.writerow([0, "0 " * 2304, "PrivateTest"])
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "folder" / FER2013[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    npz, table, folder = (
        read_dataset(tmp_path / name, FER2013) for name in ("faces.npz", "fer2013.csv", "folder")
    )
    assert torch.equal(npz.frames, table.frames)
    assert torch.equal(npz.labels, table.labels)
    assert npz.is_stills
    assert len(folder) == 14
    assert folder.frames.shape == (14, 1, 128, 128)  # without colour, one channel is enough
    assert folder.labels.bincount().tolist() == [2] * 7


def test_folder_of_sequences_gives_clips_in_the_order_of_their_names(tmp_path):
    for name, levels in (("S001_001", (10, 20, 30)), ("S002_001", (40, 50))):
        folder = tmp_path / "happy" / name
        folder.mkdir(parents=True)
        for i, level in enumerate(levels):
            Image.new("L", (64, 64), level).save(folder / f"{i:03}.png")
    data = read_dataset(tmp_path, FER2013)
    assert data.starts.tolist() == [0, 3, 5]
    assert data.frames[:, 0, 0, 0].tolist() == [10, 20, 30, 40, 50]
    assert data.subjects == ("S001", "S002")
    assert data.frame_labels().tolist() == [3] * 5


def test_folder_of_videos_gives_the_faces_in_them(tmp_path, sample):
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy" / "one.mp4").symlink_to(sample)
    data = read_dataset(tmp_path, FER2013)
    assert len(data) == 1
    assert data.frames.shape[1:] == (3, 128, 128)
    assert len(data.frames) > 10


def test_ckplus_as_published_gives_the_last_three_frames(tmp_path):
    from skimage.data import astronaut

    face = Image.fromarray(astronaut()).crop((100, 0, 400, 300))
    for subject, label in (("S005", 5), ("S006", None), ("S010", 2)):
        folder = tmp_path / "cohn-kanade-images" / subject / "001"
        folder.mkdir(parents=True)
        for i in range(5):
            face.save(folder / f"{subject}_001_{i:08}.png")
        if label:
            emotion = tmp_path / "Emotion" / subject / "001"
            emotion.mkdir(parents=True)
            (emotion / f"{subject}_001_00000004_emotion.txt").write_text(
                f"   {label}.0000000e+00\n"
            )
    data = read_dataset(tmp_path, LABELS["ckplus"])
    assert data.starts.tolist() == [0, 3, 6]
    assert [data.label_names[i] for i in data.labels] == ["happy", "contempt"]
    assert data.subjects == ("S005", "S010")
    with pytest.raises(ExportError, match="--labels ckplus"):
        read_dataset(tmp_path, FER2013)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "expected an .npz or .csv file, or a folder"),
        (lambda p: (p / "data").mkdir(), "no labelled faces found"),
        (lambda p: (p / "data" / "glad").mkdir(parents=True), "glad are named for no label"),
        (lambda p: np.savez(p / "data.npz", images=pictures(2)[0]), "no array `labels`"),
        (
            lambda p: np.savez(p / "data.npz", images=pictures(2)[0], labels=np.array([0, 7])),
            r"labels 0 to 7; there are names for 0 to 6",
        ),
        (lambda p: (p / "data.csv").write_text("a,b\n1,2\n"), "columns emotion, pixels and Usage"),
        (
            lambda p: (p / "data.csv").write_text("emotion,pixels,Usage\n0,1 2 3 4\n"),
            "row 1 is cut off",
        ),
        (
            lambda p: (p / "data.csv").write_text("emotion,pixels,Usage\n0,1 2 3 4,PublicTest\n"),
            "no rows of Usage Training; there are PublicTest",
        ),
        (lambda p: (p / "data.csv").write_text("a,b\n"), "there are none at all"),
        (lambda p: (p / "data.npz").write_text("a,b"), "data.npz: not an npz file"),
        (
            lambda p: np.savez(p / "data.npz", images=pictures(2)[0], labels=np.array([0.5, 1])),
            "expected whole numbers",
        ),
        (lambda p: damaged_picture(p / "data" / "happy"), "not a picture that can be read"),
    ],
)
def test_data_of_no_known_form_is_refused_with_words(tmp_path, make, words, capsys):
    make(tmp_path)
    path = next(iter(tmp_path.iterdir()), tmp_path / "data")
    assert main([str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "train: " in error
    assert re.search(words, error)


def damaged_picture(folder):
    folder.mkdir(parents=True)
    Image.fromarray(pictures(1)[0][0]).save(folder / "a.png")
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[: len(content) // 2])


def test_videos_without_a_face_are_counted(tmp_path, sample):
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy" / "a.mp4").symlink_to(sample)
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=160x120:r=5:d=1", tmp_path / "happy" / "b.mp4")
    data = read_dataset(tmp_path, FER2013)
    assert len(data) == 1
    assert data.left_out == ("happy/b.mp4",)


@pytest.mark.parametrize(
    "option",
    [
        ("--phases", "0x5"),
        ("--phases", "96x-1"),
        ("--phases", "96xnan"),
        ("--phases", "96"),
        ("--clip-epochs", "nan"),
        ("--clip-epochs", "0"),
        ("--learning-rate", "0"),
        ("--seed", "-1"),
        ("--seed", "99999999999999"),
        ("--size", "100"),
    ],
)
def test_values_that_mean_nothing_are_refused(option, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["faces.npz", *option])
    assert ended.value.code == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:99"])
def test_device_that_is_not_there_is_refused(name):
    with pytest.raises(ExportError, match=f"device {name}"):
        choose_device(name)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device"), 1, "No space left"),
    ],
)
def test_commands_end_in_one_plain_line(error, code, words, capsys):
    def command():
        raise error

    assert training.options.run_command("training", command, "stopped") == code
    assert words in capsys.readouterr().err


def test_nobody_is_in_two_folds():
    subjects = [f"S{i % 23:03}" for i in range(100)]
    folds = folds_by_subject(subjects, 10)
    assert sorted(np.concatenate(folds)) == list(range(100))
    people = [{subjects[i] for i in fold} for fold in folds]
    assert sum(map(len, people)) == 23
    # Ascending order, every tenth.
    assert people[0] == {"S000", "S010", "S020"}
    with pytest.raises(ExportError, match="3 subjects for 10 folds"):
        folds_by_subject(["a", "b", "c"], 10)
    with pytest.raises(ExportError, match="do not say whose faces"):
        folds_by_subject([None, "b", "c"], 2)
