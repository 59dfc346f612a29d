"""Which platform a machine serves best, where nobody named one.

plans that fit this GPU, in the container   ->  trt_fp16
else INT8 of every network that is exported ->  openvino_int8
else                                        ->  ort_fp32
"""

from pathlib import Path

from serving import ServingError
from serving.container import check_plans, missing_parts
from serving.embedded import has_package
from serving.platforms import DEFAULT, Platform, read_platform

INT8 = "openvino_int8"
FALLBACK = "ort_fp32"


def choose_platform(repository: Path, release: str) -> tuple[Platform, str]:
    """Choose the best platform that this machine can serve.

    Args:
        release: of Triton's container.

    Returns:
        it, and why it and no better one, in words.
    """
    on_gpu = read_platform(repository, DEFAULT)
    hindrance = why_not_on_gpu(on_gpu, release)
    if not hindrance:
        return on_gpu, "its plans fit this GPU"
    in_int8 = read_platform(repository, INT8)
    lacking = why_not_in_int8(in_int8)
    if not lacking:
        return in_int8, f"the fastest without TensorRT ({hindrance})"
    return read_platform(repository, FALLBACK), f"{hindrance}; {lacking}"


def why_not_on_gpu(platform: Platform, release: str) -> str:
    """Say what keeps TensorRT's plans from being served here; "" for nothing."""
    missing = missing_parts(platform)
    if missing:
        return f"{platform.name} lacks {missing[0]}"
    try:
        check_plans(platform, release)
    except ServingError as error:
        return str(error)
    return ""


def why_not_in_int8(platform: Platform) -> str:
    """Say what keeps every exported network from being served in INT8; "" for nothing."""
    if not has_package("openvino"):
        return f"{platform.name} lacks OpenVINO, which `make setup` installs"
    lacking = [*platform.missing, *(path for paths in platform.left_out.values() for path in paths)]
    return f"{platform.name} lacks {lacking[0]}" if lacking else ""
