"""Read aligned faces to calibrate or compare with: not part of serving.

    faces.npz    `images` uint8 (N, H, W) gray or (N, H, W, 3) RGB; `labels` (N,) if there are any
    folder/      pictures; those of folder/<label>/ are of that label
                 ->  Faces (N, 224, 224, 3) uint8

Comes before `export.calibrate` and `export.parity`. The faces must be framed as the checkpoint's
own were; nothing here detects or aligns.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
from PIL import Image

from base.errors import ExportError
from networks.preprocessing import FRAME_SIZE

NUM_LFW_FACES = 100  # the first half of scikit-image's lfw_subset; the rest are no faces
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass(frozen=True)
class Faces:
    """Aligned faces.

    Args:
        images: (N, 224, 224, 3) uint8, RGB.
        labels: (N,) int, indices into the checkpoint's labels; None where nobody says.
    """

    images: np.ndarray
    labels: np.ndarray | None


def read_faces(
    path: Path, label_names: Sequence[str], num_faces: int | None = None, seed: int = 0
) -> Faces:
    """Read faces, all of them or a random choice.

    Args:
        label_names: the checkpoint's labels; an npz's `labels` index them, folders are named so.
        num_faces: choose so many, the same ones for the same seed.

    Raises:
        ExportError: for data that is not there or not of these forms.
    """
    pictures: Sequence[Path] | np.ndarray
    if path.is_dir():
        pictures, labels = list_pictures(path, label_names)
    elif path.suffix == ".npz" and path.is_file():
        pictures, labels = read_npz(path)
    else:
        raise ExportError(f"{path}: expected an .npz file or a folder of pictures")
    if not len(pictures):
        raise ExportError(f"{path}: no pictures ({', '.join(sorted(PICTURES))})")
    chosen = np.arange(len(pictures))
    if num_faces is not None:
        chosen = np.random.default_rng(seed).permutation(chosen)[:num_faces]
    images = np.stack([to_face(pictures[i]) for i in chosen])
    return Faces(images, None if labels is None else labels[chosen])


def read_array(path: Path, name: str) -> np.ndarray | None:
    """Read one array of an npz file; None where it is not there.

    Raises:
        ExportError: for a file or an array that cannot be read.
    """
    # Anything else numpy takes for a pickle, and proposes to trust it.
    if path.is_file() and not is_zipfile(path):
        raise ExportError(f"{path}: not an npz file; expected one with an array `{name}`")
    try:
        with np.load(path) as archive:
            return archive.get(name)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ExportError(f"{path}: no array `{name}` can be read ({error})") from error


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read `images` and, where there are any, `labels`."""
    images, labels = read_array(path, "images"), read_array(path, "labels")
    if images is None:
        raise ExportError(f"{path}: no array `images` can be read (it has none)")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise ExportError(
            f"{path}: `images` is {images.dtype} {images.shape}; expected uint8 (N, H, W) or "
            "(N, H, W, 3)"
        )
    if labels is None:
        return images, None
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ExportError(
            f"{path}: `labels` is {labels.dtype} {labels.shape}; expected whole numbers "
            f"({len(images)},), one for each of `images`"
        )
    return images, labels.astype(int)


def list_pictures(folder: Path, label_names: Sequence[str]) -> tuple[list[Path], np.ndarray | None]:
    """List a folder's pictures, with their labels if its folders are named for those."""
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    names = [path.parent.name for path in pictures]
    known = set(names) & set(label_names)
    if not known:
        return pictures, None
    if strangers := set(names) - known:
        raise ExportError(
            f"{folder}: folders {', '.join(sorted(strangers))} are named for no label of the "
            f"checkpoint ({', '.join(label_names)})"
        )
    return pictures, np.array([label_names.index(name) for name in names], dtype=int)


def open_picture(path: Path) -> Image.Image:
    """Open a picture as RGB."""
    try:
        return Image.open(path).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ExportError(f"{path}: not a picture that can be read ({error})") from error


def small_faces(num: int = NUM_LFW_FACES) -> np.ndarray:
    """Give the first of the hundred faces that scikit-image carries: (num, 224, 224, 3) uint8.

    They are of 25 pixels, and gray: enough to hold precisions and engines against each other.
    """
    from skimage.data import lfw_subset  # an extra of the client's

    pictures = (lfw_subset()[:num] * 255).astype(np.uint8)
    return np.stack([to_face(picture) for picture in pictures])


def to_face(picture: np.ndarray | Path) -> np.ndarray:
    """Bring one picture, an array or a file's, to (224, 224, 3) uint8 RGB."""
    if isinstance(picture, Path):
        image = open_picture(picture)
    else:
        image = Image.fromarray(picture).convert("RGB")
    return np.asarray(image.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BILINEAR))
