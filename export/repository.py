"""The arrow without a GPU: ONNX files -> model_repository/<model>/1/, where Triton reads them.

    build/fp32/<model>.onnx      ->  model_repository/<model>/1/model.onnx
    build/int8_cpu/<model>.onnx  ->  model_repository/<model>/1/model_int8.onnx
    the checkpoint's labels      ->  labels.txt of the models that give probabilities

The configs there are static and in git; this only adds what they name. An ensemble with labels is
one that was exported: `serving` offers no other.
"""

from collections.abc import Collection
from pathlib import Path

from base.errors import ExportError
from base.files import write_whole

LABELS_FILE = "labels.txt"  # label_filename in the configs


def install_model(onnx_path: Path, repository: Path, filename: str = "model.onnx") -> Path:
    """Put `<model>.onnx` where `<model>`'s config expects it; a reader never sees half a file."""
    check_model(repository / onnx_path.stem)
    target = repository / onnx_path.stem / "1" / filename
    write_whole(target, onnx_path.read_bytes())
    return target


def check_model(model: Path) -> None:
    """Refuse a folder that is no model's."""
    if not (model / "config.pbtxt").is_file():
        raise ExportError(f"{model} has no config.pbtxt; expected the repository of this project")


def install_labels(
    labels: tuple[str, ...], models: Collection[str], repository: Path
) -> list[Path]:
    """Write labels.txt, one emotion a line in the order of the logits, where a config names it.

    Triton looks for labels beside each config, an ensemble's and that of the model behind it.
    """
    targets = []
    for model in models:
        check_model(repository / model)
        if f'"{LABELS_FILE}"' in (repository / model / "config.pbtxt").read_text():
            targets.append(repository / model / LABELS_FILE)
    for target in targets:
        write_whole(target, "".join(f"{label}\n" for label in labels).encode())
    return targets
