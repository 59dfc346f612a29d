"""Compile every graph that plans are made from, here and now, without a GPU.

    python -m export.check_engines

TensorRT-RTX has TensorRT's ONNX parser and builder, and builds for a GPU that is not there. What
it refuses TensorRT refuses; what it takes says nothing of speed, and its engines are not served.
"""

import argparse
import sys
import time

import onnx
import tensorrt_rtx
from google.protobuf.message import DecodeError

from export.errors import ExportError
from export.profiles import ROOT, Profile
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
    argparse.ArgumentParser(
        prog="python -m export.check_engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    try:
        plans = exported_plans(ROOT)
    except ExportError as error:
        print(f"check-engines: {error}", file=sys.stderr)
        return 1
    failed = False
    for plan in plans:
        start = time.perf_counter()
        try:
            engine = check_graph(read_graph(plan, ROOT), plan.profile)
        except ExportError as error:
            print(f"check-engines: {plan.graph}: {error}", file=sys.stderr)
            failed = True
            continue
        low, common, high = (shape[0] for shape in plan.profile.shapes)
        print(
            f"{plan.graph}: compiles with TensorRT-RTX {tensorrt_rtx.__version__} for {low}, "
            f"{common} and {high} frames; {len(engine) / 1e6:.1f} MB, "
            f"{time.perf_counter() - start:.1f} s"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
