"""The embedded server: a real Triton, from the wheel nvidia-pytriton, without GPU or container.

    .venv-server/  +  backend.py  ->  build/serving/<gRPC port>/  ->  tritonserver

Only the wheel's `tritonserver` binary is used, not PyTriton's API. Its environment stands apart
because it needs numpy < 2. It is Triton 24.10, which has known vulnerabilities: it listens on
loopback and nowhere else, for development, demos and tests.
"""

import ctypes
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from base import ROOT
from serving import ServingError
from serving.launch import LOOPBACK, Ports, free_ports, restrict, triton_flags, wait_for_end
from serving.platforms import Platform

logger = logging.getLogger(__name__)

ENVIRONMENT = ROOT / ".venv-server"
RUNS = ROOT / "build" / "serving"
START_TIMEOUT_S = 120
BACKEND = Path(__file__).with_name("backend.py")
BACKENDS = ("onnxruntime", "openvino")  # the names it goes by, and what it runs under each
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where Triton and its stubs meet
# A request's frames are megabytes, which glibc takes from the system anew for each of their copies
# and gives back: kept, eight clips in flight gave 11 % more frames/s
# (docs/measured/tuning-server.md).
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class EmbeddedServer:
    """A Triton on loopback that lives as long as the `with` block.

        with EmbeddedServer(platform) as server:
            clients/predict.py --url {server.grpc_url}

    Args:
        platform: what to serve; a CPU platform, with all its artefacts built.
        ports: default: any free ones.
    """

    def __init__(self, platform: Platform, ports: Ports | None = None) -> None:
        self.platform = platform
        self.ports = ports or free_ports()
        self.folder = RUNS / str(self.ports.grpc)
        self.log = self.folder / "triton.log"
        # Two servers on one machine must not share the Python backend's memory regions.
        self.shm_prefix = f"triton_{os.getpid()}_{self.ports.grpc}_"

    @property
    def grpc_url(self) -> str:
        """Where clients connect."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where health, statistics and HTTP inference are."""
        return f"http://{LOOPBACK}:{self.ports.http}"

    def __enter__(self) -> Self:
        self.ports.check_free()
        site_packages, library_path = find_environment()
        triton = site_packages / "pytriton" / "tritonserver"
        backends = self.assemble_backends(triton)
        environment = {
            **os.environ,
            **KEEP_MEMORY,
            "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": library_path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "ORT_DISABLE_TELEMETRY": "1",  # else ONNX Runtime keeps events under the user's home
        }
        command = [
            str(triton / "bin" / "tritonserver"),
            *triton_flags(self.platform, str(self.platform.repository), self.ports),
            *restrict("model-repository", secrets.token_urlsafe(24)),
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            # NVIDIA's monitor would be started for them, and keep a log under /var.
            "--allow-gpu-metrics=false",
            # A batch of 128 faces is 19 MB; growing by the default 1 MB would take 19 steps.
            "--backend-config=python,shm-growth-byte-size=33554432",
        ]
        logger.info("%s", " ".join(command))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own session: Ctrl-C reaches the launcher alone, which then stops the server
                # in good order, and every stub with it.
                start_new_session=True,
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

    def assemble_backends(self, triton: Path) -> Path:
        """Lay out the backends as this Triton wants them: copies, for it refuses symlinks."""
        shutil.rmtree(self.folder, ignore_errors=True)
        backends = self.folder / "backends"
        for name in BACKENDS:
            (backends / name).mkdir(parents=True)
            shutil.copy(BACKEND, backends / name / "model.py")
        shutil.copytree(triton / "backends" / "python", backends / "python")
        stubs = triton / "python_backend_stubs"
        stub = stubs / python_version(ENVIRONMENT) / "triton_python_backend_stub"
        if not stub.is_file():
            have = ", ".join(sorted(path.name for path in stubs.iterdir()))
            raise ServingError(
                f"Triton's Python backend has no stub for Python {python_version(ENVIRONMENT)}, "
                f"which made {ENVIRONMENT}; it has {have}: `make clean setup PYTHON=python3.11`"
            )
        shutil.copy(stub, backends / "python")
        return backends

    def wait_until_ready(self) -> None:
        """Return once every model is ready.

        Raises:
            ServingError: with the server's own words where it ends or takes too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready(f"{self.http_url}/v2/health/ready"):
            if self.process.poll() is not None:
                raise ServingError(f"Triton ended while starting: {self.reason()}")
            if time.monotonic() > deadline:
                raise ServingError(
                    f"Triton was not ready after {START_TIMEOUT_S} s; its log is {self.log}"
                )
            time.sleep(0.1)

    def reason(self) -> str:
        """Find the line of the log that says why the server ended."""
        text = self.log.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"failed to load|rror:|unable to", line)]
        return f"{(errors or lines or ['no word of why'])[-1].strip()} (log: {self.log})"

    def wait(self) -> None:
        """Return when the server ends."""
        self.process.wait()

    def stop(self) -> None:
        """End the server and all that it started, requests in flight first."""
        try:
            wait_for_end(self.process)
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """Leave neither process nor shared memory behind, even after a second Ctrl-C."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the usual case: nothing of it is left
        self.process.wait()
        shutil.rmtree(self.folder / "backends", ignore_errors=True)  # the log stays
        for region in SHARED_MEMORY.glob(f"{self.shm_prefix}*"):
            region.unlink(missing_ok=True)


def python_version(environment: Path) -> str:
    """Read the minor version, such as "3.11", of a virtual environment's Python."""
    libraries = sorted((environment / "lib").glob("python3.*"))
    if not libraries:
        raise ServingError(f"{environment} is not set up; `make setup` does it")
    return libraries[0].name.removeprefix("python")


def find_environment() -> tuple[Path, str]:
    """Find the server's packages, and where its binaries find their shared libraries.

    Returns:
        site-packages of the server's environment; LD_LIBRARY_PATH.
    """
    version = python_version(ENVIRONMENT)
    site_packages = ENVIRONMENT / "lib" / f"python{version}" / "site-packages"
    if not (site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file():
        raise ServingError(f"{ENVIRONMENT} has no nvidia-pytriton; `make setup` installs it")
    program = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    python = str(ENVIRONMENT / "bin" / "python")
    libdir = subprocess.run([python, "-c", program], capture_output=True, text=True).stdout.strip()
    library = f"libpython{version}.so.1.0"
    if not (Path(libdir) / library).is_file() and not is_loadable(library):
        raise ServingError(
            f"Triton's Python backend needs {library}, which this Python comes without; "
            f"install your system's libpython{version} package"
        )
    return site_packages, f"{site_packages / 'nvidia_pytriton.libs'}:{libdir}"


def has_package(name: str) -> bool:
    """Tell whether the server's environment has a package."""
    return any(ENVIRONMENT.glob(f"lib/python3.*/site-packages/{name}"))


def is_loadable(library: str) -> bool:
    """Ask the dynamic linker for a library of the system."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def is_ready(url: str) -> bool:
    """Ask a health endpoint, past any proxy that the environment names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop_with_parent() -> None:
    """Have the kernel end this process when its parent is killed without warning (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
