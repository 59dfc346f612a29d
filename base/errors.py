"""The root of every error that a user can act on.

FerError
├── clients.errors           the video, the server, or what they say to each other
├── ExportError              faces, graphs, plans
│   ├── CheckpointError      the weights' file is not what it should be
│   └── TrainingError        a training or a measurement that cannot go on
└── ServingError             a server that cannot start
"""


class FerError(Exception):
    """An error whose message says what was got, what was expected, and what to do."""


class ExportError(FerError):
    """An export that cannot go on."""


class CheckpointError(ExportError):
    """A checkpoint that is missing, unreadable, of another network, or incomplete."""
