"""Clients of the peers, and of Triton on the same machine; each is for one thread.

clip (N, 224, 224, 3) uint8  ->  features (N, 512) or logits (C,) float32
"""

import http.client
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import shared_memory

from benchmarks.peer_servers.processes import PeerError
from clients.triton import TritonClient
from serving.launch import LOOPBACK

TIMEOUT_S = 120


class HttpClient:
    """A client of a server in Python, with a connection that stays open.

    Args:
        port: of the server, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)

    def embed(self, clip: np.ndarray) -> np.ndarray:
        """Post a clip (N, 224, 224, 3) uint8; read its features (N, 512) float32."""
        headers = {"Content-Type": "application/octet-stream"}
        try:
            self.connection.request("POST", "/embed", clip.tobytes(), headers)
            response = self.connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(f"a server in Python did not answer ({error!r})") from error
        if response.status != http.HTTPStatus.OK:
            words = body[:200].decode(errors="replace")
            raise PeerError(f"a server in Python answered with {response.status}: {words}")
        return np.frombuffer(body, np.float32).reshape(len(clip), -1)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class SharedMemoryClient:
    """A client on Triton's machine: frames by system shared memory, answers by gRPC.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: to ask.
        output: that is wanted of it.
        shape: (N, 224, 224, 3), of every clip.
        index: tells this process's clients apart.
    """

    def __init__(self, url: str, model: str, output: str, shape: Sequence[int], index: int) -> None:
        self.model = model
        self.output = output
        self.num_bytes = int(np.prod(shape))
        self.region = f"peers_{os.getpid()}_{model}_{index}"
        self.tensor = grpcclient.InferInput("frames", list(shape), "UINT8")
        self.tensor.set_shared_memory(self.region, self.num_bytes)
        self.client = TritonClient(url).client

    def __enter__(self) -> Self:
        name, key = self.region, f"/{self.region}"
        self.memory = shared_memory.create_shared_memory_region(name, key, self.num_bytes)
        try:
            self.client.register_system_shared_memory(name, key, self.num_bytes)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.client.unregister_system_shared_memory(self.region)
        finally:
            self.close()

    def ask(self, clip: np.ndarray) -> np.ndarray:
        """Copy a clip into the memory, and ask for it."""
        shared_memory.set_shared_memory_region(self.memory, [clip])
        return self.client.infer(self.model, [self.tensor]).as_numpy(self.output)

    def close(self) -> None:
        """Give the memory back."""
        shared_memory.destroy_shared_memory_region(self.memory)
        self.client.close()
