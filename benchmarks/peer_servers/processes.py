"""Processes of .venv-peers: on loopback, paused while others are measured, and never left over."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from base import ROOT
from base.errors import FerError
from serving.embedded import is_ready, stop_with_parent
from serving.launch import LOOPBACK

ENVIRONMENT = ROOT / ".venv-peers"
LOGS = ROOT / "build" / "peers"
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 10
WORD_TIMEOUT_S = 120  # of a worker: a graph takes seconds to compile


class PeerError(FerError):
    """A way that cannot be measured; the message says why, and what to do."""


class PeerProcess:
    """A module of this package, running in .venv-peers for as long as the `with` block.

    Args:
        module: its name.
        arguments: of its command line.
        name: of its log, in build/peers/.
    """

    speaks = False  # whether its output is lines for us; it goes into the log otherwise

    def __init__(self, module: str, *arguments: object, name: str) -> None:
        self.command = ["-m", f"{__package__}.{module}", *map(str, arguments)]
        self.log = LOGS / f"{name}.log"

    def __enter__(self) -> Self:
        if not (ENVIRONMENT / ".installed").is_file():
            raise PeerError(f"{ENVIRONMENT.name} is not set up; `make bench-peers` does it")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(ENVIRONMENT / "bin" / "python"), *self.command],
                cwd=ROOT,
                env=quiet_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self.speaks else log,
                stderr=log,
                text=True,
                # A group of its own: Ctrl-C reaches us alone, and we stop all of it. Should we be
                # killed while it is paused, the kernel hangs up on a stopped group left behind.
                process_group=0,
                preexec_fn=stop_with_parent,
            )
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Return once it can work.

        Raises:
            PeerError: with its last words, where it ends or takes too long.
        """
        raise NotImplementedError

    def reason(self) -> str:
        """Find its last words."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        words = [line for line in lines if line] or ["no word of why"]
        return f"{self.command[1]} ended: {words[-1]} (log: {self.log})"

    def stop(self) -> None:
        """End the process and all that it started."""
        self.signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # the whole group is killed now
        finally:
            self.signal(signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    pipe.close()

    def signal(self, signum: signal.Signals) -> None:
        """Send the whole group a signal, if there still is one."""
        try:
            os.killpg(self.process.pid, signum)
        except ProcessLookupError:
            pass

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run inside the block, and pause it after: LitServe polls when it is idle."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)


class PeerServer(PeerProcess):
    """An HTTP server of this package, on a free port.

    Args:
        module: its name.
        path: the embedder's ONNX file.
        options: of its command line, after file and port.
    """

    def __init__(self, module: str, path: Path, *options: object) -> None:
        self.port = free_port()
        name = "-".join([module, *map(str, options)])
        super().__init__(module, path, self.port, *options, name=name)

    def wait_until_ready(self) -> None:
        """Return once it answers on /health."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready(f"http://{LOOPBACK}:{self.port}/health"):
            if self.process.poll() is not None:
                raise PeerError(self.reason())
            if time.monotonic() > deadline:
                raise PeerError(
                    f"{self.command[1]} was not ready after {START_TIMEOUT_S} s (log: {self.log})"
                )
            time.sleep(0.1)


class PeerWorker(PeerProcess):
    """A module of this package that prints `ready` once, and `done` for every line it is given."""

    speaks = True

    def wait_until_ready(self) -> None:
        """Return once it says so."""
        self.wait_for("ready")

    def ask(self, line: str) -> None:
        """Give it a line, and wait until it is done with it."""
        assert self.process.stdin is not None  # noqa: S101  it is a pipe
        with suppress(BrokenPipeError):  # then there is no word to wait for, either
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        self.wait_for("done")

    def wait_for(self, word: str) -> None:
        """Read its output up to a word on a line of its own.

        Raises:
            PeerError: where it ends before, or is ended here after WORD_TIMEOUT_S.
        """
        assert self.process.stdout is not None  # noqa: S101  it is a pipe
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            self.signal(signal.SIGKILL)

        timer = threading.Timer(WORD_TIMEOUT_S, give_up)
        timer.start()
        try:
            if any(line.strip() == word for line in self.process.stdout):
                return
        finally:
            timer.cancel()
        if overdue.is_set():
            raise PeerError(f"{self.command[1]} did not say '{word}' within {WORD_TIMEOUT_S} s")
        raise PeerError(self.reason())


def free_port() -> int:
    """Pick a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def quiet_environment() -> dict[str, str]:
    """Give this process's environment, with nothing to be sent anywhere."""
    return {
        **os.environ,
        "ORT_DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
