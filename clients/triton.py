"""One network of a server: crops -> Triton -> the clip's answer.

    crops (N, 224, 224, 3) uint8  -embed->  features  -pool->  ClipAnswer     any N
                                  -ask--------------------->   ClipAnswer     N <= M, one request

M is the server's (max_batch_size of the model that takes frames). Both ways give the same answer:
`ask` goes to the network's ensemble, such as `fan`, the others to its two models.
"""

import logging
from functools import cached_property
from typing import Self

import numpy as np

from clients.access import Access
from clients.analysis import ClipAnswer
from clients.errors import ModelMissing, RequestRefused
from clients.offers import EXTRAS, OUTPUTS, Contract, Step, read_contract, read_contracts
from clients.transport import Connection, to_input

logger = logging.getLogger(__name__)

Tensors = dict[str, np.ndarray]


# Tensors are called as their clients know them; here a share is a share.
FIELDS = {"weights": "shares"}


class TritonClient(Connection):
    """One network of one server; safe to use from several threads.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: the ensemble to ask.
        timeout_s: how long one request may take.
        access: what a gateway in front of the server wants to see; None where there is none.

    Raises:
        ServerUnavailable, ServerMismatch, AccessRefused: on entering, or when first asked, where
            the server cannot serve clips.
    """

    def __init__(
        self, url: str, model: str = "fan", timeout_s: float = 60.0, access: Access | None = None
    ) -> None:
        super().__init__(url, timeout_s, access)
        self.model = model

    def __enter__(self) -> Self:
        try:
            _ = self.contract
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @cached_property
    def contract(self) -> Contract:
        """What the network takes and gives, as the server says when it is first asked.

        Raises:
            ServerMismatch: where it is not there: says what is instead.
        """
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

    def embed(self, crops: np.ndarray) -> Tensors:
        """Put crops (N, 224, 224, 3) uint8 through the first model, in requests that it takes.

        Returns:
            what it gives of each crop, (N, ...) float32, by the ensemble's names; of FAN
            {"features": (N, 512)}.
        """
        step, most = self.contract.frames_step, self.contract.max_frames
        parts = [
            self.run_step(step, {"frames": crops[i : i + most]}) for i in range(0, len(crops), most)
        ]
        features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if any(len(rows) != len(crops) for rows in features.values()):
            given = ", ".join(f"{name} {rows.shape}" for name, rows in features.items())
            raise RequestRefused(
                f"model {step.model!r} at {self.url} answered {len(crops)} crops with {given}; "
                "expected a row a crop"
            )
        return features

    def pool(self, features: Tensors, *, keep: bool = True) -> ClipAnswer:
        """Pool what `embed` gave of a whole clip's crops, or of any part, in time order.

        Args:
            keep: leave `features` as they are. If not, what is sent is taken out of them: an hour's
                are 74 MB, and their request holds copies of its own.
        """
        tensors = dict(features) if keep else features
        kept = {name: tensors[name] for name in (*OUTPUTS, *EXTRAS) if name in tensors}
        return self.read_answer({**kept, **self.run_step(self.contract.clip_step, tensors)})

    def ask(self, crops: np.ndarray) -> ClipAnswer:
        """Ask of a whole clip of up to `contract.max_frames` crops in one request."""
        result = self.infer(self.model, [to_input("frames", crops)])
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
        named = {FIELDS.get(name, name): array for name, array in answer.items()}
        return ClipAnswer(**named, model_version=version)


Client = TritonClient  # as the users of `import videofer` know it
