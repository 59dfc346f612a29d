"""Read labelled faces: single pictures and clips, in the forms people have them.

faces.npz                       `images` (N, H, W[, 3]) uint8, `labels` (N,)      stills
fer2013.csv                     the challenge's: emotion, pixels, Usage           stills
folder/<label>/*.png            aligned faces                                     stills
folder/<label>/<sequence>/*.png aligned faces of one sequence                     clips
folder/<label>/*.mp4            videos, AFEW's layout: faces are found            clips
cohn-kanade-images/S*/*/*.png   CK+ as published, Emotion/ beside it: likewise    clips

->  Dataset: a still is a clip of one frame
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from clients.errors import FerError
from clients.faces import FaceDetector, FaceFollower, align
from clients.video import read_frames
from export.errors import ExportError
from export.faces import PICTURES, read_npz
from training import TrainingError

SIDE = 128  # pixels to which pictures of files are brought; an npz's and a CSV's stay as they are
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
CKPLUS_PEAK_FRAMES = 3  # the last of a sequence, as the authors take them
CKPLUS_EMOTIONS = {1: "angry", 2: "contempt", 3: "disgust", 4: "fear", 5: "happy", 6: "sad"} | {
    7: "surprise"
}


@dataclass(frozen=True)
class Dataset:
    """Labelled clips of aligned faces; a still is a clip of one frame.

    Args:
        name: where they come from.
        frames: (M, 1 or 3, h, w) uint8, those of a clip together and in time order.
        starts: (N + 1,) int64; clip i is frames[starts[i] : starts[i + 1]].
        labels: (N,) int64, indices into `label_names`.
        label_names: the emotions.
        subjects: of each clip: whose face it is, as far as the data say.
    """

    name: str
    frames: Tensor
    starts: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    subjects: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_stills(self) -> bool:
        """Whether no clip has more than one frame."""
        return len(self.frames) == len(self)

    @property
    def neutral(self) -> int | None:
        """The label of neutral faces, if there is one."""
        return self.label_names.index("neutral") if "neutral" in self.label_names else None

    def clip(self, index: int) -> Tensor:
        """The frames of one clip, (K, C, h, w) uint8."""
        return self.frames[self.starts[index] : self.starts[index + 1]]

    def frame_labels(self) -> Tensor:
        """(M,) int64: every frame has its clip's label."""
        return self.labels.repeat_interleave(self.starts.diff())

    def choose(self, clips: Sequence[int] | np.ndarray) -> "Dataset":
        """Take some of the clips."""
        frames = [self.clip(int(i)) for i in clips]
        starts = torch.tensor([0, *np.cumsum([len(f) for f in frames])])
        index = torch.as_tensor(np.asarray(clips, dtype=np.int64))
        subjects = tuple(self.subjects[int(i)] for i in clips)
        taken = torch.cat(frames) if frames else self.frames[:0]
        return Dataset(self.name, taken, starts, self.labels[index], self.label_names, subjects)

    def to(self, device: torch.device) -> "Dataset":
        """Put frames and labels onto a device."""
        frames, labels = self.frames.to(device), self.labels.to(device)
        return Dataset(self.name, frames, self.starts, labels, self.label_names, self.subjects)


def read_dataset(path: Path, label_names: tuple[str, ...], usage: str = "Training") -> Dataset:
    """Read any of the forms above.

    Args:
        label_names: in the order of the logits; numbers in an npz or CSV index them.
        usage: rows of the challenge's CSV to take: Training, PublicTest or PrivateTest.

    Raises:
        ExportError: for data that is not there, not of these forms, or labelled otherwise.
    """
    if path.is_dir():
        clips = read_folder(path, label_names)
    elif path.suffix == ".csv" and path.is_file():
        clips = read_csv(path, usage)
    elif path.suffix == ".npz" and path.is_file():
        clips = read_arrays(path)
    else:
        raise TrainingError(
            f"{path}: expected an .npz or .csv file, or a folder with one folder a label (DATA=...)"
        )
    if not clips:
        raise TrainingError(f"{path}: no labelled faces found")
    frames = [clip.frames for clip in clips]
    labels = torch.tensor([clip.label for clip in clips])
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise TrainingError(
            f"{path}: labels {labels.min()} to {labels.max()}; there are names for 0 to "
            f"{len(label_names) - 1} ({', '.join(label_names)}); --labels (LABELS=...) gives others"
        )
    return Dataset(
        path.name,
        to_tensor(frames, path),
        torch.tensor([0, *np.cumsum([len(f) for f in frames])]),
        labels,
        label_names,
        tuple(clip.subject for clip in clips),
    )


@dataclass(frozen=True)
class LabelledClip:
    """One clip as it was read: (K, h, w[, 3]) uint8 frames, its label's index, its subject."""

    frames: np.ndarray
    label: int
    subject: str


def to_tensor(frames: Sequence[np.ndarray], path: Path) -> Tensor:
    """Join clips of one form into (M, 1 or 3, h, w)."""
    shapes = {f.shape[1:] for f in frames}
    if len(shapes) != 1:
        raise TrainingError(f"{path}: faces of several forms {sorted(shapes)}; expected one")
    joined = torch.from_numpy(np.concatenate(frames))
    return joined[:, None] if joined.ndim == 3 else joined.permute(0, 3, 1, 2).contiguous()


def read_arrays(path: Path) -> list[LabelledClip]:
    """Read stills from an npz's `images` and `labels`."""
    images, labels = read_npz(path)
    if labels is None:
        raise TrainingError(f"{path}: no array `labels`")
    return [
        LabelledClip(image[None], int(label), f"picture {i}")
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def read_csv(path: Path, usage: str) -> list[LabelledClip]:
    """Read the FER2013 challenge's own file: emotion 0..6, 48 x 48 gray pixels, usage."""
    clips = []
    csv.field_size_limit(1 << 20)
    try:
        with path.open(newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                if row.get("Usage", usage) != usage:
                    continue
                pixels = np.array(row["pixels"].split(), dtype=np.uint8)
                side = round(len(pixels) ** 0.5)
                label = int(row["emotion"])
                clips.append(LabelledClip(pixels.reshape(1, side, side), label, f"picture {i}"))
    except (OSError, KeyError, ValueError, OverflowError, AttributeError, csv.Error) as error:
        raise TrainingError(
            f"{path}: expected columns emotion, pixels and Usage as in the FER2013 challenge "
            f"({type(error).__name__}: {error})"
        ) from error
    return clips


def read_folder(folder: Path, label_names: tuple[str, ...]) -> list[LabelledClip]:
    """Read a folder a label, or CK+ as published."""
    published = sorted(folder.glob("cohn-kanade-images*/S*/*/"))
    if published:
        return read_ckplus(folder, published, label_names)
    clips = []
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    known = {name.lower(): i for i, name in enumerate(label_names)}
    if strangers := [path.name for path in inner if path.name.lower() not in known]:
        raise TrainingError(
            f"{folder}: folders {', '.join(strangers)} are named for no label "
            f"({', '.join(label_names)}); --labels (LABELS=...) gives others"
        )
    for path in inner:
        label = known[path.name.lower()]
        for item in tqdm(sorted(path.iterdir()), desc=path.name, leave=False):
            if frames := list(read_item(item)):
                clips.append(LabelledClip(np.stack(frames), label, subject_of(item)))
    return clips


def read_item(item: Path) -> Iterable[np.ndarray]:
    """Read one picture, one folder of a sequence's pictures, or one video."""
    if item.is_dir():
        return [read_picture(p) for p in list_pictures(item)]
    if item.suffix.lower() in PICTURES:
        return [read_picture(item)]
    if item.suffix.lower() in VIDEOS:
        return find_faces((f.pts_seconds, f.image) for f in read_frames(item))
    return []


def list_pictures(folder: Path) -> list[Path]:
    """A folder's pictures in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)


def subject_of(item: Path) -> str:
    """Whose face it is: a name's part before the first "_" or "-", as in S005_001."""
    return re.split(r"[_\-.]", item.name)[0]


def open_picture(path: Path) -> Image.Image:
    """Open a picture as RGB."""
    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise TrainingError(f"{path}: not a picture that can be read ({error})") from error


def read_picture(path: Path) -> np.ndarray:
    """Read an aligned face as (SIDE, SIDE, 3) uint8."""
    return np.asarray(open_picture(path).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def find_faces(frames: Iterable[tuple[float, np.ndarray]]) -> Iterable[np.ndarray]:
    """Find, follow and align the face of a video: (SIDE, SIDE, 3) uint8 for each frame with one.

    Args:
        frames: seconds and (H, W, 3) uint8 RGB.
    """
    detector, follower = FaceDetector(), FaceFollower()
    try:
        for seconds, image in frames:
            if face := follower.follow(detector.detect(image), seconds):
                aligned = Image.fromarray(align(image, face.landmarks))
                yield np.asarray(aligned.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    except FerError as error:
        raise TrainingError(str(error)) from error


def read_ckplus(
    folder: Path, sequences: Sequence[Path], label_names: tuple[str, ...]
) -> list[LabelledClip]:
    """Read CK+'s labelled sequences: the last three frames of each, faces found and aligned."""
    clips = []
    for sequence in tqdm(sequences, desc="CK+ sequences"):
        subject, number = sequence.parts[-2:]
        files = sorted(folder.glob(f"Emotion*/{subject}/{number}/*_emotion.txt"))
        if not files:
            continue  # CK+ labels 327 of its 593 sequences
        try:
            emotion = CKPLUS_EMOTIONS[int(float(files[0].read_text()))]
            label = label_names.index(emotion)
        except (ValueError, KeyError) as error:
            raise TrainingError(
                f"{files[0]}: expected a number from 1 to 7 whose emotion is one of "
                f"{', '.join(label_names)}; --labels ckplus (LABELS=ckplus) has all seven"
            ) from error
        pictures = list_pictures(sequence)[-CKPLUS_PEAK_FRAMES:]
        images = ((i / 30, np.asarray(open_picture(p))) for i, p in enumerate(pictures))
        if frames := list(find_faces(images)):
            clips.append(LabelledClip(np.stack(frames), label, subject))
    return clips


def folds_by_subject(subjects: Sequence[str], num_folds: int = 10) -> list[np.ndarray]:
    """Split clips so that nobody is in two folds: subjects in ascending order, every tenth.

    Returns:
        for each fold, the indices of the clips held out.

    Raises:
        ExportError: for fewer subjects than folds.

    Source: the protocol of Meng et al., ICIP 2019, section 3.1.
    """
    names = sorted(set(subjects))
    if len(names) < num_folds:
        raise ExportError(f"{len(names)} subjects for {num_folds} folds; expected as many at least")
    fold_of = {name: i % num_folds for i, name in enumerate(names)}
    folds = np.array([fold_of[s] for s in subjects])
    return [np.flatnonzero(folds == k) for k in range(num_folds)]
