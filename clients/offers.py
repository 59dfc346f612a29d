"""What a server offers: its networks, each with its labels, limits and tensors.

Connection -> read_contract -> Contract -> clients.triton
"""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

from base.text import clean
from clients.access import Access
from clients.errors import RequestRefused, ServerMismatch, ServerUnavailable
from clients.faces import FACE_SIZE
from clients.transport import Connection, to_input

logger = logging.getLogger(__name__)

MAX_CLASSES = 1000  # Triton gives as many as there are
OUTPUTS = ("logits", "probabilities", "weights", "frame_logits")
EXTRAS = {"self_weights": [-1], "region_weights": [-1, -1], "theta": [-1, 2, 3]}
EXPECTED_INPUTS = {"frames": ("UINT8", [-1, FACE_SIZE, FACE_SIZE, 3])}


def follows_contract(takes: dict[str, Any], gives: dict[str, Any]) -> bool:
    """Tell a network of the contract by the dtypes and dims of its tensors."""
    num_classes = (gives.get("logits", ("", []))[1] or [0])[-1]  # -1 where the dims do not say
    dims = ([num_classes], [num_classes], [-1], [-1, num_classes])
    expected = dict(zip(OUTPUTS, dims, strict=True))
    expected |= {name: shape for name, shape in EXTRAS.items() if name in gives}
    return (
        takes == EXPECTED_INPUTS
        and gives.items() >= {name: ("FP32", shape) for name, shape in expected.items()}.items()
        and num_classes != 0
    )


def to_words(tensors: Mapping[str, tuple[str, list[int]]]) -> str:
    """Write tensors for a person: "frames UINT8 [-1, 224, 224, 3]"."""
    return ", ".join(f"{name} {dtype} {dims}" for name, (dtype, dims) in tensors.items())


@dataclass(frozen=True)
class Step:
    """One of an ensemble's two models, and how its tensors are called there.

    Args:
        model: its name.
        inputs: the ensemble's names of what it takes, by its own.
        outputs: the ensemble's names of what it gives, by its own.
    """

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a server says of one of its networks.

    Args:
        model: the ensemble's name.
        versions: as the server names them.
        frames_step: the composing model that takes frames.
        clip_step: the composing model that pools what the first gives of a clip's frames.
        max_frames: most frames of one request to the ensemble or its first model.
        labels: emotions, in the order of the logits.
        extras: what the network gives beside what every network does, such as `self_weights`.
    """

    model: str
    versions: tuple[str, ...]
    frames_step: Step
    clip_step: Step
    max_frames: int
    labels: tuple[str, ...]
    extras: tuple[str, ...]

    def to_text(self) -> str:
        """Write one line for a person."""
        versions = f"version{'s' * (len(self.versions) > 1)} {', '.join(self.versions)}"
        labels = f"{len(self.labels)} classes: {', '.join(map(clean, self.labels))}"
        extras = f"; also gives {', '.join(self.extras)}" if self.extras else ""
        return f"{self.model}: {versions}; {labels}{extras}"

    def to_dict(self) -> dict[str, Any]:
        """Say the same for a program."""
        return {
            "model": self.model,
            "versions": list(self.versions),
            "num_classes": len(self.labels),
            "labels": list(self.labels),
            "extra_outputs": list(self.extras),
        }


def read_contract(server: Connection, model: str) -> Contract:
    """Learn what a network of the server takes and gives, and refuse another contract."""
    metadata = server.lookup(server.client.get_model_metadata, model)
    if not server.lookup(server.client.is_model_ready, model):
        raise ServerUnavailable(
            f"the server at {server.url} is up, but its model {model!r} is not ready: it is "
            "loading, or failed to; the server's log says which"
        )
    config = server.lookup(server.client.get_model_config, model).config
    steps = [
        Step(step.model_name, dict(step.input_map), dict(step.output_map))
        for step in config.ensemble_scheduling.step
    ]
    takes = {t.name: (t.datatype, list(t.shape)) for t in metadata.inputs}
    gives = {t.name: (t.datatype, list(t.shape)) for t in metadata.outputs}
    if not follows_contract(takes, gives) or len(steps) != 2:
        raise ServerMismatch(
            f"model {model!r} at {server.url} takes {to_words(takes)} and gives "
            f"{to_words(gives)}; expected an ensemble of two models that takes "
            f"{to_words(EXPECTED_INPUTS)} and gives FP32 logits [C], probabilities [C], "
            "weights [-1] and frame_logits [-1, C]"
        )
    frames_step, clip_step = steps
    return Contract(
        model=model,
        versions=tuple(metadata.versions),
        frames_step=frames_step,
        clip_step=clip_step,
        max_frames=read_max_frames(server, frames_step.model),
        labels=read_labels(server, model),
        extras=tuple(name for name in gives if name not in OUTPUTS),
    )


def read_max_frames(server: Connection, model: str) -> int:
    """Learn how many frames a model takes at once."""
    max_frames = server.lookup(server.client.get_model_config, model).config.max_batch_size
    if max_frames < 1:
        raise ServerMismatch(
            f"model {model!r} at {server.url} has max_batch_size {max_frames}; expected at "
            "least 1: its batch is made of frames"
        )
    return max_frames


def read_labels(server: Connection, model: str) -> tuple[str, ...]:
    """Ask a network for its labels, which only come with an answer: of one black frame."""
    face = np.zeros((1, FACE_SIZE, FACE_SIZE, 3), np.uint8)
    wanted = [grpcclient.InferRequestedOutput("probabilities", class_count=MAX_CLASSES)]
    answer = server.infer(model, [to_input("frames", face)], wanted).as_numpy("probabilities")
    classes = [entry.decode().split(":", 2) for entry in answer]  # value:index:label
    if any(len(entry) != 3 for entry in classes):
        raise ServerMismatch(
            f"model {model!r} at {server.url} has no labels; expected label_filename on "
            "its probabilities and a labels.txt beside its config.pbtxt"
        )
    return tuple(label for _, _, label in sorted(classes, key=lambda entry: int(entry[1])))


def read_contracts(server: Connection) -> list[Contract]:
    """Learn of every network that the server has ready; its other models are left out."""
    contracts = []
    for model in ready_models(server):
        try:
            contracts.append(read_contract(server, model))
        except (ServerMismatch, RequestRefused) as error:
            logger.info("no network: %s", error)
    return contracts


def ready_models(server: Connection) -> list[str]:
    """Name the models that the server has loaded.

    Its statistics say, which are open where its repository's index is not.
    """
    statistics = server.lookup(server.client.get_inference_statistics, "")
    return sorted({model.name for model in statistics.model_stats})


def list_networks(url: str, timeout_s: float, access: Access | None = None) -> list[Contract]:
    """Learn of every network that a server has ready, in the order of their names."""
    with closing(Connection(url, timeout_s, access)) as server:
        return read_contracts(server)
