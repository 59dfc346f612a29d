"""The loop that both stages of training share.

    step number -> loss -> SGD or Adam -> exponential moving average -> saved state, log.csv

All that a step draws comes from `generator(seed, step)`, so a run that was killed goes on from its
last saved state to the weights it would have had: to the bit on a CPU with as many threads, and on
a GPU as far as its kernels add up in one order.
"""

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from base.errors import CheckpointError
from base.files import write_whole
from base.provenance import provenance
from networks.checkpoint import load_torch
from training import TrainingError

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

# A kill costs what was done since the last saved state: so many seconds, and what is left until the
# next row of the log.
SAVE_SECONDS = 120.0
LOG_STEPS = 50  # a row of log.csv is the mean of so many
RECIPE_VERSION = 8  # changes with any code that changes what a run ends with


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a run's result, beside its data and its first weights.

    Args:
        steps: of the optimiser, in all.
        learning_rate: at the top of the schedule: a straight rise, then half a cosine to 0.
        rise: share of the steps in which the learning rate rises.
        ema: decay of the weights' moving average, a step.
        seed: of all that is drawn.
        adam: rather than SGD with momentum.
        sam: how far uphill a step takes its gradient, in weights' units; 0 for where it stands.
    """

    steps: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    rise: float = 0.05
    ema: float = 0.999
    seed: int = 0
    adam: bool = False
    sam: float = 0.0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        top = max(1, round(self.rise * self.steps))
        if step < top:
            return self.learning_rate * (step + 1) / top
        return (
            self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - top) / (self.steps - top)))
        )


def generator(device: torch.device, *numbers: int) -> Generator:
    """Make a generator that depends on `numbers` (seed, epoch, step, ...) alone."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return Generator(device).manual_seed(seed)


def seed_dropout(seed: int, step: int) -> None:
    """Fix what dropout draws in a step: it takes no generator of its own."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)


def epoch_of(num: int, batch: int) -> int:
    """The steps of an epoch, one at least."""
    return max(1, num // batch)


def choose_device(name: str | None = None) -> torch.device:
    """Take the device named, else a GPU if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name}: not usable here ({error}); --device cpu is") from error
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device {name}: --device takes cpu, cuda or cuda:<number>")
    torch.backends.cudnn.deterministic = True
    torch.set_flush_denormal(True)  # averages of dead weights would be slow to add on a CPU
    return device


def place(model: M, device: torch.device) -> M:
    """Put a model onto a device, its convolutions' weights laid out as they run fastest."""
    model.to(device)
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return model


def autocast(device: torch.device) -> torch.autocast:
    """Compute in half the bits where the hardware is made for it: bfloat16, else FP16 on a GPU.

    For a network alone: coordinates and sums over frames need float32.
    """
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.autocast("cuda", torch.bfloat16 if quick else torch.float16)
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=quick)


class Fit:
    """One run of the optimiser over a model, with what is needed to go on after a kill.

    Args:
        folder: where `state.pt` and `log.csv` are kept.
        identity: what else decides the result (data, sizes, ...): a saved state of another
            identity is refused rather than continued.
        factors: part of a parameter's name -> factor of its learning rate; 1 for the others.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        folder: Path,
        identity: dict[str, Any],
        factors: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.folder = folder
        self.device = next(model.parameters()).device
        half = autocast(self.device)
        self.identity = {
            **asdict(recipe),
            **identity,
            "factors": repr(dict(factors)),
            "version": RECIPE_VERSION,
            "device": self.device.type,
            "computes in": str(half.fast_dtype if half._enabled else torch.float32),
        }
        # Who computed: one line a start, as a run may be continued elsewhere.
        self.made = [provenance("torch")]
        self.average = {
            k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()
        }
        groups = self.groups(factors)
        self.optimizer: torch.optim.Optimizer
        if recipe.adam:
            self.optimizer = torch.optim.Adam(groups, lr=0.0, fused=True)
        else:
            self.optimizer = torch.optim.SGD(
                groups, lr=0.0, momentum=recipe.momentum, nesterov=True, fused=True
            )
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=half.fast_dtype is torch.float16
        )
        self.step = 0
        self.rows: list[dict[str, float | int]] = []

    def groups(self, factors: Mapping[str, float]) -> list[dict[str, Any]]:
        """Only weights decay; biases and BatchNorm's parameters do not."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            decay = self.recipe.weight_decay if parameter.ndim in (2, 4) else 0.0
            factor = next((f for part, f in factors.items() if part in name), 1.0)
            groups.setdefault((factor, decay), []).append(parameter)
        return [
            {"params": chosen, "weight_decay": decay, "factor": factor}
            for (factor, decay), chosen in groups.items()
        ]

    def run(
        self,
        loss_at: Callable[[int], Tensor],
        figures_at: Callable[[int], dict[str, float]] | None = None,
    ) -> None:
        """Train to the last step, from the saved state if there is one.

        Args:
            loss_at: gives the loss of a step.
            figures_at: called after every step; the figures it gives, if any, go into the log.

        Raises:
            TrainingError: for a loss that is not finite.
        """
        self.resume()
        saved = time.monotonic()
        losses: list[Tensor] = []
        progress = tqdm(
            total=self.recipe.steps,
            initial=self.step,
            desc=self.folder.name,
            unit="step",
            mininterval=5,
            smoothing=0.05,
        )
        while self.step < self.recipe.steps:
            losses.append(self.advance(loss_at))
            self.step += 1
            progress.update()
            row = figures_at(self.step) if figures_at else {}
            if row or self.step % LOG_STEPS == 0 or self.step == self.recipe.steps:
                self.log(losses, row)
                losses = []
                progress.set_postfix(loss=f"{self.rows[-1]['loss']:.3f}")
                # Only here, where no loss waits to be logged: a resumed run writes the same log.
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
        progress.close()
        self.save()

    def advance(self, loss_at: Callable[[int], Tensor]) -> Tensor:
        """Do one step; give its loss."""
        self.model.train()
        rate = self.recipe.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss = self.differentiate(loss_at)
        if self.recipe.sam:
            with self.uphill():
                self.differentiate(loss_at)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.follow()
        return loss

    def differentiate(self, loss_at: Callable[[int], Tensor]) -> Tensor:
        """Compute a step's loss, and its gradients where the weights are."""
        loss = loss_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        return loss.detach()

    @contextmanager
    def uphill(self) -> Iterator[None]:
        """Stand `recipe.sam` further up the gradient; then where it was, gradients kept.

        Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving
        Generalization", ICLR 2021.
        """
        gradients = {p: p.grad for p in self.model.parameters() if p.grad is not None}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        # BatchNorm's statistics too are those of where the weights stand.
        moved = [*gradients, *self.model.buffers()]
        kept = [tensor.detach().clone() for tensor in moved]
        with torch.no_grad():
            for weight, gradient in gradients.items():
                weight.add_(gradient * (self.recipe.sam / (norm + 1e-12)))
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(moved, kept, strict=True):
                    tensor.copy_(value)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights; quicker at first, when they are still far."""
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, [state[k] for k in self.average], 1 - decay)

    def log(self, losses: list[Tensor], row: dict[str, float]) -> None:
        """Add a row to the log, with the mean of the losses since the last one."""
        loss = torch.stack(losses).mean().item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"{self.folder.name}: the loss is {loss} at step {self.step}; is every picture of "
                f"the data a face? ({self.folder / 'log.csv'} has the losses before)"
            )
        rate = self.recipe.rate_at(self.step - 1)
        self.rows.append({"step": self.step, "rate": round(rate, 7), "loss": round(loss, 5), **row})

    def save(self) -> None:
        """Write state and log, each whole or not at all."""
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self.identity,
                "step": self.step,
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rows": self.rows,
                "made": self.made,
            },
            buffer,
        )
        write_whole(self.folder / "state.pt", buffer.getvalue())
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(k for row in self.rows for k in row)))
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.folder / "log.csv", text.getvalue().encode())

    def resume(self) -> None:
        """Take up the saved state, if there is one.

        Raises:
            TrainingError: for one that is unreadable or of a run with other settings.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            state = load_torch(path, self.device)
            found, step, rows = state["identity"], state["step"], state["rows"]
            made = list(dict.fromkeys([*state["made"], *self.made]))
        except CheckpointError as error:
            raise TrainingError(f"{path}: {error}; delete it to begin anew") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{path}: not a state that was saved here; delete it to begin anew"
            ) from error
        differences = [
            f"{k} {found.get(k)} (now {self.identity.get(k)})"
            for k in self.identity | found
            if found.get(k) != self.identity.get(k)
        ]
        if differences:
            raise TrainingError(
                f"{path} belongs to a run with other settings: {', '.join(differences)}; "
                "name another folder with --out, or delete this one"
            )
        self.step, self.rows, self.made = step, rows, made
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        logger.info("%s: going on from step %d of %d", path, self.step, self.recipe.steps)

    def averaged(self) -> dict[str, Tensor]:
        """A copy of the weights to serve: the moving average."""
        return {k: v.clone() for k, v in {**self.model.state_dict(), **self.average}.items()}
