"""An Analysis for programs: one JSON object, two tables.

    Analysis  ->  to_dict, to_json         all of it, `schema` 1
              ->  face_rows, window_rows   tidy: a row a frame and face, a row a window
              ->  write_csv                NAME.csv and NAME.windows.csv

docs/results.md describes every key and column.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from base.files import write_whole
from clients.analysis import Analysis, Track

SCHEMA = 1
LANDMARKS = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")  # as seen
DIGITS = 6  # of what is written: pixels, probabilities, seconds


def to_dict(analysis: Analysis) -> dict[str, Any]:
    """Say all of an Analysis in lists, numbers and text."""
    return {
        "schema": SCHEMA,
        "source": asdict(analysis.source),
        "asked": asdict(analysis.options),
        "network": {
            "model": analysis.model,
            "model_version": analysis.model_version,
            "url": analysis.url,
            "labels": list(analysis.labels),
        },
        "created": analysis.created,
        "frames": {
            "looked_at": len(analysis.frames),
            "dropped": analysis.dropped,
            "damaged_packets": analysis.damaged,
            "stopped_early": analysis.stopped_early,
        },
        "tracks": [track_dict(track) for track in analysis.tracks],
    }


def track_dict(track: Track) -> dict[str, Any]:
    """Say all of a Track."""
    answer = track.answer
    return {
        "track": track.number,
        "start_s": rounded(track.start),
        "end_s": rounded(track.end),
        "coverage": rounded(track.coverage),
        "emotion": track.emotion,
        "probabilities": named(track.labels, answer.probabilities),
        "segments": [
            {
                "start_s": rounded(s.start),
                "end_s": rounded(s.end),
                "emotion": s.emotion,
                "probability": rounded(s.probability),
            }
            for s in track.segments
        ],
        "windows": [
            {
                "start_s": rounded(w.start),
                "end_s": rounded(w.end),
                "faces": w.last - w.first,
                "coverage": rounded(w.coverage),
                "probabilities": named(track.labels, w.probabilities),
            }
            for w in track.windows
        ],
        "faces": {
            "frame": track.frames.tolist(),
            "time_s": rounded(track.seconds),
            "box": rounded(track.boxes),
            "landmarks": rounded(track.landmarks),
            "score": rounded(track.scores),
            "share": answer.shares.tolist(),
            "probabilities": rounded(answer.frame_probabilities),
            "self_weight": as_list(answer.self_weights),
            "region_weights": as_list(answer.region_weights),
            "theta": as_list(answer.theta),
        },
    }


def to_json(analysis: Analysis) -> str:
    """Write an Analysis as one JSON object on one line."""
    return json.dumps(to_dict(analysis), ensure_ascii=False)


def named(labels: tuple[str, ...], probabilities: np.ndarray) -> dict[str, float]:
    """Name probabilities (C,) by their labels."""
    return dict(zip(labels, rounded(probabilities), strict=True))


def rounded(value: Any) -> Any:
    """Turn a number or an array into plain numbers of DIGITS decimals."""
    return np.round(np.asarray(value, np.float64), DIGITS).tolist()


def as_list(array: np.ndarray | None) -> list | None:
    """Turn an array into lists for JSON; None stays None."""
    return None if array is None else array.tolist()


def face_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Give a row for each frame and face, as a table of tidy data has it."""
    for track in analysis.tracks:
        probabilities = rounded(track.answer.frame_probabilities)
        for i in range(len(track)):
            left, top, right, bottom = rounded(track.boxes[i])
            points = {
                f"{name}_{axis}": value
                for name, point in zip(LANDMARKS, rounded(track.landmarks[i]), strict=True)
                for axis, value in zip("xy", point, strict=True)
            }
            yield {
                "video": analysis.source.name,
                "track": track.number,
                "frame": int(track.frames[i]),
                "time_s": rounded(track.seconds[i]),
                "left": left,
                "top": top,
                "right": right,
                "bottom": bottom,
                **points,
                "score": rounded(track.scores[i]),
                "share": float(track.answer.shares[i]),
                **dict(zip(track.labels, probabilities[i], strict=True)),
            }


def window_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Give a row for each window of each track."""
    for track in analysis.tracks:
        for window in track.windows:
            yield {
                "video": analysis.source.name,
                "track": track.number,
                "start_s": rounded(window.start),
                "end_s": rounded(window.end),
                "faces": window.last - window.first,
                "coverage": rounded(window.coverage),
                **named(track.labels, window.probabilities),
            }


def to_csv(rows: Iterator[dict[str, Any]]) -> str:
    """Write rows as CSV with a header; without any, nothing."""
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return text.getvalue()


def windows_path(path: Path) -> Path:
    """Name the table of windows beside that of faces."""
    return path.with_name(f"{path.stem}.windows.csv")


def write_csv(analysis: Analysis, path: Path) -> None:
    """Write the table of faces, and beside it that of windows."""
    write_whole(path, to_csv(face_rows(analysis)).encode())
    write_whole(windows_path(path), to_csv(window_rows(analysis)).encode())
