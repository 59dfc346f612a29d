"""Faces cut out of a source again, so that no pixel is kept while it is analysed.

Analysis + source  ->  crop_faces  ->  crops of the faces that a report shows
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clients.analysis import Track
from clients.faces import align
from clients.video import read_frames

Wanted = tuple[Track, int]  # a track and the place of one of its faces


def strongest(track: Track, most: int) -> list[int]:
    """Choose the faces of a track that counted most, in time order."""
    return sorted(int(i) for i in np.argsort(-track.answer.strengths)[:most])


def crop_faces(source: str | Path, wanted: Sequence[Wanted]) -> list[np.ndarray]:
    """Cut faces (224, 224, 3) uint8 out of a source, in the order in which they are wanted.

    A source that changed meanwhile gives black ones.
    """
    by_frame: dict[int, list[int]] = {}
    for place, (track, i) in enumerate(wanted):
        by_frame.setdefault(int(track.frames[i]), []).append(place)
    crops: dict[int, np.ndarray] = {}
    for frame in read_frames(source):
        for place in by_frame.pop(frame.index, ()):
            track, i = wanted[place]
            crops[place] = align(frame.image, track.landmarks[i])
        if not by_frame:
            break
    blank = np.zeros((224, 224, 3), np.uint8)
    return [crops.get(place, blank) for place in range(len(wanted))]
