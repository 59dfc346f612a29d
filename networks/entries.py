"""The networks: what each is made of, and where its models are served.

    Network  ->  parts()  ->  Part, Part, ...   one ONNX file and one model_repository/ folder each

`networks.checkpoint` fills the parts with weights, `export.to_onnx` traces them. To add a network
is to write its module, an entry here, its plans in `export.profiles`, and its folders of configs:
docs/adding-a-network.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from torch import nn

from networks.dan import Dan, DanAnswer
from networks.dan import rename as rename_dan
from networks.deep_emotion import SIZE, SPARED, DeepEmotion, DeepEmotionAnswer
from networks.fan import ClipAnswer, FrameAttention, FrameClassifier, FrameEmbedder, Variant
from networks.preprocessing import FRAME_SIZE, SIZES, Color, Preprocessing
from networks.ran import VARIANTS, Ran, RanAnswer
from networks.resnet import NUM_FEATURES
from networks.score_fusion import FusedScores, ScoreFusion

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
FRAME = (FRAME_SIZE, FRAME_SIZE, 3)
EARLY = (
    "backbone.conv1",
    *(f"backbone.layer1.{block}.conv{i}" for block in range(2) for i in (1, 2)),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model of a network.

    Args:
        model: its folder in model_repository/, and its files' name.
        module: takes one tensor whose first axis counts frames.
        tensor: that tensor's name; `frames` is uint8, anything else float32.
        dims: of one row of it; None where an axis can have any length.
        outputs: the names of what it gives, in order.
        counted: those outputs whose last axis counts classes or regions. It is left open in the
            graph, so that one static config serves networks of 7 classes and of 8.
        optional: whether a checkpoint may lack its weights.
        quantised: whether INT8 graphs are made of it.
        spared: its convolutions that are left in floating point even there.
        spared_by_tensorrt: those left so in TensorRT's graph as well, not in the CPU's.
    """

    model: str
    module: nn.Module
    tensor: str
    dims: tuple[int | None, ...]
    outputs: tuple[str, ...]
    counted: tuple[str, ...] = ()
    optional: bool = False
    quantised: bool = False
    spared: tuple[str, ...] = ()
    spared_by_tensorrt: tuple[str, ...] = ()


Parts = Callable[[int, str, Preprocessing], tuple[Part, ...]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network learns from stills, where that is its own.

    Args:
        phases: <pixels>x<epochs>,... by default.
        adam: the optimiser, rather than SGD; without decay of weights.
        learning_rate: by default; None for SGD's usual one.
    """

    phases: str = ""
    adam: bool = False
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the networks.

    Args:
        name: as its files and its ensemble are called.
        title: as its papers call it.
        parts: number of classes, variant, preprocessing -> its models, with random weights.
        classifiers: the biases of its classifiers, one value a class; the first is always there.
        ensembles: ensemble -> the models it is composed of.
        num_classes: where the configs fix it; None where any will do.
        variants: the first is the default.
        preprocessing: where a checkpoint does not say.
        sizes: that it can see, in pixels of a side.
        colors: that it can see.
        rename: a parameter's name in the authors' files -> ours.
        pools: whether it weighs a clip's frames itself; else `score_fusion` counts them alike.
        trainer: "clips": on stills, then on clips; "stills": on those alone; "" where none is.
        recipe: how stage one learns.
    """

    name: str
    title: str
    parts: Parts
    classifiers: tuple[str, ...]
    ensembles: Mapping[str, tuple[str, ...]]
    num_classes: int | None = None
    variants: tuple[str, ...] = ("",)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    sizes: tuple[int, ...] = SIZES
    colors: tuple[Color, ...] = ("rgb", "gray")
    rename: Callable[[str], str] = str
    pools: bool = False
    trainer: Literal["", "stills", "clips"] = ""
    recipe: Recipe = Recipe()


def fusion() -> Part:
    """What pools single frames; it has no weights, and all networks share it."""
    outputs = FusedScores._fields
    return Part(
        model="score_fusion", module=ScoreFusion(), tensor="scores", dims=(None,), outputs=outputs
    )


def frames_part(model: str, module: nn.Module, outputs: tuple[str, ...], *counted: str) -> Part:
    """A network that looks at single frames: all of it is one model."""
    return Part(
        model=model,
        module=module,
        tensor="frames",
        dims=FRAME,
        outputs=outputs,
        counted=counted,
        quantised=True,
    )


def fan_parts(num_classes: int, variant: str, preprocessing: Preprocessing) -> tuple[Part, ...]:
    """FAN's two halves; its score-fusion baseline too, where a checkpoint has its classifier."""
    features = (NUM_FEATURES,)
    attention = FrameAttention(num_classes, cast(Variant, variant))
    return (
        Part(
            model="fan_embedder",
            module=FrameEmbedder(preprocessing),
            tensor="frames",
            dims=FRAME,
            outputs=("features",),
            quantised=True,
            # Symmetric int8 has 127 levels for what is never below zero, a CPU's uint8 has 255:
            # docs/measured/quantisation.md says what that costs.
            spared_by_tensorrt=EARLY,
        ),
        Part(
            model="fan_attention",
            module=attention,
            tensor="features",
            dims=features,
            outputs=ClipAnswer._fields,
        ),
        Part(
            model="fan_classifier",
            module=FrameClassifier(num_classes),
            tensor="features",
            dims=features,
            outputs=("frame_logits",),
            counted=("frame_logits",),
            optional=True,
        ),
        fusion(),
    )


def dan_parts(num_classes: int, _: str, preprocessing: Preprocessing) -> tuple[Part, ...]:
    """DAN."""
    module = Dan(num_classes, preprocessing)
    return frames_part("dan_frames", module, DanAnswer._fields, "frame_logits"), fusion()


def ran_parts(num_classes: int, variant: str, preprocessing: Preprocessing) -> tuple[Part, ...]:
    """RAN."""
    module = Ran(num_classes, preprocessing, variant)
    return frames_part("ran_frames", module, RanAnswer._fields, *RanAnswer._fields), fusion()


def deep_emotion_parts(num_classes: int, _: str, preprocessing: Preprocessing) -> tuple[Part, ...]:
    """Deep-Emotion."""
    module = DeepEmotion(num_classes, preprocessing)
    outputs = DeepEmotionAnswer._fields
    part = frames_part("deep_emotion_frames", module, outputs, "frame_logits")
    return replace(part, spared=SPARED), fusion()


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network(
            name="fan",
            title="FAN",
            parts=fan_parts,
            classifiers=("pred_fc2.bias", "pred_fc1.bias", "fc.bias"),
            ensembles={
                "fan": ("fan_embedder", "fan_attention"),
                "fan_fusion": ("fan_embedder", "fan_classifier", "score_fusion"),
            },
            num_classes=7,
            variants=("relation", "self"),
            pools=True,
            trainer="clips",
            recipe=Recipe(phases="64x10,96x14,112x6"),
        ),
        Network(
            name="dan",
            title="DAN",
            parts=dan_parts,
            classifiers=("bn.bias",),
            ensembles={"dan": ("dan_frames", "score_fusion")},
            preprocessing=IMAGENET,
            rename=rename_dan,
            trainer="stills",
            recipe=Recipe(phases="96x8,112x4"),
        ),
        Network(
            name="ran",
            title="RAN",
            parts=ran_parts,
            classifiers=("fc.bias",),
            ensembles={"ran": ("ran_frames", "score_fusion")},
            variants=tuple(VARIANTS),
            trainer="stills",
            recipe=Recipe(phases="112x8", learning_rate=0.01),
        ),
        Network(
            name="deep_emotion",
            title="Deep-Emotion",
            parts=deep_emotion_parts,
            classifiers=("fc2.bias",),
            ensembles={"deep_emotion": ("deep_emotion_frames", "score_fusion")},
            preprocessing=Preprocessing("gray", (0.5,) * 3, (0.5,) * 3, SIZE),
            sizes=(SIZE,),
            colors=("gray",),
            trainer="stills",
            # Adam as its paper does: with SGD it named 30 % right after six epochs. No weight
            # decays: the network is too small to learn its pictures by heart.
            recipe=Recipe(phases="48x60", adam=True, learning_rate=0.002),
        ),
    )
}
