"""What the builder asks of TensorRT is there, in version 10 and in version 11.

TensorRT itself needs a GPU and gigabytes. Its Python bindings are a megabyte and import without
either, over libraries that hold nothing but the names they look up: enough to ask them for ours.
"""

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

BINDINGS = ROOT / "build" / "bindings"  # filled by `make test`, one folder a version
ENTRY_POINTS = [
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL"),
    *("createInferRuntime_INTERNAL", "createNvOnnxParser_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry"),
    *("getNvOnnxParserVersion", "initLibNvInferPlugins"),
]
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
# The variables of export/to_plan.py that hold TensorRT's objects, and their classes.
CLASSES = {
    "trt": "",
    "builder": "Builder.",
    "network": "INetworkDefinition.",
    "parser": "OnnxParser.",
    "config": "IBuilderConfig.",
    "shapes": "IOptimizationProfile.",
}
ASK = """
import functools, json, sys
import tensorrt_bindings
def has(name):
    try:
        functools.reduce(getattr, name.split("."), tensorrt_bindings)
    except AttributeError:
        return False
    return True
print(json.dumps([name for name in json.loads(sys.argv[1]) if not has(name)]))
"""


def names_used():
    """List every name of TensorRT's that the builder uses, as a path from the module."""
    function = next(
        node
        for node in ast.parse((ROOT / "export" / "to_plan.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "build_plan"
    )
    names = {"ITimingCache.serialize", "ParserError.desc", "ILogger.ERROR", "__version__"}
    for node in ast.walk(function):
        path = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        root, _, rest = path.partition(".")
        if root in CLASSES and all(part.isidentifier() for part in rest.split(".")):
            names.add(CLASSES[root] + rest)
    return sorted(names)


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def missing(request, tmp_path):
    """Ask one version of the bindings which of some names it lacks."""
    if shutil.which("cc") is None and not os.environ.get("CI"):
        pytest.skip("no C compiler to make the empty libraries with")
    folder = BINDINGS / request.param
    assert folder.is_dir(), "run `make test`, which installs the bindings"
    source = tmp_path / "empty.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS))
    major = request.param.split(".")[0]
    for library in LIBRARIES:
        target = tmp_path / f"lib{library}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)

    def ask(names):
        environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", ASK, json.dumps(names)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return request.param, json.loads(done.stdout)

    return ask


def test_builder_uses_only_what_both_majors_have(missing):
    names = names_used()
    assert "Builder.build_serialized_network" in names
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in names
    assert missing(names)[1] == []


def test_bindings_tell_what_a_major_lacks(missing):
    version, lacks = missing(["BuilderFlag.FP16", "Builder.no_such_method"])
    removed = [] if version.startswith("10.") else ["BuilderFlag.FP16"]
    assert lacks == [*removed, "Builder.no_such_method"]
