"""How the weights were made, and how good they are.

    pictures with labels  ->  data.py  ->  Dataset, of stills or clips
    stills  ->  stills.py  ->  embedder.pth.tar       stage one: the frame embedder
    clips   ->  clips.py   ->  fan.safetensors        stage two: FAN
    fan.safetensors + pictures  ->  evaluate.py  ->  report.md, confusion.png

`videofer train` runs the stages (run.py), `videofer evaluate` measures, and
`videofer crossval` does both by subject. Every stage can be killed at any moment and goes
on from its last saved step to the same weights.
"""

from base.errors import ExportError


class TrainingError(ExportError):
    """A training or evaluation that cannot go on; the message says what to do."""
