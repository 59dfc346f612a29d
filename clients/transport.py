"""Talking to a Triton server: requests, again where it is unavailable, and errors in our words.

call -> Connection.retrying -> answer, or one of clients.errors
"""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clients.errors import ModelMissing, RequestRefused, ServerUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0)  # between tries while the server is unavailable


class Connection:
    """A server; safe to use from several threads.

    Args:
        url: host:port of the server's gRPC endpoint.
        timeout_s: how long one request may take.
    """

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.url = url
        self.timeout_s = timeout_s
        # A proxy that the environment names is for the web, not for this server.
        options = [
            ("grpc.max_send_message_length", 2**31 - 1),
            ("grpc.max_receive_message_length", 2**31 - 1),
            ("grpc.enable_http_proxy", 0),
        ]
        self.client = grpcclient.InferenceServerClient(url, channel_args=options)

    def close(self) -> None:
        """Hang up."""
        self.client.close()

    def lookup(self, call: Callable[..., T], model: str) -> T:
        """Ask something about a model, within the time that a request may take."""
        return self.retrying(call, model, client_timeout=self.timeout_s)

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


def to_input(name: str, array: np.ndarray) -> grpcclient.InferInput:
    """Copy an array into one input of a request."""
    datatypes = {"uint8": "UINT8", "float32": "FP32"}
    tensor = grpcclient.InferInput(name, list(array.shape), datatypes[str(array.dtype)])
    tensor.set_data_from_numpy(array)
    return tensor
