"""Read labelled faces: single pictures and clips, in the forms people have them.

faces.npz                       `images` (N, H, W[, 3]) uint8, `labels` (N,)      stills
                                and perhaps `votes` (N, 10): see `training.votes`
fer2013.csv                     the challenge's: emotion, pixels, Usage           stills
                                and perhaps FER+'s fer2013new.csv beside it
folder/<label>/*.png            aligned faces                                     stills
folder/<label>/<sequence>/*.png aligned faces of one sequence                     clips
folder/<label>/*.mp4            videos, AFEW's layout: faces are found            clips
cohn-kanade-images/S*/*/*.png   CK+ as published, Emotion/ beside it: likewise    clips

->  Dataset: a still is a clip of one frame
"""

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from base.errors import FerError
from clients.faces import FaceDetector, FaceFollower, align
from clients.video import read_frames
from export.faces import PICTURES, open_picture, read_array, read_npz
from networks.preprocessing import LUMA
from training import TrainingError
from training.votes import FERPLUS_CSV, check_votes, distribution, one_hot, read_ferplus

logger = logging.getLogger(__name__)

MAX_REPEATS = 4.0  # of a picture in an epoch
VIDEO_FPS = 10.0  # frames of a video to look at, as clients/predict.py does by default
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
CKPLUS_PEAK_FRAMES = 3  # the last of a sequence, as the authors take them
CKPLUS_EMOTIONS = {1: "angry", 2: "contempt", 3: "disgust", 4: "fear", 5: "happy", 6: "sad"} | {
    7: "surprise"
}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled clips of aligned faces; a still is a clip of one frame.

    Args:
        name: where they come from.
        frames: (M, 1 or 3, h, w) uint8, those of a clip together and in time order.
        starts: (N + 1,) int64; clip i is frames[starts[i] : starts[i + 1]].
        labels: (N,) int64, indices into `label_names`.
        label_names: the emotions.
        subjects: of each clip: whose face it is; None where the data do not say.
        left_out: names of clips in which no face was found.
        votes: (N, 10) uint8 of stills, in `training.votes`' order; None where nobody voted.
        label_share: how much the label counts in what is learnt beside votes, 0..1.
    """

    name: str
    frames: Tensor
    starts: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    subjects: tuple[str | None, ...]
    left_out: tuple[str, ...] = ()
    votes: Tensor | None = None
    label_share: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_stills(self) -> bool:
        """Whether no clip has more than one frame."""
        return len(self.frames) == len(self)

    @property
    def is_gray(self) -> bool:
        """Whether the faces have no colour."""
        return self.frames.shape[1] == 1

    def gray(self) -> "Dataset":
        """The same without colour."""
        if self.is_gray:
            return self
        luma = torch.tensor(LUMA, device=self.frames.device).view(3, 1, 1)
        frames = (self.frames * luma).sum(1, keepdim=True).round().to(torch.uint8)
        return replace(self, frames=frames)

    @property
    def neutral(self) -> int | None:
        """The label of neutral faces, if there is one."""
        names = [name.lower() for name in self.label_names]
        return names.index("neutral") if "neutral" in names else None

    def clip(self, index: int) -> Tensor:
        """The frames of one clip, (K, C, h, w) uint8."""
        return self.frames[self.starts[index] : self.starts[index + 1]]

    def per_frame(self, values: Tensor) -> Tensor:
        """Give every frame its clip's value: (N, ...) -> (M, ...)."""
        return values.repeat_interleave(self.starts.diff().to(values.device), 0)

    def frame_labels(self) -> Tensor:
        """(M,) int64: every frame has its clip's label."""
        return self.per_frame(self.labels)

    def targets(self) -> tuple[Tensor, Tensor]:
        """What is learnt of each clip: votes, the label a part of them; else the label alone.

        Returns:
            targets (N, C) float32, each row a distribution; weights (N,) float32, 0..1.
        """
        told = one_hot(self.labels, len(self.label_names))
        if self.votes is None:
            return told, torch.ones_like(told[:, 0])
        voted, weights = distribution(self.votes, self.label_names)
        return torch.lerp(voted, told, self.label_share), weights

    def by_votes(self) -> "Dataset":
        """The same, without the labels' part in what is learnt."""
        return replace(self, label_share=0.0)

    def emotions(self) -> Tensor:
        """(N,) int64: the likeliest emotion of each clip, by votes where there are any."""
        return self.by_votes().targets()[0].argmax(1)

    def repeat_rare(self, common: float) -> "Dataset":
        """Show clips of rare emotions more often: an emotion of a share s, sqrt(common / s) times.

        Args:
            common: the share from which on an emotion is not rare.

        Source: repeat factor sampling, Gupta et al., "LVIS", CVPR 2019.
        """
        shares = torch.tensor(self.prior(), device=self.labels.device)
        often = (common / shares.clamp(min=1e-6)).sqrt().clamp(1, MAX_REPEATS)
        times = (self.targets()[0] @ often).round().long().cpu()
        if (times == 1).all():
            return self
        return self.choose(torch.arange(len(self)).repeat_interleave(times).numpy())

    def named(self) -> "Dataset":
        """Leave out what nobody names with one of the emotions: nothing can be learnt of it.

        Raises:
            TrainingError: where that is all.
        """
        if self.votes is None:
            return self
        known = self.targets()[1] > 0
        if not known.any():
            raise TrainingError(
                f"{self.name}: none of its {len(self)} pictures is named by two people with one of "
                f"{', '.join(self.label_names)}"
            )
        return self if known.all() else self.choose(known.nonzero()[:, 0].cpu().numpy())

    def prior(self) -> tuple[float, ...]:
        """The emotions' shares in all that is learnt, one a label; their sum is 1."""
        targets, weights = self.targets()
        sums = (weights[:, None] * targets).sum(0)
        return tuple((sums / sums.sum()).tolist())

    def choose(self, clips: Sequence[int] | np.ndarray) -> "Dataset":
        """Take some of the clips."""
        frames = [self.clip(int(i)) for i in clips]
        index = torch.as_tensor(np.asarray(clips, dtype=np.int64), device=self.labels.device)
        return replace(
            self,
            frames=torch.cat(frames) if frames else self.frames[:0],
            starts=starts_of(frames),
            labels=self.labels[index],
            subjects=tuple(self.subjects[int(i)] for i in clips),
            votes=None if self.votes is None else self.votes[index],
        )

    def sample(self, num_clips: int) -> "Dataset":
        """Take so many of the clips at random, always the same ones."""
        return self.choose(np.random.default_rng(0).permutation(len(self))[:num_clips])

    def renumber(self, label_names: tuple[str, ...]) -> "Dataset":
        """Number the same emotions in another order.

        Raises:
            ExportError: where they are not the same emotions.
        """
        if sorted(label_names) != sorted(self.label_names):
            raise TrainingError(
                f"{self.name} is labelled {', '.join(self.label_names)}; expected "
                f"{', '.join(label_names)}, in any order (--labels names the data's)"
            )
        order = torch.tensor([label_names.index(name) for name in self.label_names])
        labels = order.to(self.labels.device)[self.labels]
        return replace(self, labels=labels, label_names=label_names)

    def to(self, device: torch.device) -> "Dataset":
        """Put frames, labels and votes onto a device."""
        votes = None if self.votes is None else self.votes.to(device)
        return replace(
            self, frames=self.frames.to(device), labels=self.labels.to(device), votes=votes
        )


@dataclass(frozen=True, kw_only=True)
class LabelledClip:
    """One clip as it was read: (K, h, w[, 3]) uint8 frames, its label's index, whose face it is.

    Args:
        votes: (10,) uint8, where people voted.
    """

    name: str
    frames: Sequence[np.ndarray]
    label: int
    subject: str | None = None
    votes: np.ndarray | None = None


def read_dataset(
    path: Path,
    label_names: tuple[str, ...],
    usage: str = "Training",
    side: int = 128,
    *,
    with_votes: bool = True,
) -> Dataset:
    """Read any of the forms above.

    Args:
        label_names: the emotions that an npz's or a CSV's numbers, or folders' names, stand for.
        usage: rows of the challenge's CSV to take: Training, PublicTest or PrivateTest.
        side: pixels to which the faces of files are brought; an npz's and a CSV's stay as they are.
        with_votes: read votes where there are any; without, what is wrong with them is no matter.

    Raises:
        ExportError: for data that is not there, not of these forms, or labelled otherwise.
    """
    if path.is_dir():
        clips = list(read_folder(path, label_names, side))
    elif path.suffix == ".csv" and path.is_file():
        clips = read_csv(path, usage, with_votes)
    elif path.suffix == ".npz" and path.is_file():
        clips = read_arrays(path, with_votes)
    else:
        raise TrainingError(
            f"{path}: expected an .npz or .csv file, or a folder with one folder a label"
        )
    seen = [clip for clip in clips if len(clip.frames)]
    if not seen:
        raise TrainingError(f"{path}: no labelled faces found among {len(clips)} pictures or clips")
    left_out = tuple(clip.name for clip in clips if not len(clip.frames))
    if left_out:
        logger.warning(
            "%s: no face found in %d of %d: %s", path, len(left_out), len(clips), shorten(left_out)
        )
    labels = torch.tensor([clip.label for clip in seen])
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise TrainingError(
            f"{path}: labels {labels.min()} to {labels.max()}; there are names for 0 to "
            f"{len(label_names) - 1} ({', '.join(label_names)}); --labels gives others"
        )
    subjects = tuple(clip.subject for clip in seen)
    frames = to_tensor([clip.frames for clip in seen], path)
    starts = starts_of([clip.frames for clip in seen])
    votes = [clip.votes for clip in seen if clip.votes is not None]
    return Dataset(
        name=path.name,
        frames=frames,
        starts=starts,
        labels=labels,
        label_names=label_names,
        subjects=subjects,
        left_out=left_out,
        votes=torch.from_numpy(np.stack(votes)) if votes else None,
    )


def starts_of(clips: Sequence[Sequence[np.ndarray] | Tensor]) -> Tensor:
    """Where each clip begins among all frames, and where the last one ends."""
    return torch.tensor([0, *np.cumsum([len(clip) for clip in clips])], dtype=torch.int64)


def shorten(names: Sequence[str], most: int = 8) -> str:
    """List a few names and count the rest."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def to_tensor(clips: Sequence[Sequence[np.ndarray]], path: Path) -> Tensor:
    """Join clips of one form into (M, 1 or 3, h, w); without colours, one channel is kept."""
    frames = [frame for clip in clips for frame in clip]
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        found = shorten(sorted(map(str, shapes)))
        raise TrainingError(f"{path}: faces of the forms {found}; expected one, without a 0")
    joined = np.stack(frames)
    if joined.ndim == 4:
        if (joined == joined[..., :1]).all():
            joined = joined[..., 0]
        else:
            return torch.from_numpy(joined).permute(0, 3, 1, 2).contiguous()
    return torch.from_numpy(joined)[:, None]


def read_arrays(path: Path, with_votes: bool) -> list[LabelledClip]:
    """Read stills from an npz's `images` and `labels`, and `votes` if it has them."""
    images, labels = read_npz(path)
    if labels is None:
        raise TrainingError(f"{path}: no array `labels`")
    votes = read_array(path, "votes") if with_votes else None
    if votes is None:
        each: Iterable[np.ndarray | None] = repeat(None, len(images))
    else:
        each = check_votes(votes, len(images), path)
    return [
        LabelledClip(name=f"picture {i}", frames=[image], label=int(label), votes=voted)
        for i, (image, label, voted) in enumerate(zip(images, labels, each, strict=True))
    ]


def read_csv(path: Path, usage: str, with_votes: bool) -> list[LabelledClip]:
    """Read the FER2013 challenge's own file: emotion 0..6, 48 x 48 gray pixels, usage.

    Where FER+'s file lies beside it, its votes come too.
    """
    clips, usages, num_rows = [], set(), 0
    voted = path.with_name(FERPLUS_CSV)
    votes = read_ferplus(voted) if with_votes and voted.is_file() else None
    csv.field_size_limit(1 << 20)
    try:
        with path.open(newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                num_rows = i + 1
                if None in row.values():
                    raise ValueError(f"row {i + 1} is cut off")
                usages.add(row["Usage"])
                of_row = votes.of(i, row["Usage"], path) if votes else None
                if row["Usage"] == usage and (votes is None or of_row is not None):
                    pixels = np.array(row["pixels"].split(), dtype=np.uint8)
                    side = round(len(pixels) ** 0.5)
                    image = pixels.reshape(side, side)
                    label = int(row["emotion"])
                    clips.append(
                        LabelledClip(name=f"row {i + 1}", frames=[image], label=label, votes=of_row)
                    )
    except (OSError, KeyError, ValueError, OverflowError, csv.Error) as error:
        raise TrainingError(
            f"{path}: expected columns emotion, pixels and Usage as in the FER2013 challenge "
            f"({type(error).__name__}: {error})"
        ) from error
    if votes is not None:
        votes.check_length(num_rows, path)
    if not clips:
        found = shorten(sorted(usages)) or "none at all"
        raise TrainingError(f"{path}: no rows of Usage {usage}; there are {found}")
    return clips


def read_folder(folder: Path, label_names: tuple[str, ...], side: int) -> Iterator[LabelledClip]:
    """Read a folder a label, or CK+ as published."""
    if sequences := sorted(folder.glob("cohn-kanade-images*/S*/*/")):
        yield from read_ckplus(folder, sequences, label_names, side)
        return
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    known = {name.lower(): i for i, name in enumerate(label_names)}
    if strangers := [path.name for path in inner if path.name.lower() not in known]:
        raise TrainingError(
            f"{folder}: folders {shorten(strangers)} are named for no label "
            f"({', '.join(label_names)}); --labels gives others. CK+ is read from the "
            "folder that holds cohn-kanade-images/ and Emotion/"
        )
    finder = FaceFinder(side)
    for path in inner:
        for item in tqdm(sorted(path.iterdir()), desc=path.name, leave=False):
            frames = read_item(item, finder)
            if frames is not None:
                label = known[path.name.lower()]
                yield LabelledClip(
                    name=f"{path.name}/{item.name}",
                    frames=frames,
                    label=label,
                    subject=subject_of(item),
                )


def read_item(item: Path, finder: "FaceFinder") -> list[np.ndarray] | None:
    """Read one picture, one folder of a sequence's pictures, or one video; None for other files."""
    if item.is_dir():
        return [read_picture(p, finder.side) for p in list_pictures(item)]
    if item.suffix.lower() in PICTURES:
        return [read_picture(item, finder.side)]
    if item.suffix.lower() in VIDEOS:
        return finder.find((f.pts_seconds, f.image) for f in read_frames(item, VIDEO_FPS))
    if not item.name.startswith("."):
        logger.warning("%s: left out, neither a picture nor a video", item)
    return None


def list_pictures(folder: Path) -> list[Path]:
    """A folder's pictures in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)


def subject_of(item: Path) -> str | None:
    """Whose face it is: a name's part before the first "_" or "-", as in S005_001."""
    subject, separator, _ = item.stem.replace("-", "_").partition("_")
    return subject if separator else None


def read_picture(path: Path, side: int) -> np.ndarray:
    """Read an aligned face as (side, side, 3) uint8."""
    return resize(open_picture(path), side)


def resize(image: Image.Image, side: int) -> np.ndarray:
    """Bring a face to (side, side, 3) uint8."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


class FaceFinder:
    """Find, follow and align the face of videos, as the clients do."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.detector: FaceDetector | None = None

    def find(self, frames: Iterable[tuple[float, np.ndarray]]) -> list[np.ndarray]:
        """Give (side, side, 3) uint8 for each frame with the followed face.

        Args:
            frames: seconds and (H, W, 3) uint8 RGB.
        """
        follower = FaceFollower()
        faces = []
        try:
            self.detector = self.detector or FaceDetector()
            for seconds, image in frames:
                if face := follower.follow(self.detector.detect(image), seconds):
                    aligned = Image.fromarray(align(image, face.landmarks))
                    faces.append(resize(aligned, self.side))
        except FerError as error:
            raise TrainingError(str(error)) from error
        return faces


def read_ckplus(
    folder: Path, sequences: Sequence[Path], label_names: tuple[str, ...], side: int
) -> Iterator[LabelledClip]:
    """Read CK+'s labelled sequences: the last three frames of each, faces found and aligned."""
    finder = FaceFinder(side)
    if not any(folder.glob("Emotion*/S*/*/*_emotion.txt")):
        raise TrainingError(
            f"{folder}: no Emotion/S*/*/*_emotion.txt beside cohn-kanade-images/; CK+'s labels are "
            "a download of their own"
        )
    for sequence in tqdm(sequences, desc="CK+ sequences"):
        subject, number = sequence.parts[-2:]
        files = sorted(folder.glob(f"Emotion*/{subject}/{number}/*_emotion.txt"))
        if not files:
            continue  # CK+ labels 327 of its 593 sequences
        try:
            emotion = CKPLUS_EMOTIONS[int(float(files[0].read_text()))]
            label = label_names.index(emotion)
        except (ValueError, KeyError, OverflowError) as error:
            raise TrainingError(
                f"{files[0]}: expected a number from 1 to 7 whose emotion is one of "
                f"{', '.join(label_names)}; --labels ckplus has all seven"
            ) from error
        pictures = list_pictures(sequence)[-CKPLUS_PEAK_FRAMES:]
        images = ((i / 30, np.asarray(open_picture(p))) for i, p in enumerate(pictures))
        yield LabelledClip(
            name=f"{subject}/{number}", frames=finder.find(images), label=label, subject=subject
        )


def folds_by_subject(subjects: Sequence[str | None], num_folds: int = 10) -> list[np.ndarray]:
    """Split clips so that nobody is in two folds: subjects in ascending order, every tenth.

    Returns:
        for each fold, the indices of the clips held out.

    Raises:
        ExportError: for clips of nobody in particular, or fewer subjects than folds.

    Source: the protocol of Meng et al., ICIP 2019, section 3.1.
    """
    if None in subjects:
        raise TrainingError(
            "the data do not say whose faces they are; expected CK+ as published, or sequences "
            "named <subject>_..., such as S005_001"
        )
    names = sorted(set(map(str, subjects)))
    if len(names) < num_folds:
        raise TrainingError(f"{len(names)} subjects for {num_folds} folds; expected more")
    fold_of = {name: i % num_folds for i, name in enumerate(names)}
    folds = np.array([fold_of[str(s)] for s in subjects])
    return [np.flatnonzero(folds == k) for k in range(num_folds)]
