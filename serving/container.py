"""The official container: Triton with TensorRT, on a machine with docker and an NVIDIA GPU.

    platform + release  ->  docker run --gpus ... nvcr.io/nvidia/tritonserver:YY.MM-py3

Releases before 26.11 have known faults that this project does not serve with.
"""

import logging
import os
import re
import secrets
import shutil
import subprocess

from serving import ServingError
from serving.launch import Ports, restrict, triton_flags, wait_for_end
from serving.plans import check_plan, find_host
from serving.platforms import Platform

logger = logging.getLogger(__name__)

# NVIDIA's bulletins come weeks after the release that mends: 5875 wants 26.07 at least. 26.11 mends
# a use-after-free in the dynamic batcher, behind which every frame's model stands (release 2.75.0).
OLDEST_RELEASE = "26.11"
# What an operator may do and a client may not. model-config stays open: clients read the
# embedder's max_batch_size there, and perf_analyzer its tensors.
RESTRICTED = "model-repository,shared-memory,trace,logging"
MAX_HTTP_BYTES = 64 * 1024 * 1024


def image(release: str) -> str:
    """Name Triton's container of a release, such as "26.11"; refuse one known to be vulnerable."""
    if not re.fullmatch(r"\d\d\.\d\d", release) or release < OLDEST_RELEASE:
        raise ServingError(
            f"--release {release}; expected YY.MM, {OLDEST_RELEASE} or newer "
            "(older releases have known faults, vulnerabilities among them)"
        )
    return f"nvcr.io/nvidia/tritonserver:{release}-py3"


def docker_command(platform: Platform, ports: Ports, release: str, secret: str) -> list[str]:
    """Write the whole command line.

    Args:
        release: of the container, such as "26.11".
        secret: what the restricted APIs ask for.
    """
    return [
        *("docker", "run", "--rm", "--init", "--gpus", "device=0", "--shm-size=1g"),
        # The host's network, so that loopback is the host's and no proxy is in the way.
        *("--network", "host"),
        *("--user", "triton-server", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
        *("--read-only", "--tmpfs", "/tmp"),  # noqa: S108  the container's own
        *("-v", f"{platform.repository.resolve()}:/models:ro"),
        image(release),
        "tritonserver",
        *triton_flags(platform, "/models", ports),
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--allow-client-shm=false",
        f"--http-max-input-size={MAX_HTTP_BYTES}",
        *restrict(RESTRICTED, secret),
    ]


def missing_parts(platform: Platform) -> list[str]:
    """Name what this machine lacks to run a TensorRT platform in the container."""
    parts = []
    if shutil.which("docker") is None:
        parts.append("docker")
    elif not runs("docker", "info"):
        parts.append("a docker engine that answers `docker info`")
    if not runs("nvidia-smi"):
        parts.append("an NVIDIA GPU that answers `nvidia-smi`")
    if platform.missing:
        plans = ", ".join(map(str, platform.missing))
        parts.append(f"the plans {plans} (`videofer engines` builds them)")
    return parts


def runs(*command: str) -> bool:
    """Tell whether a command exists and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def check_plans(platform: Platform, release: str) -> None:
    """Refuse plans that do not fit this GPU, the container's TensorRT, or their configs."""
    host = find_host(image(release))
    for plan in platform.artefacts:
        check_plan(plan, host, platform.repository.parent, release, platform.name)


def run_container(platform: Platform, ports: Ports, release: str) -> int:
    """Serve in the foreground until the container ends, or stop it in good order on Ctrl-C.

    Returns:
        docker's exit code.

    Raises:
        ServingError: naming all that is missing.
    """
    missing = missing_parts(platform)
    if missing:
        raise ServingError(
            f"platform {platform.name} runs TensorRT in Triton's container; this machine lacks "
            f"{'; '.join(missing)}. `--platform openvino_int8` serves without them"
        )
    check_plans(platform, release)
    ports.check_free()
    secret = os.environ.get("TRITON_ADMIN_SECRET") or secrets.token_urlsafe(24)
    command = docker_command(platform, ports, release, secret)
    logger.info("%s", " ".join(command).replace(secret, "***"))
    # Its own session: Ctrl-C reaches the launcher alone, and docker passes SIGTERM on to Triton.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        wait_for_end(process)
        raise
