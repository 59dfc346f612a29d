"""DAN, RAN and Deep-Emotion compute what their authors' code does, in torch and as they are served.

The oracles, numbers of the authors' own code, lie beside a development checkout only.
"""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import OTHERS, copy_repository, faces, random_checkpoint
from onnx_graph import Graph
from PIL import Image

from base.errors import CheckpointError
from base.exported import read_record
from clients.reports.outlines import REGIONS_OF
from clients.triton import TritonClient
from export.calibrate import quantised_part
from export.command import export, main
from export.to_onnx import fold_batch_norms, to_onnx
from networks.checkpoint import LABELS, build, read_checkpoint, read_embedder, write_checkpoint
from networks.deep_emotion import SPARED, DeepEmotion
from networks.entries import NETWORKS
from networks.preprocessing import FRAME_SIZE, SIZES, Normaliser, Preprocessing, cells_of
from networks.ran import BOXES, VARIANTS
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

# What two float32 implementations of the authors' networks are expected to agree to.
ORACLE = {"rtol": 1e-4, "atol": 1e-3}
FILES = {"dan": "dan8.pth", "ran": "ran.pth.tar", "deep_emotion": "deep_emotion.pth"}
LABELS_OF = {"dan": "affectnet8", "ran": "ferplus", "deep_emotion": "fer2013"}


@pytest.fixture(scope="module")
def checkpoints(oracles, tmp_path_factory):
    """The oracles' networks, in the file formats of their authors."""
    target = tmp_path_factory.mktemp("oracles")
    subprocess.run([sys.executable, oracles / "assemble.py", target], check=True)
    return target


@pytest.fixture(scope="module")
def read(checkpoints):
    """Read one of them."""

    def read(network, file=None, labels=None, **options):
        labels = LABELS[labels or LABELS_OF[network]]
        path = checkpoints / (file or FILES[network])
        return read_checkpoint(path, network=network, labels=labels, **options)

    return read


@pytest.fixture(scope="module")
def served(read, tmp_path_factory):
    """A real Triton that serves the oracles' networks."""
    folder = tmp_path_factory.mktemp("served")
    repository = copy_repository(folder / "model_repository")
    for network in FILES:
        export(read(network), None, repository, folder)
    with EmbeddedServer(read_platform(repository, "ort_fp32")) as running:
        yield running


def module_of(checkpoint):
    """The part of a network that looks at frames."""
    return build(checkpoint)[f"{checkpoint.network}_frames"].module


def ask(server, network, frames):
    """One clip through an ensemble."""
    with TritonClient(server.grpc_url, network) as client:
        assert client.contract.labels == LABELS[LABELS_OF[network]]
        answer = client.ask(frames)
    check_fusion(answer)
    return answer


def check_fusion(answer):
    """Every frame counts alike, and probabilities are the mean of the frames'."""
    num_frames = len(answer.frame_logits)
    exponents = np.exp(answer.frame_logits - answer.frame_logits.max(1, keepdims=True))
    each = exponents / exponents.sum(1, keepdims=True)
    np.testing.assert_allclose(answer.shares, np.full(num_frames, 1 / num_frames), rtol=1e-6)
    np.testing.assert_allclose(answer.probabilities, each.mean(0), atol=1e-5)
    np.testing.assert_allclose(answer.logits, answer.frame_logits.mean(0), atol=1e-4)


def enlarged(images, how=Image.Resampling.NEAREST):
    """Bring pictures (N, H, W[, 3]) uint8 to what travels, (N, 224, 224, 3)."""
    size = (FRAME_SIZE, FRAME_SIZE)
    return np.stack(
        [np.asarray(Image.fromarray(i).convert("RGB").resize(size, how)) for i in images]
    )


# --- oracles ---


def test_dan_is_its_authors(oracles, read):
    oracle = np.load(oracles / "dan.npz")
    module = module_of(read("dan"))
    with torch.inference_mode():
        maps = module.backbone.stages(module.normaliser(torch.from_numpy(oracle["images"])))
        heads = module.attend(maps)
        logits = module(torch.from_numpy(oracle["images"])).frame_logits
    np.testing.assert_allclose(maps.mean((2, 3)), oracle["feature_map_mean"], **ORACLE)
    np.testing.assert_allclose(heads, oracle["heads_log_softmax"], **ORACLE)
    np.testing.assert_allclose(logits, oracle["logits8"], **ORACLE)


def test_dan_through_its_ensemble_is_its_authors(oracles, served):
    oracle = np.load(oracles / "dan.npz")
    answer = ask(served, "dan", oracle["images"])
    np.testing.assert_allclose(answer.frame_logits, oracle["logits8"], **ORACLE)


@pytest.mark.parametrize("labels", ["affectnet7", "rafdb"])
def test_dan_of_seven_classes_is_read_with_the_labels_of_its_data(read, labels):
    checkpoint = read("dan", "dan7.pth", labels)
    assert checkpoint.labels == LABELS[labels]
    assert module_of(checkpoint)(torch.from_numpy(faces(1))).frame_logits.shape == (1, 7)


@pytest.mark.parametrize("count", [8, 6])
def test_ran_of_given_regions_is_its_authors(oracles, read, count):
    oracle = np.load(oracles / "ran.npz")
    module = module_of(read("ran", variant=f"regions{count}"))
    chosen = oracle["six_of_eight"] if count == 6 else slice(None)
    regions = torch.from_numpy(oracle["regions8"][:, chosen]).permute(0, 1, 4, 2, 3) / 255
    with torch.inference_mode():
        features = module.embed(regions)
        pooled = module.pool(features)
        logits = module.fc(pooled.pooled)
    shares = pooled.alphas.numpy()
    expected = {
        "embedding": features,
        "alpha_sigmoid": shares,
        "beta_sigmoid": pooled.betas,
        "repr": pooled.pooled,
        "logits": logits,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(values, oracle[f"r{count}_{name}"], err_msg=name, **ORACLE)


def test_ran_has_its_authors_regions(oracles):
    oracle = np.load(oracles / "ran.npz")
    np.testing.assert_allclose(BOXES, oracle["boxes"])
    assert VARIANTS["regions6"] == tuple(BOXES[i] for i in oracle["six_of_eight"])


def test_clients_draw_the_regions_that_the_graph_cuts():
    # Two rooms that share no Python; a client learns of RAN's weights only how many there are.
    for variant, boxes in VARIANTS.items():
        np.testing.assert_allclose(REGIONS_OF[int(variant.removeprefix("regions"))], boxes)


def test_ran_cuts_regions_as_pil_does(read):
    module = module_of(read("ran"))
    (face,) = faces(1)
    cut = module.cut(torch.from_numpy(face[None]).permute(0, 3, 1, 2) / 255)[0]
    for box, region in zip(BOXES, cut, strict=True):
        edges = tuple(edge * FRAME_SIZE for edge in box)
        if edges != tuple(map(round, edges)):
            continue  # PIL cuts at whole pixels
        picture = Image.fromarray(face).crop(tuple(map(int, edges)))
        expected = picture.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC)
        pixels = (region.permute(1, 2, 0) * 255).clamp(0, 255).numpy()
        # PIL rounds to whole grey levels, after each of two passes.
        assert np.abs(pixels - np.asarray(expected)).mean() < 0.5, box
    assert torch.equal(cut[-1], torch.from_numpy(face).permute(2, 0, 1) / 255)


def test_ran_through_its_ensemble_names_its_authors_classes(oracles, served):
    # The wire has 224 pixels of the source's 256: regions cut from it differ by 1.5 to 4 grey
    # levels from those cut before, and the logits of these random weights by up to 2.2 of 4.3.
    oracle = np.load(oracles / "ran.npz")
    answer = ask(served, "ran", enlarged(oracle["source"], Image.Resampling.BICUBIC))
    assert (answer.frame_logits.argmax(1) == oracle["r8_logits"].argmax(1)).all()
    assert np.abs(answer.frame_logits - oracle["r8_logits"]).max() < 2.5
    np.testing.assert_allclose(answer.region_weights.sum(1), 1, atol=1e-6)


def test_ran_through_its_ensemble_is_the_module(read, served):
    frames = faces(3)
    answer = ask(served, "ran", frames)
    with torch.inference_mode():
        expected = module_of(read("ran"))(torch.from_numpy(frames))
    np.testing.assert_allclose(answer.frame_logits, expected.frame_logits, **ORACLE)
    np.testing.assert_allclose(answer.region_weights, expected.region_weights, **ORACLE)


def test_deep_emotion_is_its_authors(oracles, read):
    oracle = np.load(oracles / "deep_emotion.npz")
    module = module_of(read("deep_emotion"))
    with torch.inference_mode():
        x = module.normaliser(torch.from_numpy(enlarged(oracle["images"])))
        view, theta = module.transform(x)
        logits = module.read(view)
    np.testing.assert_allclose(theta, oracle["theta"], **ORACLE)
    np.testing.assert_allclose(view, oracle["stn_output"], **ORACLE)
    np.testing.assert_allclose(logits, oracle["logits"], **ORACLE)


def test_deep_emotion_through_its_ensemble_is_its_authors(oracles, served):
    oracle = np.load(oracles / "deep_emotion.npz")
    answer = ask(served, "deep_emotion", enlarged(oracle["images"]))
    np.testing.assert_allclose(answer.frame_logits, oracle["logits"], **ORACLE)
    np.testing.assert_allclose(answer.theta, oracle["theta"], **ORACLE)


# --- promises that need no oracle ---


@pytest.mark.parametrize("network", OTHERS)
def test_onnx_agrees_with_torch(network, build, repository):
    checkpoint = random_checkpoint(network=network, labels=LABELS[OTHERS[network]])
    path = build / "fp32" / f"{network}_frames.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num_frames in (1, 3):
        frames = faces(num_frames)
        with torch.inference_mode():
            expected = module_of(checkpoint)(torch.from_numpy(frames))
        found = session.run(list(expected._fields), {"frames": frames})
        for name, mine, theirs in zip(expected._fields, found, expected, strict=True):
            assert mine.shape == tuple(theirs.shape), name
            atol = 2e-4 * float(theirs.abs().max())  # float32 sums in another order
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("network", OTHERS)
def test_folding_batch_norms_changes_nothing(network):
    module = module_of(random_checkpoint(network=network))
    folded = fold_batch_norms(module)
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    assert not any(isinstance(m, norms) for m in folded.modules())
    frames = torch.from_numpy(faces(2))
    with torch.inference_mode():
        expected, found = module(frames).frame_logits, folded(frames).frame_logits
    assert (found - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_every_network_answers_behind_one_contract(server):
    frames = faces(3)
    for network, labels in {**OTHERS, "fan": "fer2013", "fan_fusion": "fer2013"}.items():
        with TritonClient(server.grpc_url, network) as client:
            assert client.contract.labels == LABELS[labels]
            answer = client.ask(frames)
        assert answer.shares.sum() == pytest.approx(1, abs=1e-5)
        expected = (answer.shares[:, None] * answer.frame_logits).sum(0)
        np.testing.assert_allclose(answer.logits, expected, rtol=1e-4, atol=1e-4)
        if network != "fan":
            check_fusion(answer)


def test_fan_fusion_is_the_classifier_of_single_frames(server, shipped):
    parts = build(shipped)
    frames = faces(2)
    with torch.inference_mode():
        features = parts["fan_embedder"].module(torch.from_numpy(frames))
        expected = parts["fan_classifier"].module(features)
    with TritonClient(server.grpc_url, "fan_fusion") as client:
        found = client.ask(frames).frame_logits
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("outputs", [["probabilities"], ["frame_logits"], ["theta"]])
def test_some_of_an_ensembles_outputs_can_be_asked_for_alone(server, outputs):
    # Triton 2.51 ends in "unexpected deadlock" where a model takes what its ensemble gives out.
    import tritonclient.grpc as grpcclient

    tensor = grpcclient.InferInput("frames", [2, 224, 224, 3], "UINT8")
    tensor.set_data_from_numpy(faces(2))
    wanted = [grpcclient.InferRequestedOutput(name) for name in outputs]
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("deep_emotion", [tensor], outputs=wanted)
    assert [output.name for output in answer.get_response().outputs] == outputs


@pytest.mark.parametrize("size", [size for size in SIZES if FRAME_SIZE % size])
@pytest.mark.parametrize("rounded", [0.0, 0.5])
def test_picture_that_was_enlarged_by_repeating_pixels_comes_back_to_the_bit(size, rounded):
    small = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    places = ((np.arange(FRAME_SIZE) + rounded) * size / FRAME_SIZE).astype(int)
    frames = np.repeat(small[places][:, places][None, :, :, None], 3, axis=3)
    back = Normaliser(Preprocessing("gray", size=size), 1)(torch.from_numpy(frames))
    assert torch.equal((back[0, 0] * 255).round(), torch.from_numpy(small).float())


def test_cells_share_no_pixel_and_weigh_theirs_alike():
    cells = cells_of(48)
    assert ((cells > 0).sum(0) <= 1).all()
    assert ((cells > 0).sum(1) == 4).all()  # of the 4.67 that a cell is wide
    assert torch.allclose(cells.sum(1), torch.ones(48))


def test_network_of_gray_pictures_refuses_colour():
    with pytest.raises(ValueError, match="color is 'rgb'; the network takes gray alone"):
        DeepEmotion(7, Preprocessing())


@pytest.mark.parametrize("network", OTHERS)
def test_int8_is_for_convolutions_and_what_feeds_them(network, build, repository):
    graph = Graph(build / "int8" / f"{network}_frames.onnx")
    spared = quantised_part(random_checkpoint(network=network)).spared
    quantised = [conv for conv in graph.of("Conv") if graph.maker(conv.input[1])]
    assert len(graph.of("Conv")) == len(quantised) + len(spared)
    for conv in quantised:
        activation, weights, bias = conv.input
        assert graph.maker(activation) == graph.maker(weights) == "DequantizeLinear"
        assert graph.maker(bias) is None
    readers = {
        reader.op_type
        for node in graph.of("DequantizeLinear")
        for reader in graph.readers(node.output[0])
    }
    assert readers <= {"Conv", "MaxPool", "Add"}


@pytest.mark.parametrize(("network", "size"), [("dan", 56), ("ran", 224), ("ran", 112)])
def test_graph_of_gray_weights_has_one_channel_and_answers_as_the_module(network, size, tmp_path):
    checkpoint = random_checkpoint(network=network, preprocessing=Preprocessing("gray", size=size))
    part = build(checkpoint)[f"{network}_frames"]
    to_onnx(part, tmp_path / "gray.onnx")
    graph = Graph(tmp_path / "gray.onnx")
    assert graph.constants[graph.of("Conv")[0].input[1]].shape[1] == 1
    with torch.no_grad():
        expected = part.module(torch.from_numpy(faces(2)))[0].numpy()
    session = onnxruntime.InferenceSession(tmp_path / "gray.onnx")
    found = session.run(["frame_logits"], {"frames": faces(2)})[0]
    np.testing.assert_allclose(found, expected, **ORACLE)


def test_window_of_deep_emotion_is_found_and_looked_through_in_floating_point(build, repository):
    for precision in ("int8", "int8_cpu"):
        graph = Graph(build / precision / "deep_emotion_frames.onnx")
        (sample,) = graph.of("GridSample")
        assert "DequantizeLinear" not in map(graph.maker, sample.input)
        assert not [node for node in graph.of("Gemm") if graph.maker(node.input[1])]


def test_convolutions_of_deep_emotion_that_int8_would_spoil_stay_in_floating_point(
    build, repository
):
    for precision in ("int8", "int8_cpu"):
        convs = Graph(build / precision / "deep_emotion_frames.onnx")
        quantised = [convs.maker(conv.input[1]) == "DequantizeLinear" for conv in convs.of("Conv")]
        assert quantised == [False] * len(SPARED) + [True]


def test_sums_of_equal_convolutions_in_dan_stay_unquantised(build, repository):
    graph = Graph(build / "int8" / "dan_frames.onnx")
    kinds = [tuple(sorted(map(str, map(graph.maker, add.input)))) for add in graph.of("Add")]
    assert kinds.count(("Conv", "Conv")) == 4  # of 3x3 and 1x3, in each head
    assert kinds.count(("Conv", "DequantizeLinear")) == 8 + 4  # skip branches; that sum and 3x1


# --- files ---


@pytest.mark.parametrize("network", OTHERS)
def test_own_format_keeps_network_labels_and_weights(tmp_path, network):
    written = random_checkpoint(network=network, labels=LABELS["affectnet8"])
    path = tmp_path / "any.safetensors"
    write_checkpoint(written, path)
    found = read_checkpoint(path)
    assert (found.network, found.labels, found.variant, found.preprocessing) == (
        network,
        written.labels,
        written.variant,
        written.preprocessing,
    )
    assert found.state.keys() == written.state.keys()


@pytest.mark.parametrize("network", OTHERS)
def test_weights_of_another_network_are_refused_by_name(tmp_path, network):
    path = tmp_path / "fan.pth.tar"
    torch.save({"state_dict": dict(random_checkpoint().state)}, path)
    title = NETWORKS[network].title
    with pytest.raises(CheckpointError, match=rf"FAN's, not {title}'s: .* say --model fan"):
        read_checkpoint(path, network=network, labels=LABELS["fer2013"])


def test_own_file_of_another_network_is_refused(tmp_path):
    write_checkpoint(random_checkpoint(network="deep_emotion"), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="architecture 'deep_emotion'; expected 'dan'"):
        read_checkpoint(tmp_path / "a.safetensors", network="dan")


@pytest.mark.parametrize("wrapping", [None, "state_dict", "model_state_dict"])
def test_weights_are_found_wherever_authors_keep_them(tmp_path, wrapping):
    state = dict(random_checkpoint(network="deep_emotion").state)
    torch.save({wrapping: state, "iter": 3} if wrapping else state, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth", network="deep_emotion", labels=LABELS["fer2013"])
    assert all(torch.equal(found.state[name], state[name]) for name in state)


def test_variant_of_another_network_is_refused():
    checkpoint = random_checkpoint(network="dan")
    with pytest.raises(CheckpointError, match=r"variant is 'self'; DAN has none"):
        replace(checkpoint, variant="self")
    with pytest.raises(CheckpointError, match=r"RAN has 'regions8' or 'regions6'"):
        replace(random_checkpoint(network="ran"), variant="self")


def test_network_without_shipped_weights_says_so(tmp_path, capsys, monkeypatch):
    # All four have some; a network that somebody adds has none at first.
    monkeypatch.setattr("networks.checkpoint.WEIGHTS", tmp_path / "none")
    assert main(["--model", "ran", "--build", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "no weights of RAN are shipped; name a checkpoint of it with --checkpoint <file>" in said
    assert not list(tmp_path.iterdir())


def test_ran_cuts_the_same_regions_of_smaller_faces(read):
    # Half of the pixels, the same shares of the face: of a smooth picture regions agree.
    large = module_of(read("ran"))
    small = module_of(random_checkpoint(network="ran", preprocessing=Preprocessing(size=112)))
    ramp = torch.linspace(0, 1, 224)
    face = (ramp[:, None] + ramp)[None, None].expand(1, 3, -1, -1) / 2
    halved = torch.nn.functional.avg_pool2d(face, 2)
    expected = torch.nn.functional.avg_pool2d(large.cut(face)[0], 2)
    # Inside: at a region's edge the cubic kernel is cut short, over other pixels.
    found = small.cut(halved)[0]
    assert (found - expected).abs()[..., 2:-2, 2:-2].max() < 2e-3


def test_export_alone_repeats_what_is_not_current_as_it_was_exported_last(tmp_path, capsys):
    repository = copy_repository(tmp_path / "model_repository")
    weights = tmp_path / "mine.pth"
    torch.save(dict(random_checkpoint(network="deep_emotion").state), weights)
    (tmp_path / "mine.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    where = ["--repository", str(repository), "--build", str(tmp_path / "build")]
    options = ["--checkpoint", str(weights), "--labels", str(tmp_path / "mine.txt")]
    assert main(["--model", "deep_emotion", *options, *where]) == 0
    record = read_record("deep_emotion", repository)
    assert (record.checkpoint, record.options) == (weights, {"labels": list("abcdefg")})
    labels = repository / "deep_emotion" / "labels.txt"
    labels.unlink()
    capsys.readouterr()
    assert main(where) == 0
    assert labels.read_text().split()[0] == "a"
    assert (repository / "fan" / "labels.txt").read_text().split()[0] == "angry"
    written = {path: path.stat().st_mtime_ns for path in repository.glob("*/1/*")}
    capsys.readouterr()
    assert main(where) == 0
    assert "export: fan is current, from weights/fan.safetensors\n" in capsys.readouterr().out
    assert written == {path: path.stat().st_mtime_ns for path in repository.glob("*/1/*")}
    weights.unlink()
    assert main(where) == 0  # other networks do not depend on it
    said = capsys.readouterr().err
    assert "mine.pth is gone, from which deep_emotion was last exported: left as it is" in said
    assert "`videofer export --remove deep_emotion` takes it off" in said


def test_checkpoint_that_loses_its_classifier_takes_fusion_away(tmp_path, shipped):
    repository = copy_repository(tmp_path / "model_repository")
    export(shipped, None, repository, tmp_path)
    assert "fan_fusion" in read_platform(repository, "ort_fp32").models
    state = {k: v for k, v in shipped.state.items() if not k.startswith("fc.")}
    export(replace(shipped, state=state), None, repository, tmp_path)
    assert "fan_fusion" not in read_platform(repository, "ort_fp32").models
    assert "fan" in read_platform(repository, "ort_fp32").models


def test_preprocessing_that_a_network_cannot_take_is_refused():
    with pytest.raises(CheckpointError, match=r"size 48 and color 'rgb'; Deep-Emotion takes"):
        replace(
            random_checkpoint(network="deep_emotion"), preprocessing=Preprocessing("rgb", size=48)
        )


def test_ran_is_no_embedder_with_a_classifier_of_frames(tmp_path):
    state = dict(random_checkpoint(network="ran").state)
    torch.save({"state_dict": state}, tmp_path / "ran.pth.tar")
    assert "fc.weight" not in read_embedder(tmp_path / "ran.pth.tar").state


def test_exporting_one_network_leaves_the_others_and_remove_takes_one_off(tmp_path):
    repository, folder = copy_repository(tmp_path / "model_repository"), tmp_path / "build"
    torch.save(dict(random_checkpoint(network="dan").state), tmp_path / "mine.pth")
    where = ["--repository", str(repository), "--build", str(folder)]
    options = ["--checkpoint", str(tmp_path / "mine.pth"), "--labels", "fer2013"]
    assert main(["--model", "dan", *options, *where]) == 0
    assert main(["--model", "deep_emotion", *where]) == 0
    assert read_platform(repository, "ort_fp32").networks == ("dan", "deep_emotion")
    assert main(["--remove", "dan", *where]) == 0
    assert read_platform(repository, "ort_fp32").networks == ("deep_emotion",)
    assert not list((repository / "dan_frames" / "1").glob("model*"))
    assert not list(folder.glob("*/dan*"))
    assert (repository / "score_fusion" / "1" / "model.onnx").is_file()


def test_network_that_is_not_built_for_a_platform_leaves_the_others_served(tmp_path, shipped):
    repository = copy_repository(tmp_path / "model_repository")
    export(shipped, None, repository, tmp_path)
    export(random_checkpoint(network="deep_emotion"), None, repository, tmp_path)
    (repository / "fan_embedder" / "1" / "model_int8.onnx").write_bytes(b"stands for INT8")
    platform = read_platform(repository, "ort_int8")
    assert platform.networks == ("fan", "fan_fusion")
    assert [path.name for path in platform.left_out["deep_emotion"]] == ["model_int8.onnx"]
    (repository / "fan_embedder" / "1" / "model_int8.onnx").unlink()
    platform = read_platform(repository, "ort_int8")
    assert not platform.left_out
    assert len(platform.missing) == 2  # and so the start is refused
