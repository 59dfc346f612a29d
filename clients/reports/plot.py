"""Pictures of an answer.

    Analysis + source  ->  plot      PNG: each person's emotions and shares over time, their faces
    Saliency           ->  draw_map  PNG: the face, and where covering it changes the answer

Where a network weighs all frames alike, each face's own probability stands in for its share.
"""

import io
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from base.files import write_whole
from base.text import clean
from clients.analysis import Analysis, Track
from clients.faces import FACE_SIZE
from clients.occlusion import Saliency
from clients.reports.colors import emotion_colors
from clients.reports.crops import crop_faces, strongest
from clients.reports.outlines import box_corners, outline, to_pixels

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

NUM_FACES = 8  # shown above each plot
MAX_PEOPLE = 6  # in one picture: those seen most
NO_FACE_COLOR = "0.93"  # of frames in which the face was not found
SELF_COLOR = "tab:blue"  # the paper's colours: blue for self-attention,
SHARE_COLOR = "tab:orange"  # orange for the final shares
OUTLINE_COLOR = "tab:cyan"  # of where in a face the network looked
MAX_BARS = 60  # more frames are drawn as lines


def save(figure: Figure, target: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    pyplot.close(figure)
    write_whole(target, picture.getvalue())


def plot(analysis: Analysis, source: str | Path, target: Path) -> None:
    """Draw of each person: faces that counted, emotions of the windows, the frames' shares.

    The shares are drawn as in FAN's figure 2.
    """
    seen_most = sorted(analysis.tracks, key=len, reverse=True)[:MAX_PEOPLE]
    tracks = sorted(seen_most, key=lambda track: track.number)
    wanted = [(track, i) for track in tracks for i in strongest(track, NUM_FACES)]
    crops = iter(crop_faces(source, wanted))
    figure = pyplot.figure(figsize=(11, 0.5 + 6 * len(tracks)), layout="constrained")
    parts = figure.subfigures(len(tracks), 1, squeeze=False)[:, 0]
    for part, track in zip(parts, tracks, strict=True):
        rows = part.add_gridspec(3, NUM_FACES, height_ratios=(1, 1, 1.6))
        for column, i in enumerate(strongest(track, NUM_FACES)):
            draw_face(part.add_subplot(rows[0, column]), track, i, next(crops))
        draw_emotions(part.add_subplot(rows[1, :]), track)
        draw_shares(part.add_subplot(rows[2, :]), track, analysis.seconds)
        where = "; in cyan, where it looked" if outline(track.answer, 0) else ""
        part.suptitle(
            f"person {track.number}: {clean(track.emotion)} ({track.probability:.1%}), "
            f"seen in {track.coverage:.0%} of the frames{where}".replace("$", r"\$")
        )
    left_out = len(analysis.tracks) - len(tracks)
    more = f" ({left_out} people more are not drawn)" if left_out else ""
    figure.suptitle(f"{analysis.source.name}{more}".replace("$", r"\$"))
    save(figure, target)


def draw_face(axes: Axes, track: Track, i: int, crop: np.ndarray) -> None:
    """Draw a face with its time and its share."""
    axes.imshow(crop)
    for part in outline(track.answer, i):
        trace(axes, part.corners, 2 * part.strength, part.strength)
    axes.set_title(f"{track.seconds[i]:.2f} s\n{track.answer.strengths[i]:.1%}", fontsize=9)
    axes.axis("off")


def trace(axes: Axes, corners: np.ndarray, linewidth: float, alpha: float = 1.0) -> None:
    """Trace a part of a crop by its corners (P, 2) in pixels."""
    axes.add_patch(
        Polygon(corners, fill=False, edgecolor=OUTLINE_COLOR, linewidth=linewidth, alpha=alpha)
    )


def draw_emotions(axes: Axes, track: Track) -> None:
    """Stack the emotions' probabilities, window by window; the whole's where there is none."""
    windows = track.windows
    rows = [w.probabilities for w in windows] or [track.answer.probabilities]
    middles = [(w.start + w.end) / 2 for w in windows] or [track.start]
    # From the first face to the last: at both ends the outermost window speaks.
    times = [track.start, *middles, track.end]
    stacked = np.stack([rows[0], *rows, rows[-1]], axis=1)
    colors = emotion_colors(track.labels)
    names = [clean(label) for label in track.labels]
    axes.stackplot(times, stacked, colors=colors, labels=names, linewidth=0)
    axes.set_ylim(0, 1)
    if track.end > track.start:
        axes.set_xlim(track.start, track.end)
    axes.set_ylabel("emotions")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9, reverse=True)


def draw_shares(axes: Axes, track: Track, looked: np.ndarray) -> None:
    """Draw the frames' shares over time; gray where the face was not found, if bars are drawn.

    Args:
        looked: (M,) float, seconds of all frames that were looked at.
    """
    answer, times = track.answer, track.seconds
    name = "final share" if answer.has_attention else f"each face alone: {track.emotion}"
    series = [(name, answer.strengths, SHARE_COLOR)]
    if answer.self_weights is not None:
        shares = answer.self_weights / answer.self_weights.sum()
        series.insert(0, ("self-attention alone", shares, SELF_COLOR))
    if len(times) <= MAX_BARS:
        every = looked[(looked >= track.start) & (looked <= track.end)]
        width = 0.8 * float(np.diff(every).min()) if len(every) > 1 else 0.1
        shade_missing(axes, np.setdiff1d(every, times), width)
        for place, (name, shares, color) in enumerate(series):
            offset = (place - (len(series) - 1) / 2) * width / len(series)
            axes.bar(times + offset, shares, width / len(series), label=name, color=color)
    else:
        for name, shares, color in series:
            axes.plot(times, shares, label=name, color=color, linewidth=1)
    if track.end > track.start:
        axes.set_xlim(track.start, track.end)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("share of the answer" if answer.has_attention else "probability")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)


def shade_missing(axes: Axes, missing: np.ndarray, width: float) -> None:
    """Make times without the face gray, `width` seconds of each, from bottom to top."""
    if len(missing):
        spans = [(time - width / 2, width) for time in missing]
        place = axes.get_xaxis_transform()
        axes.broken_barh(spans, (0, 1), transform=place, color=NO_FACE_COLOR, label="no face")


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
    figure.suptitle(f"{clean(name)}: {answer}, as {saliency.model} sees it".replace("$", r"\$"))
    save(figure, target)
