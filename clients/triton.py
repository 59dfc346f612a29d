"""The last arrow: aligned faces -> Triton -> the clip's answer.

    faces (N, 224, 224, 3) uint8  ->  the network's ensemble, such as `fan`     N <= M, one request
                                  ->  its first model, ..., then its second     longer, in chunks

M is the server's (max_batch_size of the model that takes frames). Both ways give the same answer;
in the second, chunks run on the server while later frames are still being decoded.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clients.errors import ModelMissing, RequestRefused, ServerMismatch, ServerUnavailable
from clients.faces import FACE_SIZE

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tensors = dict[str, np.ndarray]

CHUNK_FRAMES = 32  # a long clip's frames travel in chunks of so many
CHUNKS_IN_FLIGHT = 3
RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0)  # between tries while the server is unavailable
MAX_CLASSES = 1000  # Triton gives as many as there are
EXPORTABLE = ("fan", "dan", "ran", "deep_emotion")  # what `videofer export` knows
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


@dataclass(frozen=True)
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
        labels = f"{len(self.labels)} classes: {', '.join(self.labels)}"
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


class TritonClient:
    """One network of one server; safe to use from several threads.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: the ensemble to ask.
        timeout_s: how long one request may take.

    Raises:
        ServerUnavailable, ServerMismatch: on entering, where the server cannot serve clips.
    """

    def __init__(self, url: str, model: str = "fan", timeout_s: float = 60.0) -> None:
        self.url = url
        self.model = model
        self.timeout_s = timeout_s
        # A proxy that the environment names is for the web, not for this server.
        options = [
            ("grpc.max_send_message_length", 2**31 - 1),
            ("grpc.max_receive_message_length", 2**31 - 1),
            ("grpc.enable_http_proxy", 0),
        ]
        self.client = grpcclient.InferenceServerClient(url, channel_args=options)

    def __enter__(self) -> Self:
        try:
            self.contract = self.enter_contract()
        except BaseException:
            self.client.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def enter_contract(self) -> Contract:
        """Read the contract of the network to ask; say what there is instead where it is not."""
        try:
            contract = self.read_contract(self.model)
        except ModelMissing as error:
            offered = ", ".join(contract.model for contract in self.read_contracts())
            options = f"--model {self.model} --checkpoint <file> --labels <its data set>"
            remedy = (
                f"; to add it where it is served, run `videofer export {options}`, and start "
                "`videofer serve` again"
            )
            raise ModelMissing(
                f"the server at {self.url} does not offer {self.model!r}; it offers "
                f"{offered or 'no network at all'}{remedy if self.model in EXPORTABLE else ''}"
            ) from error
        logger.info("%s serves %s", self.url, contract)
        return contract

    def read_contract(self, model: str) -> Contract:
        """Learn what a network of the server takes and gives, and refuse another contract."""
        metadata = self.lookup(self.client.get_model_metadata, model)
        if not self.lookup(self.client.is_model_ready, model):
            raise ServerUnavailable(
                f"the server at {self.url} is up, but its model {model!r} is not ready: it is "
                "loading, or failed to; the server's log says which"
            )
        config = self.lookup(self.client.get_model_config, model).config
        steps = [
            Step(step.model_name, dict(step.input_map), dict(step.output_map))
            for step in config.ensemble_scheduling.step
        ]
        takes = {t.name: (t.datatype, list(t.shape)) for t in metadata.inputs}
        gives = {t.name: (t.datatype, list(t.shape)) for t in metadata.outputs}
        if not follows_contract(takes, gives) or len(steps) != 2:
            raise ServerMismatch(
                f"model {model!r} at {self.url} takes {to_words(takes)} and gives "
                f"{to_words(gives)}; expected an ensemble of two models that takes "
                f"{to_words(EXPECTED_INPUTS)} and gives FP32 logits [C], probabilities [C], "
                "weights [-1] and frame_logits [-1, C]"
            )
        frames_step, clip_step = steps
        return Contract(
            model,
            tuple(metadata.versions),
            frames_step,
            clip_step,
            self.read_max_frames(frames_step.model),
            self.read_labels(model),
            tuple(name for name in gives if name not in OUTPUTS),
        )

    def read_max_frames(self, model: str) -> int:
        """Learn how many frames a model takes at once."""
        max_frames = self.lookup(self.client.get_model_config, model).config.max_batch_size
        if max_frames < 1:
            raise ServerMismatch(
                f"model {model!r} at {self.url} has max_batch_size {max_frames}; expected at "
                "least 1: its batch is made of frames"
            )
        return max_frames

    def read_labels(self, model: str) -> tuple[str, ...]:
        """Ask a network for its labels, which only come with an answer: of one black frame."""
        face = np.zeros((1, FACE_SIZE, FACE_SIZE, 3), np.uint8)
        wanted = [grpcclient.InferRequestedOutput("probabilities", class_count=MAX_CLASSES)]
        answer = self.infer(model, [to_input("frames", face)], wanted).as_numpy("probabilities")
        classes = [entry.decode().split(":", 2) for entry in answer]  # value:index:label
        if any(len(entry) != 3 for entry in classes):
            raise ServerMismatch(
                f"model {model!r} at {self.url} has no labels; expected label_filename on "
                "its probabilities and a labels.txt beside its config.pbtxt"
            )
        return tuple(label for _, _, label in sorted(classes, key=lambda entry: int(entry[1])))

    def read_contracts(self) -> list[Contract]:
        """Learn of every network that the server has ready; its other models are left out."""
        contracts = []
        for model in self.ready_models():
            try:
                contracts.append(self.read_contract(model))
            except (ServerMismatch, RequestRefused) as error:
                logger.info("no network: %s", error)
        return contracts

    def ready_models(self) -> list[str]:
        """Name the models that the server has loaded.

        Its statistics say, which are open where its repository's index is not.
        """
        statistics = self.lookup(self.client.get_inference_statistics, "")
        return sorted({model.name for model in statistics.model_stats})

    def lookup(self, call: Callable[..., T], model: str) -> T:
        """Ask something about a model, within the time that a request may take."""
        return self.retrying(call, model, client_timeout=self.timeout_s)

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

    def infer(
        self, model: str, inputs: list[grpcclient.InferInput], outputs: list[Any] | None = None
    ) -> grpcclient.InferResult:
        """Send tensors to one model, again while the server is unavailable."""
        return self.retrying(
            self.client.infer, model, inputs, outputs=outputs, client_timeout=self.timeout_s
        )

    def retrying(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call, and call again with growing pauses while the server is unavailable.

        Raises:
            ServerUnavailable, ServerMismatch, RequestRefused: in place of the client's own error.
        """
        start = time.monotonic()
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                return call(*args, **kwargs)
            except InferenceServerException as error:
                if delay_s is None or not is_unavailable(error):
                    raise self.explain(error, time.monotonic() - start) from error
                logger.info("%s; trying again in %.2f s", error.message(), delay_s)
                time.sleep(delay_s)
        raise AssertionError("the last try returns or raises")

    def explain(self, error: InferenceServerException, elapsed_s: float) -> Exception:
        """Turn the client's error into one of ours."""
        words = " ".join(error.message().split())
        tries = f"{len(RETRY_DELAYS_S) + 1} tries over {elapsed_s:.0f} s"
        if is_unavailable(error) and is_from_triton(error):
            return ServerUnavailable(
                f"the server at {self.url} is up but cannot serve now ({tries}): {words}"
            )
        if is_unavailable(error):
            return ServerUnavailable(
                f"no Triton answers at {self.url} ({tries}; {words}); start one with "
                "`videofer serve`, or name one with --url (its gRPC port, not HTTP's)"
            )
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            return ServerUnavailable(
                f"the server at {self.url} did not answer within {self.timeout_s:g} s; "
                "it may be busy: raise --timeout"
            )
        if error.status() == "StatusCode.NOT_FOUND":
            return ModelMissing(f"the server at {self.url} lacks a model: {words}")
        return RequestRefused(f"the server at {self.url} refused the request: {words}")


def list_networks(url: str, timeout_s: float) -> list[Contract]:
    """Learn of every network that a server has ready, in the order of their names."""
    client = TritonClient(url, timeout_s=timeout_s)
    with closing(client.client):
        return client.read_contracts()


def is_unavailable(error: InferenceServerException) -> bool:
    """Tell a server that is down, stopping or overloaded from one that says no."""
    text = error.message() or ""
    if error.status() == "StatusCode.UNAVAILABLE":
        return "protocol is restricted" not in text  # looks alike, but is a refusal
    return "has no available versions" in text  # while it stops or swaps models


def is_from_triton(error: InferenceServerException) -> bool:
    """Tell Triton's own words from those of a connection that nobody answers."""
    texts = ("has no available versions", "maximum queue size", "timeout expired", "not ready")
    return any(text in error.message() for text in texts)


class ClipStream:
    """Sends one clip's faces as they come, and asks for the answer at the end.

    Holds at most `max_frames` faces and a few chunks in flight, however long the clip.

        with ClipStream(client) as stream:
            for face in faces:
                stream.add(face)
            answer = stream.finish()
    """

    def __init__(self, client: TritonClient) -> None:
        self.client = client
        self.pending: list[np.ndarray] = []
        self.chunks: list[Future[Tensors]] = []
        self.pool = ThreadPoolExecutor(CHUNKS_IN_FLIGHT, thread_name_prefix="chunk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def add(self, face: np.ndarray) -> None:
        """Take the next face, (224, 224, 3) uint8; send a chunk when there is one to send."""
        for chunk in self.chunks[-CHUNKS_IN_FLIGHT:]:
            if chunk.done():
                chunk.result()  # one that failed ends the clip now, not when it is waited for
        max_frames = self.client.contract.max_frames
        limit = min(CHUNK_FRAMES, max_frames) if self.chunks else max_frames
        if len(self.pending) == limit:
            self.send_pending()
        self.pending.append(face)

    def send_pending(self) -> None:
        """Send what is pending, once few enough chunks are in flight."""
        if len(self.chunks) >= CHUNKS_IN_FLIGHT:
            self.chunks[-CHUNKS_IN_FLIGHT].result()
        faces = np.stack(self.pending)
        logger.info("chunk %d: %d faces", len(self.chunks) + 1, len(faces))
        self.pending.clear()
        self.chunks.append(self.pool.submit(self.client.embed, faces))

    def finish(self) -> ClipAnswer:
        """Return the answer to all the faces added, of which there is at least one."""
        if not self.chunks:
            logger.info("asking of %d faces in one request", len(self.pending))
            return self.client.ask(np.stack(self.pending))
        self.send_pending()
        logger.info("pooling %d chunks", len(self.chunks))
        chunks = [chunk.result() for chunk in self.chunks]
        return self.client.pool(join(chunks))


def to_input(name: str, array: np.ndarray) -> grpcclient.InferInput:
    """Copy an array into one input of a request."""
    datatypes = {"uint8": "UINT8", "float32": "FP32"}
    tensor = grpcclient.InferInput(name, list(array.shape), datatypes[str(array.dtype)])
    tensor.set_data_from_numpy(array)
    return tensor


def join(chunks: list[Tensors]) -> Tensors:
    """Join what was given of a clip's chunks, and empty the chunks: memory holds them once."""
    names = tuple(chunks[0])
    return {name: np.concatenate([chunk.pop(name) for chunk in chunks]) for name in names}
