"""The ladder: every step from torch to the served answer agrees with the step before it.

    torch  ->  FP32 ONNX on ONNX Runtime  ->  Triton (tests/serving/test_server.py)
                                          ->  FP16, INT8 (`make parity`, here on a few faces)

Tolerances are for float32: two orders of the same sums differ by about 1e-6 of the values.
The oracles, numbers of the authors' own code, lie beside a development checkout only.
"""

from contextlib import ExitStack

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import copy_repository, faces, random_checkpoint

from base.provenance import cpu_name
from export import parity
from export.command import export
from export.to_onnx import fold_batch_norms, to_onnx
from networks.checkpoint import LABELS, build, read_checkpoint
from networks.fan import ClipAnswer
from networks.preprocessing import Preprocessing

OUTPUTS = list(ClipAnswer._fields)
# ResNet-18 in float32, its sums in another order: 1e-4 of the greatest feature is seen, rarely.
EMBEDDER_RTOL = 2e-4
# A few matrix products on features of the order of 1.
ATTENTION_ATOL = 2e-5
# What two float32 implementations of the authors' network are expected to agree to.
ORACLE = {"rtol": 1e-4, "atol": 1e-3}


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing("gray"),
        Preprocessing("gray", size=112),
        Preprocessing("rgb", (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)),
    ],
    ids=["rgb", "gray", "gray, halved", "standardised"],
)
def test_onnx_embedder_agrees_with_torch(tmp_path, preprocessing):
    part = build(random_checkpoint(preprocessing=preprocessing))["fan_embedder"]
    to_onnx(part, tmp_path / "embedder.onnx")
    running = session(tmp_path / "embedder.onnx")
    for num_frames in (1, 5):
        frames = faces(num_frames)
        expected = part.module(torch.from_numpy(frames)).numpy()
        (features,) = running.run(["features"], {"frames": frames})
        assert features.shape == (num_frames, 512)
        assert np.abs(features - expected).max() <= EMBEDDER_RTOL * np.abs(expected).max()


def test_folding_batch_norms_changes_nothing():
    embedder = build(random_checkpoint())["fan_embedder"].module
    frames = torch.from_numpy(faces(2))
    expected = embedder(frames)
    folded = fold_batch_norms(embedder)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert (folded(frames) - expected).abs().max() <= EMBEDDER_RTOL * expected.abs().max()


@pytest.mark.parametrize("variant", ["relation", "self"])
def test_onnx_attention_agrees_with_torch_for_clips_of_any_length(tmp_path, variant):
    part = build(random_checkpoint(variant=variant))["fan_attention"]
    to_onnx(part, tmp_path / "attention.onnx")
    running = session(tmp_path / "attention.onnx")
    for num_frames in (1, 2, 5, 300):
        features = torch.randn(num_frames, 512, generator=torch.Generator().manual_seed(num_frames))
        answers = running.run(OUTPUTS, {"features": features.numpy()})
        for name, answer, expected in zip(OUTPUTS, answers, part.module(features), strict=True):
            assert answer.shape == tuple(expected.shape), name
            assert np.abs(answer - expected.numpy()).max() < ATTENTION_ATOL, name


@pytest.mark.parametrize("variant", ["relation", "self"])
def test_attention_keeps_its_promises(variant):
    attention = build(random_checkpoint(variant=variant))["fan_attention"].module.double()
    features = torch.randn(9, 512, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    answer = attention(features)
    assert answer.weights.sum() == pytest.approx(1)
    assert torch.allclose(answer.logits, answer.weights @ answer.frame_logits)
    assert torch.allclose(answer.probabilities, answer.logits.softmax(0))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    permuted = attention(features[order])
    assert torch.allclose(permuted.logits, answer.logits)
    assert torch.allclose(permuted.weights, answer.weights[order])


def test_pooled_frame_logits_are_the_papers_formula():
    attention = build(random_checkpoint())["fan_attention"].module.double()
    f = torch.randn(5, 512, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    alpha = attention.alpha(f)
    clip = (alpha * f).sum(0) / alpha.sum()
    pairs = torch.cat([f, clip.expand(5, 512)], dim=1)
    beta = attention.beta(pairs)
    f_v = (alpha * beta * pairs).sum(0) / (alpha * beta).sum()
    assert torch.allclose(attention(f).logits, attention.pred_fc2(f_v))


def test_beta_is_that_of_the_authors_code(oracles, oracle_checkpoint):
    oracle = np.load(oracles / "fan.npz")
    checkpoint = read_checkpoint(oracle_checkpoint, labels=LABELS["afew"], variant="relation")
    attention = build(checkpoint)["fan_attention"].module
    for video in np.unique(oracle["video_index"]):
        mine = oracle["video_index"] == video
        f, alpha = (torch.from_numpy(oracle[name][mine]).float() for name in ("embedding", "alpha"))
        clip = (alpha[:, None] * f).sum(0) / alpha.sum()
        beta = attention.beta(torch.cat([f, clip.expand_as(f)], dim=1)).squeeze(1)
        np.testing.assert_allclose(beta.detach(), oracle["beta"][mine], **ORACLE)


def test_every_precision_agrees_with_the_checkpoint_on_real_faces(shipped, repository, build):
    faces, _ = parity.read_data(None, shipped.labels)
    with ExitStack() as stack:
        rungs = parity.open_rungs(shipped, build, stack)
        rows = {row.name: row for row in parity.compare(rungs, faces)}
    # 100 faces of 25 pixels: one that changes its mind is a percent. The bounds on thousands are
    # in docs/precision.md; here a broken graph shows (a scale lost in FP16 left 76 %).
    assert rows["ONNX FP32"].agreement == 1
    assert rows["ONNX FP32"].logit_difference[0] < 1e-4  # float32 sums in another order
    assert rows["ONNX FP16"].agreement >= 0.99
    assert rows["ONNX FP16"].logit_difference[0] < 0.05  # half has 11 bits
    for name in ("ONNX INT8, TensorRT's graph", "ONNX INT8, CPU graph"):
        assert rows[name].agreement >= 0.96
        assert rows[name].logit_difference[1] < 0.1  # 8 bits, through 20 convolutions
        assert rows[name].divergence < 0.01
    assert rows["ONNX INT8, CPU graph"].megabytes < 0.3 * rows["ONNX FP32"].megabytes


def test_parity_report_tells_its_provenance_and_every_rung(capsys, build, repository, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 48, 48), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", images=pictures, labels=np.zeros(4, int))
    target = tmp_path / "precision.md"
    arguments = [str(tmp_path / "few.npz"), "--build", str(build), "--output", str(target)]
    assert parity.main(arguments) == 0
    text = target.read_text()
    assert "commit" in text
    assert "cores" in text
    assert "onnxruntime" in text
    assert cpu_name() in text
    assert text.count("\n| ") >= 1 + 5
    assert text.strip() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        ("fpu sse2", ""),
        ("fpu avx avx2 fma", " with AVX2"),
        ("avx2 avx_vnni", " with AVX2, VNNI"),
        ("avx2 avx512f avx512_vnni avx512_bf16", " with AVX2, AVX-512, VNNI, BF16"),
        ("avx2 avx512f avx512_vnni amx_bf16 amx_int8", " with AVX2, AVX-512, VNNI, BF16, AMX"),
    ],
)
def test_report_names_the_instructions_that_int8_depends_on(tmp_path, flags, kinds):
    facts = f"processor\t: 0\nmodel name\t: Any CPU\nflags\t\t: {flags}\npower management:\n"
    (tmp_path / "cpuinfo").write_text(facts)
    assert cpu_name(tmp_path / "cpuinfo") == f"Any CPU{kinds}"


@pytest.mark.parametrize("variant", ["relation", "self"])
def test_onnx_agrees_with_the_authors_code(oracles, oracle_checkpoint, tmp_path, variant):
    oracle = np.load(oracles / "fan.npz")
    checkpoint = read_checkpoint(oracle_checkpoint, labels=LABELS["afew"], variant=variant)
    repository = copy_repository(tmp_path / "model_repository")
    export(checkpoint, None, repository, tmp_path)
    embedder = session(repository / "fan_embedder" / "1" / "model.onnx")
    attention = session(repository / "fan_attention" / "1" / "model.onnx")
    (features,) = embedder.run(["features"], {"frames": oracle["frames"]})
    np.testing.assert_allclose(features, oracle["embedding"], **ORACLE)
    for video, expected in enumerate(oracle[f"{variant}_attention_logits"]):
        mine = oracle["video_index"] == video
        answer = ClipAnswer(*attention.run(OUTPUTS, {"features": features[mine]}))
        np.testing.assert_allclose(answer.logits, expected, **ORACLE)
        np.testing.assert_allclose(answer.self_weights, oracle["alpha"][mine], **ORACLE)
        if variant == "relation":
            np.testing.assert_allclose(answer.weights, oracle["weights"][mine], **ORACLE)
            # beta is served as part of the weights: alpha * beta over its sum.
            products = oracle["alpha"][mine] * oracle["beta"][mine]
            np.testing.assert_allclose(answer.weights, products / products.sum(), **ORACLE)
