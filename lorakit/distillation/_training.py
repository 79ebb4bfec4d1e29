"""The training of a distilled merge: one epoch after the other, the best one kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..applying import applied
from ..factors import LoraFactors
from ..linalg import truncate
from ._checkpoint import Checkpoint
from ._inputs import Rows, in_order, shuffled, take
from ._split import Inputs
from .heads import Heads
from .nearness import Teachers, nearness

BETAS = (0.9, 0.99)
WARM_UP = 0.06  # share of the steps
LARGEST_GRADIENT = 1.0  # norm, of all factors together
SAME = 1e-6  # loss in nats from which a merge that agrees on everything is its teachers, but for round-off
TEMPERATURE_RATE = 0.03  # learning rate of the logarithms of the temperatures, which does not fall

State = dict[str, Any]
Report = Callable[[int, int], None]  # called with (steps done, steps in all)


@dataclass(frozen=True)
class Course:
    """How long and how fast; see :class:`lorakit.DistillMerger`."""

    epochs: int
    learning_rate: float
    batch_size: int
    temperature: float | None
    patience: int | None
    seed: int
    prefix: str


class Training:
    """Factors that are being trained, with all that it takes to go on after each epoch.

    Parameters
    ----------
    model : torch.nn.Module
        The base model, in evaluation mode.
    start : Adapter
        The factors to begin with, in the dtype and on the device to train in.
    heads : Heads
        The heads of the teachers.
    names : list of str
        The teachers, in the order of the columns of ``inputs.weights``.
    teachers : Teachers
        What they said.
    inputs : Inputs
        What to train on.
    course : Course
        How long and how fast.
    """

    def __init__(
        self,
        model: nn.Module,
        start: Adapter,
        heads: Heads,
        names: list[str],
        teachers: Teachers,
        inputs: Inputs,
        course: Course,
    ) -> None:
        self.model, self.heads, self.names, self.teachers = model, heads, names, teachers
        self.inputs, self.course = inputs, course
        self.student = _trainable(start)
        self.factors = [half for factors in self.student.values() for half in factors]
        self.logs = torch.full((len(names),), course.temperature or 1.0, dtype=torch.float64).log().to(self.factors[0])
        self.logs.requires_grad_(course.temperature is None)
        groups = [{"params": self.factors, "lr": course.learning_rate}]
        if course.temperature is None:
            groups.append({"params": [self.logs], "lr": TEMPERATURE_RATE})
        self.optimiser = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
        self.steps_per_epoch = -(-len(inputs.trained) // course.batch_size)
        self.losses: list[float] = []
        self.agreements: list[float] = []
        self.best: State = {}
        self._since_best = 0

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        if not self.agreements:
            return False
        patience = self.course.patience
        waited = patience is not None and self._since_best >= patience
        # AdamW would take steps of full length along gradients that are nothing but round-off
        same = self.best["agreement"] == 1 and self.best["loss"] < SAME
        return same or waited or len(self.losses) >= self.course.epochs

    def run(self, report: Report, checkpoint: Checkpoint | None = None) -> None:
        """Train until there is nothing left to do, from the last epoch that a checkpoint has."""
        if checkpoint is not None and (state := checkpoint.read()) is not None:
            self.restore(state)
        if not self.agreements:
            self.measure_start()
        while not self.done:
            self.run_epoch(report)
            if checkpoint is not None:
                checkpoint.write(self.state())

    def measure_start(self) -> None:
        """Measure the agreement of the factors that training begins with."""
        with applied(self.model, self.student, prefix=self.course.prefix):
            self._judge()

    def run_epoch(self, report: Report) -> None:
        """Train on every input once, and measure."""
        epoch = len(self.losses)
        rng = np.random.RandomState(np.random.SeedSequence([self.course.seed, epoch]).generate_state(4))
        batches = shuffled(self.inputs.lengths, self.inputs.trained, self.course.batch_size, rng)
        total, steps = 0.0, self.course.epochs * self.steps_per_epoch
        with _frozen(self.model), torch.enable_grad(), applied(self.model, self.student, prefix=self.course.prefix):
            for step, rows in enumerate(batches, epoch * self.steps_per_epoch):
                total += self._step(rows, step, steps) * len(rows)
                report(step + 1, steps)
            self.losses.append(total / len(self.inputs.trained))
            self._judge()

    def _step(self, rows: Rows, step: int, steps: int) -> float:
        rate = min(1.0, (step + 1) / max(1.0, WARM_UP * steps)) * (1 - step / steps)
        self.optimiser.param_groups[0]["lr"] = self.course.learning_rate * rate
        self.optimiser.zero_grad()
        loss = self.gradients(rows)
        if not np.isfinite(loss):
            raise ValueError(f"the loss became {loss} in step {step + 1} of {steps}; lower learning_rate")
        torch.nn.utils.clip_grad_norm_(self.factors, LARGEST_GRADIENT)
        self.optimiser.step()
        return loss

    def gradients(self, rows: Rows) -> float:
        """Add the gradients of the loss on some inputs to those of the factors, and return the loss.

        The graph of one forward is gone before the next runs, so that memory does not grow with the forwards.
        """
        total = 0.0
        weights = self.inputs.weights[torch.from_numpy(rows)]  # (n, n_heads)
        for group in self.heads.groups(self.model, take(self.inputs.values, rows), len(rows)):
            loss: Tensor | float = 0.0
            temperatures = self._temperatures()
            for name, scores in group.items():
                if not scores.requires_grad:
                    raise ValueError(
                        f"the forward of {name!r} returned scores without gradients; it must return what the model "
                        "made as a tensor, not under torch.no_grad, and the model must use the adapters' modules"
                    )
                divergence = self.teachers.loss(name, rows, scores, temperatures[name])
                column = weights[:, self.names.index(name)].to(divergence)
                loss = loss + (column * divergence).mean() / len(self.names)
            assert isinstance(loss, Tensor)
            loss.backward()
            total += float(loss.detach())
        return total

    def _temperatures(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.logs.exp(), strict=True))

    def _judge(self) -> None:
        """Measure the agreement on the inputs that are held out, and keep the factors if it is the best so far."""
        batches = in_order(self.inputs.lengths, self.inputs.held_out, self.course.batch_size)
        weights = dict(zip(self.names, self.inputs.weights.unbind(dim=1), strict=True))
        found = nearness(
            self.model,
            self.heads,
            self.inputs.values,
            self.teachers,
            batches,
            temperatures=self._temperatures(),
            weights=weights,
        )
        self.agreements.append(found.agreement)
        self._since_best += 1
        # of equal agreements the one with the lower loss
        if not self.best or (found.agreement, -found.loss) > (self.best["agreement"], -self.best["loss"]):
            self._since_best = 0
            self.best = {
                "agreement": found.agreement,
                "loss": found.loss,
                "factors": [half.detach().clone() for half in self.factors],
                "logs": self.logs.detach().clone(),
            }

    def result(self) -> dict[str, LoraFactors]:
        """Return the best factors, by module."""
        halves = iter(self.best["factors"])
        return {module: LoraFactors(next(halves), next(halves)) for module in self.student}

    def best_temperatures(self) -> dict[str, float]:
        """Return the temperature of each head when the factors were best."""
        return dict(zip(self.names, self.best["logs"].exp().tolist(), strict=True))

    def state(self) -> State:
        """Return everything that the next epoch depends on."""
        return {
            "factors": [half.detach() for half in self.factors],
            "logs": self.logs.detach(),
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses,
            "agreements": self.agreements,
            "best": self.best,
            "since_best": self._since_best,
        }

    def restore(self, state: State) -> None:
        """Go back to what :meth:`state` returned."""
        with torch.no_grad():
            for half, saved in zip(self.factors, state["factors"], strict=True):
                half.copy_(saved)
            self.logs.copy_(state["logs"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses, self.agreements = list(state["losses"]), list(state["agreements"])
        self.best, self._since_best = state["best"], state["since_best"]


def _trainable(start: Adapter) -> Adapter:
    modules = {name: LoraFactors(*(half.clone() for half in factors)) for name, factors in start.items()}
    for factors in modules.values():
        for half in factors:
            half.requires_grad_()
    return Adapter(modules, name=start.name, kinds={name: info.kind for name, info in start.infos.items()})


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of the model's own parameters, which would take as much memory as the model."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_()


def balanced(start: Adapter, dtype: torch.dtype, device: Any) -> Adapter:
    """Return the start's updates in factors of equal norm, which depend on the updates alone."""
    modules = {}
    for name, factors in start.items():
        wide = factors.to(dtype)
        modules[name] = LoraFactors(*truncate(wide, wide.rank)).to(device=device)
    return Adapter(modules, name=start.name, kinds={name: info.kind for name, info in start.infos.items()})
