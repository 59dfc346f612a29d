"""The arrow without a GPU: ONNX files -> model_repository/<model>/1/, where Triton reads them.

    build/fp32/fan_embedder.onnx      ->  model_repository/fan_embedder/1/model.onnx
    build/int8_cpu/fan_embedder.onnx  ->  model_repository/fan_embedder/1/model_int8.onnx
    build/fp32/fan_attention.onnx     ->  model_repository/fan_attention/1/model.onnx
    the checkpoint's labels           ->  labels.txt of the two models that give probabilities

The configs there are static and in git; this only adds what they name.
"""

from pathlib import Path

from export.errors import ExportError
from export.files import write_whole

LABELLED_MODELS = ("fan", "fan_attention")  # Triton looks for labels beside each config


def install_model(onnx_path: Path, repository: Path, filename: str = "model.onnx") -> Path:
    """Put `<model>.onnx` where `<model>`'s config expects it; a reader never sees half a file."""
    model = repository / onnx_path.stem
    if not (model / "config.pbtxt").is_file():
        raise ExportError(f"{model} has no config.pbtxt; expected the repository of this project")
    target = model / "1" / filename
    write_whole(target, onnx_path.read_bytes())
    return target


def install_labels(labels: tuple[str, ...], repository: Path) -> list[Path]:
    """Write labels.txt, one emotion a line in the order of the logits, for each labelled model."""
    targets = [repository / model / "labels.txt" for model in LABELLED_MODELS]
    for target in targets:
        write_whole(target, "".join(f"{label}\n" for label in labels).encode())
    return targets
