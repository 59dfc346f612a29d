"""Start a Triton server on model_repository/.

    platform  ->  embedded.py    the Triton of a PyPI wheel, on loopback: CPU platforms
              ->  container.py   the official container: TensorRT platforms

`videofer serve` chooses, starts and waits.
"""

from base.errors import FerError


class ServingError(FerError):
    """A server that cannot start; the message says what is missing and what to do."""
