"""docs/adding-a-network.md is true: what it says takes two layers from torch to an ensemble."""

import re
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT, copy_repository, faces

import export.profiles
import networks.entries
from clients.triton import TritonClient
from export.calibrate import calibrate
from export.check_engines import check_graph
from export.command import export as export_network
from export.profiles import FRAMES
from networks.checkpoint import LABELS, read_checkpoint
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

DOC = (ROOT / "docs" / "adding-a-network.md").read_text()


def block(kind, number=0):
    """A block of code of the document."""
    return re.findall(rf"```{kind}\n(.*?)```", DOC, re.DOTALL)[number]


@pytest.fixture
def two_layers():
    """The document's module, with its entry made for one test."""
    room = {**vars(networks.entries), "__name__": "two_layers"}
    for number in (0, 1):  # the module, and its entry in networks/entries.py
        exec(compile(block("python", number), "adding-a-network.md", "exec"), room)
    yield room["TwoLayers"]
    del networks.entries.NETWORKS["two_layers"]


def test_two_layers_go_from_torch_to_a_served_ensemble(tmp_path, two_layers):
    network = networks.entries.NETWORKS["two_layers"]
    module = two_layers(7, network.preprocessing).eval()
    torch.save(module.state_dict(), tmp_path / "two_layers.pth")
    copy_repository(tmp_path / "model_repository")
    subprocess.run(["sh", "-e", "-c", block("sh")], check=True, cwd=tmp_path)
    path = tmp_path / "two_layers.pth"
    checkpoint = read_checkpoint(path, network="two_layers", labels=LABELS["fer2013"])
    ranges = calibrate(checkpoint, faces(4), "made up")
    export_network(checkpoint, ranges, tmp_path / "model_repository", tmp_path / "build")
    for precision in ("fp16", "int8"):
        graph = tmp_path / "build" / precision / "two_layers_frames.onnx"
        assert check_graph(graph.read_bytes(), FRAMES)
    frames = faces(3)
    with torch.inference_mode():
        expected = module(torch.from_numpy(frames)).frame_logits.numpy()
    for name, atol in (("ort_fp32", 1e-4), ("ort_int8", 0.1), ("openvino_int8", 0.1)):
        platform = read_platform(tmp_path / "model_repository", name)
        assert platform.models == ("score_fusion", "two_layers", "two_layers_frames")
        with (
            EmbeddedServer(platform) as server,
            TritonClient(server.grpc_url, "two_layers") as client,
        ):
            answer = client.ask(frames)
            assert client.contract.labels == LABELS["fer2013"]
        np.testing.assert_allclose(answer.frame_logits, expected, atol=atol)
        np.testing.assert_allclose(answer.logits, expected.mean(0), atol=atol)


def test_the_plans_of_the_document_are_plans(monkeypatch):
    end = "\n)\n"
    source = (ROOT / "export" / "profiles.py").read_text()
    assert source.endswith(end)
    room = ModuleType("profiles")
    room.__file__ = export.profiles.__file__
    monkeypatch.setitem(sys.modules, "profiles", room)  # its dataclasses look themselves up
    exec(source.removesuffix(end) + "\n" + block("text") + end, vars(room))
    added = [plan for plan in room.PLANS if plan.network == "two_layers"]
    assert [str(plan.path) for plan in added] == [
        "model_repository/two_layers_frames/1/model.plan",
        "model_repository/two_layers_frames/1/model_int8.plan",
    ]


def test_copied_configs_name_the_network_alone(tmp_path):
    copy_repository(tmp_path / "model_repository")
    subprocess.run(["sh", "-e", "-c", block("sh")], check=True, cwd=tmp_path)
    copied = list((tmp_path / "model_repository").glob("two_layers*/**/*.pbtxt"))
    assert len(copied) == 6
    for path in copied:
        assert not re.search(r"\bdan", path.read_text()), path
