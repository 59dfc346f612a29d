"""What can go wrong on the way from a checkpoint to a served model, and who can mend it.

FerError
└── ExportError            a user can act on the message
    └── CheckpointError    the weights' file is not what it should be
"""

from base.errors import FerError


class ExportError(FerError):
    """An export that cannot go on; the message says what was got, what was expected, what to do."""


class CheckpointError(ExportError):
    """A checkpoint that is missing, unreadable, of another network, or incomplete."""
