"""Talking to a Triton server: requests, again where it is unavailable, and errors in our words.

call -> Connection.retrying -> answer, or one of clients.errors
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clients.access import Access
from clients.errors import AccessRefused, ModelMissing, RequestRefused, ServerUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Between tries while the server is unavailable. Each is made up to half as long again, by chance:
# clients that lost one server together do not come back together.
RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0)
RETRY_SECONDS = 60.0  # after so long a call is not tried again
# A connection that freezes in the middle of a request is given up after 50 s, by gRPC's own
# account. No more than two pings without data: Triton hangs up on whoever sends more than that
# within five minutes.
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 2),
)
NOT_TRUSTED = "CERTIFICATE_VERIFY_FAILED"
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")  # what answers does not speak TLS


class Connection:
    """A server; safe to use from several threads.

    Args:
        url: host:port of the server's gRPC endpoint.
        timeout_s: how long one request may take.
        access: what a gateway in front of it wants to see; None where there is none.
    """

    def __init__(self, url: str, timeout_s: float = 60.0, access: Access | None = None) -> None:
        access = access or Access()
        access.check(url)
        self.url = url
        self.timeout_s = timeout_s
        self.access = access
        # A proxy that the environment names is for the web, not for this server.
        options = [
            ("grpc.max_send_message_length", 2**31 - 1),
            ("grpc.max_receive_message_length", 2**31 - 1),
            ("grpc.enable_http_proxy", 0),
            *KEEPALIVE,
        ]
        files = {"root_certificates": access.ca, "private_key": access.key}
        files["certificate_chain"] = access.cert
        self.client = grpcclient.InferenceServerClient(
            url,
            ssl=access.tls,
            channel_args=options,
            **{name: str(path) for name, path in files.items() if path is not None},
        )

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
            ServerUnavailable, ServerMismatch, RequestRefused, AccessRefused: in place of the
                client's own error.
        """
        start = time.monotonic()
        for tries, delay_s in enumerate((*RETRY_DELAYS_S, None), 1):
            try:
                return call(*args, headers=self.access.metadata, **kwargs)
            except InferenceServerException as error:
                elapsed_s = time.monotonic() - start
                helpless = elapsed_s > RETRY_SECONDS or not is_unavailable(error)
                if delay_s is None or helpless:
                    raise self.explain(error, tries, elapsed_s) from error
                pause_s = delay_s * random.uniform(1, 1.5)
                logger.info("%s; trying again in %.2f s", error.message(), pause_s)
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def explain(self, error: InferenceServerException, count: int, elapsed_s: float) -> Exception:
        """Turn the client's error into one of ours."""
        words = " ".join(error.message().split())
        tries = f"{count} {'try' if count == 1 else 'tries'} over {elapsed_s:.0f} s"
        if error.status() in ("StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED"):
            sent = "the token that was sent" if self.access.token else "a request without a token"
            return AccessRefused(
                f"the gateway at {self.url} refused {sent}: {words}; it is read from $TRITON_TOKEN "
                "or --token-file"
            )
        if NOT_TRUSTED in words:
            reason = words.partition(NOT_TRUSTED)[2].strip(": ").partition(":")[0][:200]
            return AccessRefused(
                f"the certificate of {self.url} is not trusted ({reason}); --ca names the file of "
                "who signed it"
            )
        if self.access.tls and any(text in words for text in NO_TLS):
            return AccessRefused(
                f"{self.url} does not speak TLS; leave --tls out, or name its port"
            )
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
        # These look alike, and trying again would not help.
        refusals = ("protocol is restricted", NOT_TRUSTED, *NO_TLS)
        return not any(refusal in text for refusal in refusals)
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
