"""Results people would rather look at.

    Result + video  ->  plot      PNG: each frame's weight over time, the faces that counted most
                    ->  annotate  MP4: the video with box, emotion and each frame's weight
    Saliency        ->  draw_map  PNG: the face, and where covering it changes the answer

Where a network weighs all frames alike, each face's own probability stands in for its weight.

The video is read a second time, so that nothing of it is kept while it is analysed. A picture
appears under its name once it is whole.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from tqdm import tqdm

from clients.faces import FACE_SIZE, align, unalign
from clients.occlusion import Saliency
from clients.outlines import Outline, box_corners, outline, to_pixels
from clients.result import Result, Sighting
from clients.video import Frame, read_frames, read_info
from clients.writer import VideoWriter

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

logger = logging.getLogger(__name__)

NUM_FACES = 8  # shown above the plot
NO_FACE_COLOR = "0.93"  # of frames in which no face was found
SELF_COLOR = "tab:blue"  # the paper's colours: blue for self-attention,
WEIGHT_COLOR = "tab:orange"  # orange for the final weights
OUTLINE_COLOR = "tab:cyan"  # of where in a face the network looked
RGB_CYAN = (23, 190, 207)
RGB_ORANGE = (255, 127, 14)
RGB_GRAY = (128, 128, 128)
RGB_WHITE = (255, 255, 255)
MAX_BARS = 60  # more frames are drawn as lines


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name to write under, which becomes `path` only if the block succeeds."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
        logger.info("wrote %s", path)
    finally:
        partial.unlink(missing_ok=True)


def plot(result: Result, video: Path, target: Path) -> None:
    """Draw every frame's self-attention and final weight, as in FAN's figure 2, as a PNG."""
    strengths = result.strengths
    counted = sorted(np.argsort(-strengths)[:NUM_FACES])
    crops = crop_faces(video, [result.faces[i] for i in counted])
    figure = pyplot.figure(figsize=(11, 5.2), layout="constrained")
    rows = figure.add_gridspec(2, NUM_FACES, height_ratios=(1, 2.2))
    for column, (i, crop) in enumerate(zip(counted, crops, strict=True)):
        axes = figure.add_subplot(rows[0, column])
        axes.imshow(crop)
        for part in outline(result, i):
            trace(axes, part.corners, 2 * part.strength, part.strength)
        axes.set_title(f"{result.faces[i].pts_seconds:.2f} s\n{strengths[i]:.1%}", fontsize=9)
        axes.axis("off")
    draw_weights(figure.add_subplot(rows[1, :]), result)
    where = "; in cyan, where it looked" if outline(result, counted[0]) else ""
    figure.suptitle(f"{video.name}: {result.emotion} ({result.probabilities.max():.1%}){where}")
    with whole(target) as partial:
        figure.savefig(partial, format="png", dpi=110)
    pyplot.close(figure)


def trace(axes: Axes, corners: np.ndarray, linewidth: float, alpha: float = 1.0) -> None:
    """Trace a part of a crop by its corners (P, 2) in pixels."""
    axes.add_patch(
        Polygon(corners, fill=False, edgecolor=OUTLINE_COLOR, linewidth=linewidth, alpha=alpha)
    )


def draw_weights(axes: Axes, result: Result) -> None:
    """Draw the frames' shares over time; gray where there was no face, if bars are drawn."""
    times = np.array([face.pts_seconds for face in result.faces])
    name = "final weight" if result.has_attention else f"each face alone: {result.emotion}"
    series = [(name, result.strengths, WEIGHT_COLOR)]
    if result.self_weights is not None:
        shares = result.self_weights / result.self_weights.sum()
        series.insert(0, ("self-attention alone", shares, SELF_COLOR))
    if len(times) <= MAX_BARS:
        every = [sighting.pts_seconds for sighting in result.sightings]
        width = 0.8 * float(np.diff(every).min()) if len(every) > 1 else 0.1
        shade_missing(axes, result, width)
        for place, (name, shares, color) in enumerate(series):
            offset = (place - (len(series) - 1) / 2) * width / len(series)
            axes.bar(times + offset, shares, width / len(series), label=name, color=color)
    else:
        for name, shares, color in series:
            axes.plot(times, shares, label=name, color=color, linewidth=1)
    axes.set_xlabel("time in the video (s)")
    axes.set_ylabel("share of the answer" if result.has_attention else "probability")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)


def shade_missing(axes: Axes, result: Result, width: float) -> None:
    """Make the frames without a face gray, `width` seconds of each, from bottom to top."""
    missing = [sighting.pts_seconds for sighting in result.sightings if sighting.box is None]
    if missing:
        spans = [(time - width / 2, width) for time in missing]
        place = axes.get_xaxis_transform()
        axes.broken_barh(spans, (0, 1), transform=place, color=NO_FACE_COLOR, label="no face")


def crop_faces(video: Path, faces: list[Sighting]) -> list[np.ndarray]:
    """Cut the faces (224, 224, 3) out of the video again, in the order of their frames."""
    wanted = {face.index: face for face in faces}
    crops = []
    for frame in read_frames(video):
        face = wanted.get(frame.index)
        if face is not None and face.landmarks is not None:
            crops.append(align(frame.image, face.landmarks))
        if len(crops) == len(faces):
            break
    return crops


def annotate(result: Result, video: Path, target: Path, *, progress: bool = False) -> None:
    """Write the video, as far as it was looked at, with the answer drawn into every frame.

    H.264, 4:2:0, its index first: what every browser plays. Times and sound are the video's own.
    """
    info = read_info(video)
    # 4:2:0 wants even sides: one column or row goes where there is an odd one.
    size = (max(2, info.width // 2 * 2), max(2, info.height // 2 * 2))
    total = result.sightings[-1].index + 1 if result.stopped_early else info.num_frames
    with VideoWriter(target, fps=info.fps, size=size, sound_of=video) as writer:
        frames = annotated_frames(result, video)
        for frame in tqdm(
            frames, total=total, unit="frame", desc=target.name, disable=not progress
        ):
            writer.write(fit(frame.image, size), frame.pts_seconds)


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a frame of another size, as they come in mid stream, to the video's."""
    height, width = image.shape[:2]
    if (width // 2 * 2, height // 2 * 2) == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def annotated_frames(result: Result, video: Path) -> Iterator[Frame]:
    """Draw into every frame what the last looked-at frame, itself or before it, said."""
    numbers = {face.index: i for i, face in enumerate(result.faces)}
    upcoming = list(reversed(result.sightings))
    last = upcoming[-1]
    for frame in read_frames(video):
        while upcoming and upcoming[-1].index <= frame.index:
            last = upcoming.pop()
        if result.stopped_early and frame.index > last.index and not upcoming:
            return  # nobody looked at what comes after
        yield replace(frame, image=draw(frame, result, last, numbers.get(last.index)))


def draw(frame: Frame, result: Result, sighting: Sighting, number: int | None) -> np.ndarray:
    """Draw the box, the emotion and the frame's weight, and a bar of it against the greatest.

    Args:
        number: the sighting's among those with a face; None if it has none.
    """
    image = frame.image.copy()
    top = float(result.strengths.max())
    weight = 0.0 if number is None else float(result.strengths[number])
    height, width = image.shape[:2]
    unit = max(1, round(min(height, width) / 200))
    font = (cv2.FONT_HERSHEY_SIMPLEX, 0.55 * unit)
    bar = (height - 6 * unit, height - 2 * unit)
    length = round(weight / top * (width - 4 * unit))
    cv2.rectangle(image, (2 * unit, bar[0]), (2 * unit + length, bar[1]), RGB_ORANGE, -1)
    text = "no face"
    if number is not None and sighting.box is not None and sighting.landmarks is not None:
        text = f"weight {weight:.1%}" if result.has_attention else f"this frame {weight:.0%}"
        left, above, right, below = (round(float(value)) for value in sighting.box)
        color = RGB_ORANGE if weight >= 0.5 * top else RGB_GRAY
        cv2.rectangle(image, (left, above), (right, below), color, 2 * unit)
        draw_outlines(image, outline(result, number), sighting.landmarks, unit)
    lines = (f"{result.emotion} {result.probabilities.max():.0%}", text)
    for i, line in enumerate(lines):
        place = (4 * unit, (16 + 18 * i) * unit)
        cv2.putText(image, line, place, *font, (0, 0, 0), 3 * unit, cv2.LINE_AA)
        cv2.putText(image, line, place, *font, RGB_WHITE, unit, cv2.LINE_AA)
    return image


def draw_outlines(
    image: np.ndarray, outlines: list[Outline], landmarks: np.ndarray, unit: int
) -> None:
    """Draw into a frame where in its face the network looked, lines at most `unit` pixels wide."""
    for part in outlines:
        corners = np.round(unalign(part.corners, landmarks)).astype(np.int32)
        thickness = max(1, round(unit * part.strength))
        cv2.polylines(image, [corners], True, RGB_CYAN, thickness, cv2.LINE_AA)


def draw_map(saliency: Saliency, name: str, target: Path) -> None:
    """Draw a face and, over it, how far the emotion's probability falls where it is covered."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.6, 4.4), layout="constrained")
    left.imshow(saliency.face)
    right.imshow(cv2.cvtColor(saliency.face, cv2.COLOR_RGB2GRAY), cmap="gray")
    falls = np.maximum(saliency.heat(), 0)
    # At least one in a hundred at the top: noise of a face that nothing changes stays dark.
    top = max(0.01, float(falls.max()))
    heat = right.imshow(falls, cmap="inferno", alpha=0.6, vmin=0, vmax=top)
    for axes in (left, right):
        trace(axes, to_pixels(box_corners(np.array(saliency.box) / FACE_SIZE)), linewidth=1.5)
        axes.axis("off")
    points = matplotlib.ticker.FuncFormatter(lambda fall, _: f"{100 * fall:.3g}")
    label = f"mean fall of {saliency.emotion} where covered, points"
    figure.colorbar(heat, ax=right, shrink=0.85, label=label, format=points)
    answer = f"{saliency.emotion} ({saliency.probabilities.max():.1%})"
    figure.suptitle(f"{name}: {answer}, as {saliency.model} sees it")
    with whole(target) as partial:
        figure.savefig(partial, format="png", dpi=110)
    pyplot.close(figure)
