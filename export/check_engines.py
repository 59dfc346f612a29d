"""Compile every graph that plans are made from, here and now, without a GPU.

    videofer check-engines

TensorRT-RTX has TensorRT's ONNX parser and builder, and builds for a GPU that is not there. What
it refuses TensorRT refuses; what it takes says nothing of speed, and its engines are not served.
"""

import time

import onnx
import tensorrt_rtx
from google.protobuf.message import DecodeError

from base import ROOT
from base.command import fail, make_parser, run_command
from base.errors import ExportError
from export.profiles import Profile
from export.to_int8 import check_quantisers
from export.to_plan import build_plan, exported_plans, read_graph


def check_graph(graph: bytes, profile: Profile) -> bytes:
    """Compile one graph, an ONNX file's content, for one profile.

    Returns:
        The engine, which nothing here can run.

    Raises:
        ExportError: where TensorRT would refuse the graph, or take it to mean something else.
    """
    try:
        check_quantisers(onnx.load_from_string(graph))
    except DecodeError as error:
        raise ExportError("not an ONNX file") from error
    engine, _ = build_plan(tensorrt_rtx, graph, profile)
    return engine


def main(argv: list[str] | None = None) -> int:
    make_parser("check-engines", __doc__).parse_args(argv)
    return run_command("check-engines", check_graphs)


def check_graphs() -> int:
    """Compile the graph of every plan; say how that went, graph by graph.

    Returns:
        1 where one does not compile.
    """
    failed = False
    for plan in exported_plans(ROOT):
        start = time.perf_counter()
        try:
            engine = check_graph(read_graph(plan, ROOT), plan.profile)
        except ExportError as error:
            failed = bool(fail("check-engines", f"{plan.graph}: {error}"))
            continue
        low, common, high = (shape[0] for shape in plan.profile.shapes)
        print(
            f"{plan.graph}: compiles with TensorRT-RTX {tensorrt_rtx.__version__} for {low}, "
            f"{common} and {high} frames; {len(engine) / 1e6:.1f} MB, "
            f"{time.perf_counter() - start:.1f} s"
        )
    return int(failed)
