"""Foreign text for a terminal: file names, labels, what a server says."""

MOST = 300  # characters of a message that are worth reading


def clean(text: str, most: int = MOST) -> str:
    """Write text on one line, without what a terminal would obey, and cut it short.

    Source: the categories C (control, format, surrogates) and Z of Unicode, by str.isprintable.
    """
    line = " ".join(text.split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return shown if len(shown) <= most else f"{shown[:most]}…"
