"""The colours of emotions and of people, alike in every picture, video and page."""

EMOTIONS = {
    "angry": "#d64550",
    "disgust": "#4f9d4a",
    "fear": "#9467bd",
    "happy": "#e8b923",
    "sad": "#3f78b5",
    "surprise": "#ef7d22",
    "neutral": "#9a9a9a",
    "contempt": "#8c613c",
}
OTHERS = ("#17a2a8", "#c45ab3", "#6b8e23", "#5b5bd6", "#a0522d", "#2e8b57")  # of other labels
PEOPLE = ("#ff7f0e", "#1f9fd6", "#3fae49", "#d64fb0", "#e0b400", "#8a6fe8", "#e2574c", "#2fb5a3")


def emotion_colors(labels: tuple[str, ...]) -> list[str]:
    """Give each label its colour, as #rrggbb."""
    others = iter(OTHERS * len(labels))
    return [EMOTIONS.get(label.lower()) or next(others) for label in labels]


def person_color(number: int) -> str:
    """Give a track its colour by its number, from 1, as #rrggbb; eight people differ."""
    return PEOPLE[(number - 1) % len(PEOPLE)]


def to_rgb(color: str) -> tuple[int, int, int]:
    """Turn #rrggbb into three numbers, 0..255."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue
