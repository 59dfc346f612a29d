"""An answer as one page: the video, and under it a timeline a person, in step with the player.

    Analysis + source  ->  write_page  ->  HTML, one file that needs no network

page.html is the page without its data: style and script, which draw `to_dict`'s content. A small
video is embedded, a larger one is linked beside the page.
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from base.files import write_whole
from clients.analysis import Analysis, Track
from clients.reports.colors import emotion_colors, person_color
from clients.reports.crops import crop_faces, strongest
from clients.reports.tables import to_dict

TEMPLATE = Path(__file__).with_name("page.html")
EMBEDDED_MB = 16.0  # of a video, at most
NUM_FACES = 6  # of each person
FACE_SIDE = 96  # pixels, as shown
# What browsers play, by its suffix.
PLAYED = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/mp4"}


def write_page(analysis: Analysis, source: str | Path, target: Path) -> None:
    """Write the page; the source is read again for the faces that counted most."""
    content = {
        **to_dict(analysis),
        "colors": emotion_colors(analysis.labels),
        "people": [person_color(track.number) for track in analysis.tracks],
        "faces": [face_pictures(track, source) for track in analysis.tracks],
        "video": video_link(source, target.parent),
    }
    page = TEMPLATE.read_text(encoding="utf-8").replace("__CONTENT__", to_script(content))
    write_whole(target, page.encode())


def to_script(content: dict[str, Any]) -> str:
    """Write content so that no text in it can end the script it stands in."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def face_pictures(track: Track, source: str | Path) -> list[dict[str, Any]]:
    """Cut out the faces of a track that counted most, each with its time and share."""
    chosen = strongest(track, NUM_FACES)
    crops = crop_faces(source, [(track, i) for i in chosen])
    return [
        {
            "time_s": round(float(track.seconds[i]), 3),
            "strength": float(track.answer.strengths[i]),
            "picture": to_jpeg(crop),
        }
        for i, crop in zip(chosen, crops, strict=True)
    ]


def to_jpeg(crop: np.ndarray) -> str:
    """Write a crop (H, W, 3) uint8 as a data URL."""
    small = cv2.resize(crop, (FACE_SIDE, FACE_SIDE), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data_url(jpeg.tobytes(), "image/jpeg")


def data_url(content: bytes, kind: str) -> str:
    """Write bytes so that a page can hold them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def video_link(source: str | Path, folder: Path) -> str:
    """Say what the player plays: the video itself, a path to it; nothing where it cannot be."""
    path = Path(source)
    kind = PLAYED.get(path.suffix.lower())
    if kind is None or not path.is_file():
        return ""
    if path.stat().st_size <= EMBEDDED_MB * 1e6:
        return data_url(path.read_bytes(), kind)
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_uri()
