"""The last arrow: aligned faces -> Triton -> the clip's answer.

    faces (N, 224, 224, 3) uint8  ->  ensemble `fan`                       N <= M, one request
                                  ->  `fan_embedder`, ..., `fan_attention`   longer, in chunks

M is the server's (max_batch_size of the model that embeds frames). Both ways give the same
answer; in the second, chunks run on the server while later frames are still being decoded.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clients.errors import RequestRefused, ServerMismatch, ServerUnavailable
from clients.faces import FACE_SIZE

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK_FRAMES = 32  # a long clip's frames travel in chunks of so many
CHUNKS_IN_FLIGHT = 3
RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0)  # between tries while the server is unavailable
OUTPUTS = ("logits", "probabilities", "weights", "frame_logits")
EXPECTED_INPUTS = {"frames": ("UINT8", [-1, FACE_SIZE, FACE_SIZE, 3])}


def expected_outputs(num_classes: int) -> dict[str, tuple[str, list[int]]]:
    """Name what every network of the contract gives, with dtypes and dims."""
    dims = ([num_classes], [num_classes], [-1], [-1, num_classes])
    return {name: ("FP32", shape) for name, shape in zip(OUTPUTS, dims, strict=True)}


@dataclass(frozen=True)
class Contract:
    """What a server says of one of its networks.

    Args:
        model: the ensemble's name.
        frames_model: the composing model that takes frames.
        clip_model: the composing model that pools them.
        max_frames: most frames of one request to `model` or `frames_model`.
        labels: emotions, in the order of the logits.
        has_self_weights: whether the network answers with self-attention values too.
    """

    model: str
    frames_model: str
    clip_model: str
    max_frames: int
    labels: tuple[str, ...]
    has_self_weights: bool


@dataclass(frozen=True)
class ClipAnswer:
    """What the server says of a clip of N frames.

    Args:
        logits: (C,) float32.
        probabilities: (C,) float32, sums to 1.
        weights: (N,) float32, each frame's share, sums to 1.
        frame_logits: (N, C) float32.
        self_weights: (N,) float32 in (0, 1); None where the network has no self-attention.
        model_version: as the server names it.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray
    frame_logits: np.ndarray
    self_weights: np.ndarray | None
    model_version: str


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
            self.contract = self.read_contract()
        except BaseException:
            self.client.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def read_contract(self) -> Contract:
        """Learn what the server's network takes and gives, and refuse another contract."""
        metadata = self.lookup(self.client.get_model_metadata, self.model)
        if not self.lookup(self.client.is_model_ready, self.model):
            raise ServerUnavailable(
                f"the server at {self.url} is up, but its model {self.model!r} is not ready: it is "
                "loading, or failed to; the server's log says which"
            )
        config = self.lookup(self.client.get_model_config, self.model).config
        steps = [step.model_name for step in config.ensemble_scheduling.step]
        takes = {t.name: (t.datatype, list(t.shape)) for t in metadata.inputs}
        gives = {t.name: (t.datatype, list(t.shape)) for t in metadata.outputs}
        num_classes = (gives.get("logits", ("", []))[1] or [0])[-1]
        if (
            takes != EXPECTED_INPUTS
            or not gives.items() >= expected_outputs(num_classes).items()
            or num_classes < 1
            or len(steps) != 2
        ):
            raise ServerMismatch(
                f"model {self.model!r} at {self.url} takes {takes} and gives {gives}; expected an "
                f"ensemble of two models that takes {EXPECTED_INPUTS} and gives FP32 logits [C], "
                "probabilities [C], weights [-1] and frame_logits [-1, C]"
            )
        max_frames = self.lookup(self.client.get_model_config, steps[0]).config.max_batch_size
        if max_frames < 1:
            raise ServerMismatch(
                f"model {steps[0]!r} at {self.url} has max_batch_size {max_frames}; expected at "
                "least 1: its batch is made of frames"
            )
        labels = self.read_labels(num_classes)
        frames_model, clip_model = steps
        contract = Contract(
            self.model, frames_model, clip_model, max_frames, labels, "self_weights" in gives
        )
        logger.info("%s serves %s", self.url, contract)
        return contract

    def lookup(self, call: Callable[..., T], model: str) -> T:
        """Ask something about a model, within the time that a request may take."""
        return self.retrying(call, model, client_timeout=self.timeout_s)

    def read_labels(self, num_classes: int) -> tuple[str, ...]:
        """Ask the network for its labels, which only come with an answer: of one black frame."""
        face = np.zeros((1, FACE_SIZE, FACE_SIZE, 3), np.uint8)
        wanted = [grpcclient.InferRequestedOutput("probabilities", class_count=num_classes)]
        answer = self.infer(self.model, "frames", face, wanted).as_numpy("probabilities")
        classes = [entry.decode().split(":", 2) for entry in answer]  # value:index:label
        if any(len(entry) != 3 for entry in classes):
            raise ServerMismatch(
                f"model {self.model!r} at {self.url} has no labels; expected label_filename on "
                "its probabilities and a labels.txt beside its config.pbtxt"
            )
        return tuple(label for _, _, label in sorted(classes, key=lambda entry: int(entry[1])))

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Embed up to `contract.max_frames` faces (N, 224, 224, 3) uint8 into (N, D) float32."""
        answer = self.infer(self.contract.frames_model, "frames", faces)
        return answer.as_numpy(answer.get_response().outputs[0].name)

    def pool(self, features: np.ndarray) -> ClipAnswer:
        """Pool a whole clip's features, as `embed` gave them, in time order."""
        return self.read_answer(self.infer(self.contract.clip_model, "features", features))

    def ask(self, faces: np.ndarray) -> ClipAnswer:
        """Ask of a whole clip of up to `contract.max_frames` faces in one request."""
        return self.read_answer(self.infer(self.model, "frames", faces))

    def read_answer(self, result: grpcclient.InferResult) -> ClipAnswer:
        """Take the answer's tensors, and refuse one that is not a number."""
        arrays = {name: result.as_numpy(name) for name in OUTPUTS}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise RequestRefused(
                f"model {self.model!r} at {self.url} answered with values that are not numbers"
            )
        self_weights = result.as_numpy("self_weights") if self.contract.has_self_weights else None
        version = result.get_response().model_version
        return ClipAnswer(**arrays, self_weights=self_weights, model_version=version)

    def infer(
        self, model: str, name: str, array: np.ndarray, outputs: list[Any] | None = None
    ) -> grpcclient.InferResult:
        """Send one tensor to one model, again while the server is unavailable."""
        datatype = {"uint8": "UINT8", "float32": "FP32"}[str(array.dtype)]
        tensor = grpcclient.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return self.retrying(
            self.client.infer, model, [tensor], outputs=outputs, client_timeout=self.timeout_s
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
                "`make serve PLATFORM=cpu`, or name one with --url (its gRPC port, "
                "not HTTP's)"
            )
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            return ServerUnavailable(
                f"the server at {self.url} did not answer within {self.timeout_s:g} s; "
                "it may be busy: raise --timeout"
            )
        if error.status() == "StatusCode.NOT_FOUND":
            return ServerMismatch(f"the server at {self.url} lacks a model: {words}")
        return RequestRefused(f"the server at {self.url} refused the request: {words}")


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
        self.chunks: list[Future[np.ndarray]] = []
        self.pool = ThreadPoolExecutor(CHUNKS_IN_FLIGHT, thread_name_prefix="chunk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def add(self, face: np.ndarray) -> None:
        """Take the next face, (224, 224, 3) uint8; send a chunk when there is one to send."""
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
        return self.client.pool(np.concatenate([chunk.result() for chunk in self.chunks]))
