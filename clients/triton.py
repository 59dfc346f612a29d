"""One network of a server: aligned faces -> Triton -> the clip's answer.

    faces (N, 224, 224, 3) uint8  ->  the network's ensemble, such as `fan`     N <= M, one request
                                  ->  its first model, ..., then its second     longer, in chunks

M is the server's (max_batch_size of the model that takes frames). Both ways give the same answer.
"""

import logging
from dataclasses import dataclass
from typing import Self

import numpy as np

from clients.errors import ModelMissing, RequestRefused
from clients.offers import EXTRAS, OUTPUTS, Contract, Step, read_contract, read_contracts
from clients.transport import Connection, to_input

logger = logging.getLogger(__name__)

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class ClipAnswer:
    """What the server says of a clip of N frames. None stands for what the network has not.

    Args:
        logits: (C,) float32.
        probabilities: (C,) float32, sums to 1.
        weights: (N,) float32, each frame's share, sums to 1.
        frame_logits: (N, C) float32.
        model_version: as the server names it.
        self_weights: (N,) float32 in (0, 1), of self-attention.
        region_weights: (N, R) float32, each region's share of a face, sums to 1 over regions.
        theta: (N, 2, 3) float32, the affine window of a spatial transformer on each face.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray
    frame_logits: np.ndarray
    model_version: str
    self_weights: np.ndarray | None = None
    region_weights: np.ndarray | None = None
    theta: np.ndarray | None = None


class TritonClient(Connection):
    """One network of one server; safe to use from several threads.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: the ensemble to ask.
        timeout_s: how long one request may take.

    Raises:
        ServerUnavailable, ServerMismatch: on entering, where the server cannot serve clips.
    """

    def __init__(self, url: str, model: str = "fan", timeout_s: float = 60.0) -> None:
        super().__init__(url, timeout_s)
        self.model = model

    def __enter__(self) -> Self:
        try:
            self.contract = self.enter_contract()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def enter_contract(self) -> Contract:
        """Read the contract of the network to ask; say what there is instead where it is not."""
        try:
            contract = read_contract(self, self.model)
        except ModelMissing as error:
            offered = ", ".join(contract.model for contract in read_contracts(self))
            raise ModelMissing(
                f"the server at {self.url} does not offer {self.model!r}; it offers "
                f"{offered or 'no network at all'} (`videofer export`, where it is served, adds "
                "others)"
            ) from error
        logger.info("%s serves %s", self.url, contract)
        return contract

    def embed(self, faces: np.ndarray) -> Tensors:
        """Put up to `contract.max_frames` faces (N, 224, 224, 3) uint8 through the first model.

        Returns:
            what it gives of each face, (N, ...) float32, by the ensemble's names.
        """
        return self.run_step(self.contract.frames_step, {"frames": faces})

    def pool(self, tensors: Tensors) -> ClipAnswer:
        """Pool what `embed` gave of a whole clip's faces, in time order.

        What is sent is taken out of `tensors`: an hour's features are 74 MB, and their request
        holds copies of its own.
        """
        kept = {name: tensors[name] for name in (*OUTPUTS, *EXTRAS) if name in tensors}
        return self.read_answer({**kept, **self.run_step(self.contract.clip_step, tensors)})

    def ask(self, faces: np.ndarray) -> ClipAnswer:
        """Ask of a whole clip of up to `contract.max_frames` faces in one request."""
        result = self.infer(self.model, [to_input("frames", faces)])
        names = (*OUTPUTS, *self.contract.extras)
        return self.read_answer({name: result.as_numpy(name) for name in names})

    def run_step(self, step: Step, tensors: Tensors) -> Tensors:
        """Run one of the ensemble's models; tensors go by the ensemble's names, in and out.

        What is sent is taken out of `tensors`.
        """
        inputs = [to_input(mine, tensors[shared]) for mine, shared in step.inputs.items()]
        for shared in step.inputs.values():
            tensors.pop(shared, None)
        result = self.infer(step.model, inputs)
        return {shared: result.as_numpy(mine) for mine, shared in step.outputs.items()}

    def read_answer(self, tensors: Tensors) -> ClipAnswer:
        """Take the answer's tensors, and refuse one that is not a number."""
        answer = {name: tensors[name] for name in (*OUTPUTS, *EXTRAS) if name in tensors}
        if not all(np.isfinite(array).all() for array in answer.values()):
            raise RequestRefused(
                f"model {self.model!r} at {self.url} answered with values that are not numbers"
            )
        version = max(self.contract.versions, key=int)  # the one that Triton asks by default
        return ClipAnswer(**answer, model_version=version)
