"""The root of every error that a user can act on.

FerError
├── clients.errors     the video, the server, or what they say to each other
├── export.errors      weights, faces, graphs, plans
│   └── TrainingError  a training or a measurement that cannot go on
└── ServingError       a server that cannot start
"""


class FerError(Exception):
    """An error whose message says what was got, what was expected, and what to do."""
