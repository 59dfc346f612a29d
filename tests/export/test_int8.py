"""The INT8 graphs follow the rules, of which two, broken, change results without a word."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import OTHERS, ROOT, copy_repository, faces, random_checkpoint
from onnx_graph import Graph
from PIL import Image

from base.errors import ExportError
from export import to_int8_cpu
from export.calibrate import calibrate, fingerprint, main, ranges_path, read_calibration
from export.command import export
from export.command import main as export_command
from export.faces import read_faces, small_faces
from export.to_int8 import FEW_STEPS, to_int8
from networks.checkpoint import write_checkpoint
from networks.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def int8(repository, build, shipped, tmp_path_factory):
    """TensorRT's graph of a ResNet of which no convolution is spared."""
    path = tmp_path_factory.mktemp("throughout") / "model.onnx"
    calibration = read_calibration(ranges_path(ROOT / "weights" / "fan.safetensors"), shipped)
    to_int8(build / "fp16" / "fan_embedder.onnx", calibration.ranges, path)
    return Graph(path)


@pytest.fixture(scope="module")
def int8_served(repository, build):
    """TensorRT's graph as plans are built of it."""
    return Graph(build / "int8" / "fan_embedder.onnx")


@pytest.fixture(scope="module")
def int8_cpu(repository, build):
    return Graph(build / "int8_cpu" / "fan_embedder.onnx")


def test_every_quantiser_has_an_explicit_int8_zero_point_of_zero(int8):
    quantisers = int8.of("QuantizeLinear") + int8.of("DequantizeLinear")
    assert len(quantisers) > 60
    for node in quantisers:
        assert len(node.input) == 3, node.name
        zero_point = int8.constants[node.input[2]]
        assert (zero_point.dtype, zero_point.any()) == (np.int8, False), node.name


def test_every_scale_is_above_zero(int8):
    for node in int8.of("DequantizeLinear"):
        assert (int8.constants[node.input[1]] > 0).all(), node.name


def test_activations_have_one_scale_a_tensor(int8):
    for node in int8.of("QuantizeLinear"):
        assert int8.constants[node.input[1]].shape == ()


def test_float_part_ends_in_one_quantiser_that_the_next_block_shares(int8_served):
    (last,) = [
        a
        for a in int8_served.of("Add")
        if not any(int8_served.maker(name) == "DequantizeLinear" for name in a.input)
    ][1:]  # layer1 has two sums, both of floats
    (relu,) = int8_served.readers(last.output[0])
    (quantiser,) = int8_served.readers(relu.output[0])
    (dequantiser,) = int8_served.readers(quantiser.output[0])
    assert (quantiser.op_type, dequantiser.op_type) == ("QuantizeLinear", "DequantizeLinear")
    readers = int8_served.readers(dequantiser.output[0])
    assert [reader.op_type for reader in readers] == ["Conv", "Conv"]  # layer2's, its 1x1 too


def test_shipped_weights_are_those_int8_has(build, int8_cpu):
    floats = Graph(build / "fp32" / "fan_embedder.onnx")
    wanted = {conv.name: floats.constants[conv.input[1]] for conv in floats.of("Conv")}
    assert len(int8_cpu.of("Conv")) == len(wanted)
    for conv in int8_cpu.of("Conv"):  # in another order
        weight = wanted[conv.name]
        steps, scales, *_ = (int8_cpu.constants[n] for n in int8_cpu.makers[conv.input[1]].input)
        copies = steps.shape[1] // weight.shape[1]  # conv1 may read the picture twice
        found = (steps * scales[:, None, None, None]).reshape(len(steps), copies, *weight.shape[1:])
        scales = copies * scales[:, None, None, None]
        seen = np.abs(weight).max(axis=(1, 2, 3)) > 1e-6  # some of conv1's channels are dead
        # A quarter of a step is FP16's own rounding of the shipped file.
        assert (np.abs(found.sum(axis=1) - weight) <= 0.25 * scales)[seen].all()


def test_early_convolutions_alone_are_spared_and_by_tensorrt_alone(int8_served, int8_cpu):
    convs = int8_served.of("Conv")
    floats = [c for c in convs if int8_served.maker(c.input[1]) != "DequantizeLinear"]
    assert floats == convs[:5]  # conv1, and the two blocks of layer1
    assert {int8_served.constants[conv.input[1]].dtype for conv in floats} == {np.dtype("f2")}
    (pool,) = int8_served.of("MaxPool")
    assert int8_served.maker(pool.input[0]) == "Relu"
    for conv in int8_cpu.of("Conv"):
        assert int8_cpu.maker(conv.input[1]) == "DequantizeLinear"


def test_every_convolution_reads_quantised_frames_and_weights_and_a_float_bias(int8):
    assert len(int8.of("Conv")) == 20
    for conv in int8.of("Conv"):
        activation, weights, bias = conv.input
        assert int8.maker(activation) == "DequantizeLinear"
        assert int8.maker(int8.makers[activation].input[0]) == "QuantizeLinear"
        assert int8.maker(weights) == "DequantizeLinear"
        steps = int8.constants[int8.makers[weights].input[0]]
        scales = int8.constants[int8.makers[weights].input[1]]
        assert (steps.dtype, scales.shape) == (np.int8, (len(steps),))
        assert np.abs(steps.astype(int)).max() <= 127
        (axis,) = [a.i for a in int8.makers[weights].attribute if a.name == "axis"]
        assert axis == 0
        assert int8.constants[bias].dtype == np.float16


def test_nothing_stands_between_a_convolution_and_its_relu(int8):
    for relu in int8.of("Relu"):
        assert int8.maker(relu.input[0]) in ("Conv", "Add")


def test_skip_branch_of_every_add_is_quantised_and_the_other_is_not(int8):
    assert len(int8.of("Add")) == 8
    for add in int8.of("Add"):
        assert sorted(int8.maker(name) for name in add.input) == ["Conv", "DequantizeLinear"]


def test_tensor_is_quantised_once_for_all_its_readers(int8):
    # The skip branch shares its scale with the convolution that reads the same tensor.
    quantised = [node.input[0] for node in int8.of("QuantizeLinear")]
    assert len(quantised) == len(set(quantised))
    shared = [n for n in int8.of("DequantizeLinear") if len(int8.readers(n.output[0])) > 1]
    kinds = [{reader.op_type for reader in int8.readers(node.output[0])} for node in shared]
    assert kinds.count({"Conv", "Add"}) == 5  # where the skip branch is the block's own input


def test_only_skip_convolutions_have_quantisers_behind_them(int8):
    for node in int8.of("QuantizeLinear"):
        if int8.maker(node.input[0]) == "Conv":
            weights = int8.makers[int8.makers[node.input[0]].input[1]].input[0]
            assert int8.constants[weights].shape[2:] == (1, 1)


def test_pooling_runs_between_quantisers(int8):
    (pool,) = int8.of("MaxPool")
    assert int8.maker(pool.input[0]) == "DequantizeLinear"
    assert {reader.op_type for reader in int8.readers(pool.output[0])} == {"QuantizeLinear"}


def test_features_are_not_quantised(int8):
    *_, mean = int8.of("ReduceMean")  # the one before averages pixels
    assert int8.maker(mean.input[0]) == "Relu"


def test_attention_is_not_quantised(repository, build):
    for precision in ("fp32", "fp16"):
        graph = Graph(build / precision / "fan_attention.onnx")
        assert not graph.of("QuantizeLinear")


def test_sums_of_the_fp16_attention_are_fp32(repository, build):
    model = onnx.shape_inference.infer_shapes(onnx.load(build / "fp16" / "fan_attention.onnx"))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    sums = [node for node in model.graph.node if node.op_type == "ReduceSum"]
    assert len(sums) == 4
    assert {kinds[node.input[0]] for node in sums} == {onnx.TensorProto.FLOAT}
    products = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert {kinds[node.output[0]] for node in products} == {onnx.TensorProto.FLOAT16}


def test_cpu_graph_has_unsigned_activations_and_signed_weights(int8_cpu):
    for node in int8_cpu.of("QuantizeLinear"):
        assert int8_cpu.constants[node.input[2]].dtype == np.uint8
    for conv in int8_cpu.of("Conv"):
        weights = int8_cpu.makers[conv.input[1]]
        assert int8_cpu.constants[weights.input[0]].dtype == np.int8
        assert len(int8_cpu.constants[weights.input[1]]) > 1  # a scale for each channel


def few_steps(checkpoint):
    """The same weights, rounded to 64 steps either way, as `make train` leaves FAN's."""
    state = dict(checkpoint.state)
    for name, value in state.items():
        if value.dim() == 4:
            if value.shape[1] == 3:  # of a gray picture's one channel, three times
                value = value.mean(1, keepdim=True).expand_as(value)
            step = value.abs().amax((1, 2, 3), keepdim=True) / FEW_STEPS
            state[name] = (value / step).round() * step
    return replace(checkpoint, state=state)


@pytest.fixture(scope="module", params=["shipped", "few steps", *OTHERS])
def cpu_graphs(request, repository, build, tmp_path_factory):
    """An FP32 graph, its CPU twin, and what it is of."""
    if request.param != "few steps":
        name = "fan_embedder" if request.param == "shipped" else f"{request.param}_frames"
        return build / "fp32" / f"{name}.onnx", build / "int8_cpu" / f"{name}.onnx", request.param
    folder = tmp_path_factory.mktemp("few_steps")
    checkpoint = few_steps(random_checkpoint(preprocessing=Preprocessing("gray", size=112)))
    calibration = calibrate(checkpoint, faces(4), "made up")
    export(checkpoint, calibration, copy_repository(folder / "model_repository"), folder)
    name = "fan_embedder.onnx"
    return folder / "fp32" / name, folder / "int8_cpu" / name, request.param


def test_no_pair_of_products_leaves_16_bits_whatever_the_picture(cpu_graphs):
    # Without VNNI, x86 adds them in pairs and cuts the sum off there (vpmaddubsw).
    graph = Graph(cpu_graphs[1])
    convs = [conv for conv in graph.of("Conv") if graph.maker(conv.input[1])]
    assert convs
    for conv in convs:
        assert graph.greatest_pair(conv) <= np.iinfo(np.int16).max, conv.name


def test_pairs_of_what_onnx_runtime_quantises_by_itself_leave_16_bits(
    build, repository, shipped, tmp_path, monkeypatch
):
    calibration = read_calibration(ranges_path(ROOT / "weights" / "fan.safetensors"), shipped)
    monkeypatch.setattr(to_int8_cpu, "coarse_tensors", lambda *_: set())
    monkeypatch.setattr(to_int8_cpu, "lessen_steps", lambda *_: None)
    source, target = build / "fp32" / "fan_embedder.onnx", tmp_path / "unbounded.onnx"
    to_int8_cpu.to_int8_cpu(source, calibration.ranges, target)
    graph = Graph(target)
    assert min(map(graph.greatest_pair, graph.of("Conv"))) > np.iinfo(np.int16).max


def test_weights_of_few_steps_leave_codes_8_bits_and_others_7(cpu_graphs):
    path, name = cpu_graphs[1:]
    graph = Graph(path)
    convs = [conv for conv in graph.of("Conv") if graph.maker(conv.input[1])]
    steps = [np.abs(graph.constants[graph.makers[c.input[1]].input[0]]).max() for c in convs]
    codes = {graph.greatest_code(conv) for conv in convs}
    if name == "few steps":
        assert (codes, set(steps)) == ({255}, {64})
        assert not graph.of("Clip")
    elif name != "shipped":  # those are what they were trained to be
        assert codes == {127}


def test_sums_read_codes_that_were_not_cut_off(cpu_graphs):
    graph = Graph(cpu_graphs[1])
    for clip in graph.of("Clip"):
        (dequantiser,) = graph.readers(clip.output[0])
        assert {reader.op_type for reader in graph.readers(dequantiser.output[0])} == {"Conv"}


def test_cpu_graph_answers_nearly_as_its_float_twin(cpu_graphs):
    one, other = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, {"frames": small_faces(4)}
        )[0]
        for path in cpu_graphs[:2]
    )
    assert np.abs(one - other).mean() < 0.1 * np.abs(one).mean()


def test_tensor_that_is_always_zero_gets_a_scale_above_zero(repository, build, tmp_path, shipped):
    calibration = read_calibration(ranges_path(ROOT / "weights" / "fan.safetensors"), shipped)
    ranges = {**calibration.ranges, "relu_3": (0.0, 0.0)}
    to_int8(build / "fp16" / "fan_embedder.onnx", ranges, tmp_path / "zero.onnx")
    graph = Graph(tmp_path / "zero.onnx")
    assert graph.constants["relu_3_scale"] > 0


def test_export_without_ranges_leaves_no_int8_of_other_weights(tmp_path):
    repository = copy_repository(tmp_path / "model_repository")
    stale = repository / "fan_embedder" / "1"
    stale.mkdir(exist_ok=True)
    names = ("model_int8.onnx", "model_int8.plan", "model_int8.plan.json")
    for name in names:
        (stale / name).write_text("of other weights")
    export(random_checkpoint(), None, repository, tmp_path / "build")
    assert sorted(path.name for path in stale.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize("name", ["fan.v2.safetensors", "fan.v2.pth.tar"])
def test_ranges_of_two_checkpoints_do_not_share_a_file(name):
    assert ranges_path(ROOT / name).name == "fan.v2.ranges.json"


def test_missing_range_is_told_by_name(repository, build, tmp_path):
    with pytest.raises(ExportError, match=r"no range for \d+ tensors .*videofer calibrate"):
        to_int8(build / "fp16" / "fan_embedder.onnx", {"permute": (0, 1)}, tmp_path / "x.onnx")


def test_shipped_ranges_are_of_the_shipped_weights(shipped):
    calibration = read_calibration(ranges_path(ROOT / "weights" / "fan.safetensors"), shipped)
    assert calibration.num_faces == 512
    pixels = next(iter(calibration.ranges.values()))
    assert pixels == [0, 1]


def test_ranges_of_other_weights_are_refused(shipped, tmp_path):
    path = ROOT / "weights" / "fan.ranges.json"
    with pytest.raises(ExportError, match="measured on other weights"):
        read_calibration(path, random_checkpoint())
    with pytest.raises(ExportError, match=r"none\.json is not there"):
        read_calibration(tmp_path / "none.json", shipped)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ExportError, match="cannot be read"):
        read_calibration(tmp_path / "bad.json", shipped)


def test_fingerprint_knows_weights_and_preprocessing():
    one = random_checkpoint(seed=1)
    assert fingerprint(one) == fingerprint(random_checkpoint(seed=1))
    assert fingerprint(one) != fingerprint(random_checkpoint(seed=2))


def test_calibration_is_one_command_and_a_percentile_narrows_it(tmp_path, capsys):
    faces = np.random.default_rng(0).integers(0, 256, (10, 48, 48), dtype=np.uint8)
    np.savez(tmp_path / "faces.npz", images=faces)
    weights = tmp_path / "mine.safetensors"
    write_checkpoint(random_checkpoint(), weights)
    spans = []
    for options in ([], ["--percentile", "99"]):
        arguments = [str(tmp_path / "faces.npz"), "--checkpoint", str(weights)]
        assert main([*arguments, "--num-faces", "9", *options]) == 0
        content = json.loads((tmp_path / "mine.ranges.json").read_text())
        assert content["num_faces"] == 9
        assert content["percentile"] == (99 if options else 99.999)
        said = capsys.readouterr()
        assert f"{tmp_path / 'mine.ranges.json'}: of 9 faces" in said.out
        assert "`videofer export --checkpoint " in said.out
        assert ("in place of what was there" in said.out) == bool(options)
        spans.append(content["ranges"]["relu_3"])
    (low, high), (narrow_low, narrow_high) = spans
    assert low == narrow_low == 0
    assert 0.2 * high < narrow_high < 0.95 * high


def test_export_without_ranges_says_how_to_measure_them(tmp_path, capsys):
    weights = tmp_path / "mine.safetensors"
    write_checkpoint(random_checkpoint(network="deep_emotion"), weights)
    repository = copy_repository(tmp_path / "model_repository")
    command = ["--checkpoint", weights, "--repository", repository, "--build", tmp_path / "build"]
    assert export_command(list(map(str, command))) == 0
    assert (
        f"export: no INT8: {tmp_path / 'mine.ranges.json'} is not there; "
        f"`videofer calibrate --checkpoint {weights} <faces>` measures it, then export again\n"
    ) in capsys.readouterr().err


def test_faces_come_from_folders_named_for_their_labels(tmp_path):
    for label, shade in (("happy", 200), ("sad", 50)):
        (tmp_path / "set" / label).mkdir(parents=True)
        Image.new("L", (48, 48), shade).save(tmp_path / "set" / label / "a.png")
    faces = read_faces(tmp_path / "set", ("angry", "happy", "sad"))
    assert faces.images.shape == (2, 224, 224, 3)
    assert faces.labels.tolist() == [1, 2]
    assert faces.images[0].mean() > faces.images[1].mean()


def test_folder_of_an_unknown_label_is_told_by_name(tmp_path):
    for label in ("happy", "Sad"):
        (tmp_path / label).mkdir()
        Image.new("L", (48, 48)).save(tmp_path / label / "a.png")
    with pytest.raises(ExportError, match="folders Sad are named for no label"):
        read_faces(tmp_path, ("happy", "sad"))


@pytest.mark.parametrize(
    "name",
    [
        "none.npz",
        "text.npz",
        "no_images.npz",
        "float.npz",
        "void.npz",
        "few.npz",
        "five.npz",
        "empty",
    ],
)
def test_faces_that_cannot_be_read_are_told_in_words(tmp_path, name):
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "no_images.npz", pictures=np.zeros(3))
    np.savez(tmp_path / "float.npz", images=np.zeros((2, 48, 48)))
    (tmp_path / "void.npz").write_bytes(b"")
    images = np.zeros((2, 48, 48), np.uint8)
    np.savez(tmp_path / "few.npz", images=images, labels=np.zeros(1, int))
    np.savez(tmp_path / "five.npz", images=np.zeros((2, 48, 48, 5), np.uint8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=name):
        read_faces(tmp_path / name, ("happy",))
