"""What both ways of starting Triton share: ports, and the flags of its command line."""

import logging
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass

from serving import ServingError
from serving.platforms import DEFAULT, Platform

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
EXIT_TIMEOUT_S = 30  # after SIGTERM: how long requests in flight may take to finish


@dataclass(frozen=True)
class Ports:
    """Where Triton listens, on loopback."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def check_free(self) -> None:
        """Refuse ports in use, before a server half-starts on them."""
        if len({self.http, self.grpc, self.metrics}) < 3:
            raise ServingError(
                f"ports {self.http}, {self.grpc} and {self.metrics} are not three; "
                "--http-port, --grpc-port and --metrics-port choose them"
            )
        for name, port in vars(self).items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, port))
                except (OSError, OverflowError) as error:
                    raise ServingError(
                        f"port {port} cannot be used ({error}); choose another with --{name}-port"
                    ) from error


def free_ports() -> Ports:
    """Pick three ports that nothing listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return Ports(*(probe.getsockname()[1] for probe in probes))


def wait_for_end(process: subprocess.Popen[bytes]) -> None:
    """Ask a server to stop, and kill it if it has not when its time is up."""
    process.terminate()
    try:
        process.wait(EXIT_TIMEOUT_S + 10)
    except subprocess.TimeoutExpired:
        logger.warning("Triton did not stop within %d s; killing it", EXIT_TIMEOUT_S + 10)
        process.kill()


def restrict(apis: str, secret: str) -> list[str]:
    """Write the flags that keep some APIs, comma-separated, for who knows a secret.

    It goes into the header `admin` (HTTP) or `triton-grpc-protocol-admin` (gRPC).
    """
    return [
        f"--http-restricted-api={apis}:admin={secret}",
        f"--grpc-restricted-protocol={apis}:admin={secret}",
    ]


def triton_flags(platform: Platform, repository: str, ports: Ports) -> list[str]:
    """Write the flags that every release understands.

    Only the configs speak (no auto-completion), only what was exported is loaded, and every port
    is on loopback: Triton has no authentication of its own. In the mode in which models can be
    named, clients could load and unload others: `restrict` refuses them that.

    Args:
        repository: the repository's path as the server sees it.
    """
    flags = [
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in platform.models),
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--log-format=ISO8601",
        *(f"--{name}-address={LOOPBACK}" for name in vars(ports)),
        *(f"--{name}-port={port}" for name, port in vars(ports).items()),
    ]
    # An empty name would stop the server; without the flag it reads config.pbtxt.
    return flags + [f"--model-config-name={platform.name}"] * (platform.name != DEFAULT)
