"""What every module keeps, told by its syntax."""

import ast
import subprocess

import pytest
from conftest import ROOT

LISTED = subprocess.run(
    ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
MODULES = [name for name in LISTED if not name.startswith("tests/")]
MOST_POSITIONAL = 4  # fields of a dataclass whose order a reader can keep in mind


@pytest.mark.parametrize("name", MODULES)
def test_dataclass_of_many_fields_is_keyword_only(name):
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if not isinstance(node, ast.ClassDef):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        fields = [child for child in node.body if isinstance(child, ast.AnnAssign)]
        if any("dataclass" in text for text in decorators) and len(fields) > MOST_POSITIONAL:
            assert any("kw_only=True" in text for text in decorators), node.name
