"""Toy networks of the contract, of a few numbers each, for a real Triton to serve in tests.

Every toy looks at two things of a face: how bright SPOT is, and how bright the whole is.
"""

from pathlib import Path

import onnx
from conftest import offer

SPOT = (64, 128, 112, 176)  # left, top, right, bottom, in pixels of the face
LABELS = {
    "fan": "angry disgust fear happy sad surprise neutral",
    "dan": "neutral happy sad surprise fear disgust anger contempt",
    "ran": "surprise fear disgust happy sad angry neutral",
    "deep_emotion": "angry disgust fear happy sad surprise neutral",
    "fan_fusion": "angry disgust fear happy sad surprise neutral",
}
FRAMES = "uint8[N,224,224,3] frames"
EXTRA_DIMS = {"region_weights": "-1, -1", "theta": "-1, 2, 3"}  # of a clip, as ensembles say them
FACE = """
    x = Cast <to = 1> (frames)
    starts = Constant <value_ints = [128, 64]> ()
    ends = Constant <value_ints = [176, 112]> ()
    axes = Constant <value_ints = [1, 2]> ()
    spot = Slice (x, starts, ends, axes)
    spots = ReduceMean <axes = [2, 3], keepdims = 0> (spot)
    bright_spot = ReduceMean <axes = [1], keepdims = 1> (spots)
    rows = ReduceMean <axes = [2, 3], keepdims = 0> (x)
    bright_face = ReduceMean <axes = [1], keepdims = 1> (rows)
    both = Concat <axis = 1> (bright_spot, bright_face)
    white = Constant <value_float = 255.0> ()
    features = Div (both, white)
"""


def matrix(name: str, num_columns: int, spot: str, face: str) -> str:
    """Write a constant (2, num_columns) from its two rows, filled up with zeros."""
    rows = [[*map(float, row.split())] for row in (spot, face)]
    values = ", ".join(str(v) for row in rows for v in (row + [0.0] * num_columns)[:num_columns])
    return f"""
    {name}_values = Constant <value_floats = [{values}]> ()
    {name}_shape = Constant <value_ints = [2, {num_columns}]> ()
    {name} = Reshape ({name}_values, {name}_shape)
"""


def logits(num_classes: int) -> str:
    """Write each face's evidence: the brighter the spot, the more for class 3."""
    return matrix("classes", num_classes, "0 0 0 9", "1 2 3 0 1") + (
        "    frame_logits = MatMul (features, classes)\n"
    )


ATTENTION = """
    attended = MatMul (features, alpha)
    alphas = Sigmoid (attended)
    flat = Constant <value_ints = [-1]> ()
    self_weights = Reshape (alphas, flat)
    total = ReduceSum <keepdims = 0> (self_weights)
    weights = Div (self_weights, total)
    logits = MatMul (weights, frame_logits)
    probabilities = Softmax <axis = 0> (logits)
"""
FUSION = """
    frame_logits = Identity (scores)
    each = Softmax <axis = 1> (frame_logits)
    probabilities = ReduceMean <axes = [0], keepdims = 0> (each)
    logits = Log (probabilities)
    sums = ReduceMean <axes = [1], keepdims = 0> (each)
    zeros = Sub (sums, sums)
    weights = Softmax <axis = 0> (zeros)
"""
REGIONS = """
    told_apart = MatMul (features, regions)
    region_weights = Softmax <axis = 1> (told_apart)
"""
WINDOW = """
    sizes = MatMul (features, window)
    square = Constant <value_ints = [-1, 2, 3]> ()
    theta = Reshape (sizes, square)
"""


def write_model(folder: Path, body: str, inputs: str, outputs: str, max_batch_size: int) -> None:
    """Write a composing model: its graph and its config.

    Args:
        inputs: as ONNX writes them, such as `float[N,2] features`; outputs alike.
    """
    text = f"""<ir_version: 8, opset_import: ["": 13]>
{folder.name} ({inputs}) => ({outputs}) {{{body}}}"""
    (folder / "1").mkdir(parents=True)
    onnx.save(onnx.parser.parse_model(text), folder / "1" / "model.onnx")
    tensors = [
        " ".join(f"{kind} [ {{ {tensor(value, max_batch_size)} }} ]" for value in values)
        for kind, values in (("input", [inputs]), ("output", outputs.split(", ")))
    ]
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}" backend: "onnxruntime" default_model_filename: "model.onnx"\n'
        f"max_batch_size: {max_batch_size} instance_group [ {{ kind: KIND_CPU count: 1 }} ]\n"
        + "\n".join(tensors)
    )


def tensor(value: str, max_batch_size: int) -> str:
    """Write as Triton does what ONNX writes `float[N,2] features`; a batch axis goes unsaid."""
    typed, name = value.split()
    datatype, dims = typed.rstrip("]").split("[")
    sizes = [dim if dim.isdigit() else "-1" for dim in dims.split(",")]
    kind = {"uint8": "TYPE_UINT8", "float": "TYPE_FP32"}[datatype]
    shown = ", ".join(sizes[max_batch_size > 0 :])
    return f'name: "{name}" data_type: {kind} dims: [ {shown} ]'


def write_ensemble(
    folder: Path, outputs: dict[str, str], steps: list[str], max_batch_size: int = 0
) -> None:
    """Write an ensemble of two steps that takes frames.

    Args:
        outputs: dims by name.
        steps: `model: what it takes -> what it gives`; `its=ours` where names differ.
    """
    (folder / "1").mkdir(parents=True)
    labels = 'label_filename: "labels.txt"'
    given = [
        f'output [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] '
        f"{labels if name == 'probabilities' else ''} }} ]"
        for name, dims in outputs.items()
    ]
    frames = "224, 224, 3" if max_batch_size else "-1, 224, 224, 3"
    config = [
        f'name: "{folder.name}" platform: "ensemble" max_batch_size: {max_batch_size}',
        f'input [ {{ name: "frames" data_type: TYPE_UINT8 dims: [ {frames} ] }} ]',
        *given,
        f"ensemble_scheduling {{ {' '.join(map(write_step, steps))} }}",
    ]
    (folder / "config.pbtxt").write_text("\n".join(config))
    if folder.name in LABELS:
        (folder / "labels.txt").write_text(LABELS[folder.name].replace(" ", "\n") + "\n")


def write_step(step: str) -> str:
    """Write one step of an ensemble."""
    model, tensors = step.split(": ")
    maps = [
        f'{kind}_map {{ key: "{its}" value: "{ours or its}" }}'
        for kind, names in zip(("input", "output"), tensors.split(" -> "), strict=True)
        for its, _, ours in (name.partition("=") for name in names.split())
    ]
    named = f'model_name: "{model}" model_version: -1 {" ".join(maps)}'
    return f"step [ {{ {named} }} ]"


def write_repository(target: Path) -> Path:
    """Write the five networks of the contract, and what they are composed of."""
    evidence = {"logits": "-1", "probabilities": "-1", "weights": "-1", "frame_logits": "-1, -1"}
    fused = "score_fusion: scores -> logits probabilities weights frame_logits"
    write_model(
        target / "score_fusion",
        FUSION,
        "float[N,C] scores",
        "float[C] logits, float[C] probabilities, float[N] weights, float[N,C] frame_logits",
        0,
    )
    # Names of a network; its classes, largest batch, and what it gives beside its evidence.
    for name, num_classes, most, extra, body in (
        ("dan", 8, 128, {}, ""),
        ("ran", 7, 16, {"region_weights": "6"}, matrix("regions", 6, "0 1 1 0 0 2", "1") + REGIONS),
        ("deep_emotion", 7, 128, {"theta": "2,3"}, matrix("window", 6, "", "1 0 0 0 1") + WINDOW),
    ):
        extra_outputs = [f"float[N,{dims}] {output}" for output, dims in extra.items()]
        write_model(
            target / f"{name}_frames",
            FACE + logits(num_classes) + body,
            FRAMES,
            ", ".join([f"float[N,{num_classes}] frame_logits", *extra_outputs]),
            most,
        )
        write_ensemble(
            target / name,
            {**evidence, **{output: EXTRA_DIMS[output] for output in extra}},
            [f"{name}_frames: frames -> {' '.join(['frame_logits=scores', *extra])}", fused],
        )
        offer(target, name)
    write_fan(target)
    write_ensemble(
        target / "fan_frames",
        {"frame_logits": "-1"},
        ["fan_embedder: frames -> features", "fan_head: features -> frame_logits"],
        max_batch_size=128,
    )
    step = "fan_frames: frames -> frame_logits=scores"
    write_ensemble(target / "fan_fusion", evidence, [step, fused])
    return target


def write_fan(target: Path) -> None:
    """Write `fan` as it is: seven classes by its dims, its evidence from the second step."""
    write_model(target / "fan_embedder", FACE, FRAMES, "float[N,2] features", 128)
    write_model(
        target / "fan_head", logits(7), "float[N,2] features", "float[N,7] frame_logits", 128
    )
    write_model(
        target / "fan_attention",
        logits(7) + matrix("alpha", 1, "4", "-1") + ATTENTION,
        "float[N,2] features",
        "float[7] logits, float[7] probabilities, float[N] weights, float[N,7] frame_logits, "
        "float[N] self_weights",
        0,
    )
    outputs = {
        **{"logits": "7", "probabilities": "7", "weights": "-1", "frame_logits": "-1, 7"},
        "self_weights": "-1",
    }
    write_ensemble(
        target / "fan",
        outputs,
        ["fan_embedder: frames -> features", f"fan_attention: features -> {' '.join(outputs)}"],
    )
    offer(target, "fan", "fan", "fan_fusion")
