"""An Analysis for a terminal.

Analysis  ->  to_text: who, when, which emotion
"""

import numpy as np

from base.text import clean
from clients.analysis import Analysis, Segment, Track

BAR_WIDTH = 30  # characters of a probability of 1
NUM_TOP_FRAMES = 3


def to_text(analysis: Analysis) -> str:
    """Write who is there, when, and with which emotion: one block a person."""
    blocks = [track_text(track, analysis) for track in analysis.tracks]
    return "\n".join(["\n\n".join(blocks), "", frames_text(analysis)])


def track_text(track: Track, analysis: Analysis) -> str:
    """Write of one person: the emotion of the whole, the others, segments, frames that counted."""
    labels = [clean(label) for label in track.labels]
    width = max(map(len, labels))
    lines = []
    if len(analysis.tracks) > 1:
        lines.append(f"person {track.number}, {track.start:.1f}-{track.end:.1f} s")
    lines.append(
        f"{clean(track.emotion)}  {track.probability:.1%}"
        f"  seen in {track.coverage:.0%} of the frames"
    )
    if len(analysis.tracks) == 1:
        lines += ["", *bars(track, labels, width)]
    if track.segments and track.end > track.start:  # a picture has no time
        lines += ["", f"  {segments_text(track.segments)}"]
    return "\n".join([*lines, f"  {top_text(track)}"])


def bars(track: Track, labels: list[str], width: int) -> list[str]:
    """Draw each emotion's probability, the likeliest first."""
    probabilities = track.answer.probabilities
    return [
        f"  {labels[i]:<{width}}  {'█' * round(float(probabilities[i]) * BAR_WIDTH):<{BAR_WIDTH}}"
        f"  {probabilities[i]:6.1%}"
        for i in np.argsort(-probabilities)
    ]


def segments_text(segments: tuple[Segment, ...]) -> str:
    """Write what came after what: "0.0-6.2 s sad, 6.2-19.7 s happy"."""
    return ", ".join(f"{s.start:.1f}-{s.end:.1f} s {clean(s.emotion)}" for s in segments)


def top_text(track: Track) -> str:
    """Name the frames that counted most."""
    strengths = track.answer.strengths
    top = np.argsort(-strengths)[:NUM_TOP_FRAMES]
    named = ", ".join(f"{track.seconds[i]:.2f} s ({strengths[i]:.1%})" for i in top)
    said = "that counted most" if track.answer.has_attention else f"most {clean(track.emotion)}"
    return f"frames {said}: {named}"


def frames_text(analysis: Analysis) -> str:
    """Count the frames."""
    with_face = len({int(i) for track in analysis.tracks for i in track.frames})
    looked = len(analysis.frames)
    text = f"frames: {looked} looked at, {with_face} with a face, {looked - with_face} without"
    if analysis.dropped:
        text += f", {analysis.dropped} dropped"
    return text
