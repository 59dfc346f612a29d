"""Start a Triton server on model_repository/.

    platform  ->  embedded.py    the Triton of a PyPI wheel, on loopback: CPU platforms
              ->  container.py   the official container: TensorRT platforms

`python -m serving --platform cpu_fp32` chooses, starts and waits.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class ServingError(Exception):
    """A server that cannot start; the message says what is missing and what to do."""
