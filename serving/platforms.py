"""Platforms: the ways to run one model repository.

    model_repository/*/config.pbtxt              platform trt_fp16
    model_repository/*/configs/<platform>.pbtxt  every other; a model without one keeps config.pbtxt

Read here as Triton reads them, so that a start that must fail fails before it, in one sentence.
Only networks that were exported are served: those that have a record of it (base/exported.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from base.exported import read_records
from serving import ServingError

DEFAULT = "trt_fp16"  # what Triton serves where no platform is named


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One way to run the repository.

    Args:
        name: as in configs/<name>.pbtxt, or "trt_fp16".
        repository: the folder of models.
        networks: the ensembles to offer: of what was exported and is built for this platform.
        left_out: exported ensembles that are not, and what each lacks, relative to the
            repository's parent.
        models: to load: those, and what they are made of.
        backends: the backends those models name, ensembles aside.
        artefacts: the built files that they load.
    """

    name: str
    repository: Path
    networks: tuple[str, ...]
    left_out: Mapping[str, Sequence[Path]]
    models: tuple[str, ...]
    backends: frozenset[str]
    artefacts: tuple[Path, ...]

    @property
    def needs_tensorrt(self) -> bool:
        """Whether it needs a GPU, and so the container."""
        return "tensorrt" in self.backends

    @property
    def missing(self) -> list[Path]:
        """The artefacts that are not built yet, relative to the repository's parent."""
        parent = self.repository.parent
        return [path.relative_to(parent) for path in self.artefacts if not path.is_file()]


def platform_names(repository: Path) -> list[str]:
    """Name every platform of the repository, the default first."""
    return [DEFAULT, *sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})]


def read_config(model: Path, platform: str) -> model_config_pb2.ModelConfig:
    """Read the file that Triton would for a model's folder and a platform."""
    path = model / "configs" / f"{platform}.pbtxt"
    if not path.is_file():
        path = model / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ServingError(f"{path}: {error}") from error


def read_platform(repository: Path, name: str) -> Platform:
    """Read one platform's configs.

    Raises:
        ServingError: for a name that no model has; Triton would quietly serve the default.
    """
    names = platform_names(repository)
    if name not in names:
        raise ServingError(
            f"{name!r} is no platform of {repository.name}/; it has {', '.join(names)}"
        )
    folders = sorted(path.parent for path in repository.glob("*/config.pbtxt"))
    configs = {folder.name: read_config(folder, name) for folder in folders}
    exported = exported_ensembles(repository, configs)
    lacking = {
        ensemble: [
            path.relative_to(repository.parent)
            for path in artefacts_of(composed_of([ensemble], configs), configs, repository)
            if not path.is_file()
        ]
        for ensemble in exported
    }
    # Where nothing is built, what is missing is told; where something is, that is served.
    built = [ensemble for ensemble in exported if not lacking[ensemble]]
    networks = built or exported
    models = composed_of(networks, configs)
    backends = {configs[model].backend for model in models} - {""}
    return Platform(
        name=name,
        repository=repository,
        networks=tuple(networks),
        left_out={ensemble: lacking[ensemble] for ensemble in exported if ensemble not in networks},
        models=tuple(models),
        backends=frozenset(backends),
        artefacts=artefacts_of(models, configs, repository),
    )


def artefacts_of(
    models: Iterable[str], configs: Mapping[str, model_config_pb2.ModelConfig], repository: Path
) -> tuple[Path, ...]:
    """Name the built files that models load; an ensemble has none of its own."""
    return tuple(
        repository / model / "1" / configs[model].default_model_filename
        for model in models
        if configs[model].platform != "ensemble"
    )


def exported_ensembles(
    repository: Path, configs: Mapping[str, model_config_pb2.ModelConfig]
) -> list[str]:
    """Name the ensembles that `videofer export` has filled; `fan` if there is none.

    What `fan` then lacks is told as missing.
    """
    recorded = {name for record in read_records(repository) for name in record.ensembles}
    return [model for model in configs if model in recorded] or ["fan"]


def composed_of(
    ensembles: Iterable[str], configs: Mapping[str, model_config_pb2.ModelConfig]
) -> list[str]:
    """Name ensembles and all the models that they are made of, each once, in order."""
    models: dict[str, None] = {}
    pending = list(ensembles)
    while pending:
        model = pending.pop()
        models[model] = None
        pending += [step.model_name for step in configs[model].ensemble_scheduling.step]
    return sorted(models)
