"""transformers' Trainer with our loss: Trainer owns the loop, the optimizer, the schedule and the checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from edgecompress.distill.curve import Point
from edgecompress.distill.examples import Example, ExampleSet, Order, collate
from edgecompress.distill.objective import Objective
from edgecompress.distill.rounding import Rounding
from edgecompress.distill.work import WorkFolder
from edgecompress.errors import RecipeError
from edgecompress.export.interrupts import Interrupts
from edgecompress.types.distill import TrainingRecipe

Show = Callable[[str], None]

_CURVE_POINTS = 200
_CHECKPOINTS = 10  # of a run
_MOST_STEPS_BETWEEN_REFRESHES = 50
_PROBED_STEPS = 6
_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Intervals in steps, each a multiple of the previous one, so a resumed run continues exactly."""

    log: int
    refresh: int
    save: int

    @staticmethod
    def of(steps: int) -> Pace:
        refresh = min(max(steps // _CHECKPOINTS, 1), _MOST_STEPS_BETWEEN_REFRESHES)
        most = max(steps // _CURVE_POINTS, 1)
        log = max(n for n in range(1, refresh + 1) if refresh % n == 0 and n <= most)
        return Pace(log=log, refresh=refresh, save=refresh * max(steps // _CHECKPOINTS // refresh, 1))


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Everything a training needs besides the student."""

    examples: Sequence[Example]
    order: npt.NDArray[np.int64]  # [steps * batch]
    pad_token_id: int
    objective: Objective
    recipe: TrainingRecipe
    learning_rate: float
    rounding: Rounding | None

    @property
    def steps(self) -> int:
        return len(self.order) // self.recipe.batch


class DistillTrainer(Trainer):  # type: ignore[misc]
    """``curve`` covers all steps, including those before a resume."""

    def __init__(
        self, student: torch.nn.Module, lesson: Lesson, work: WorkFolder, show: Show, interrupts: Interrupts
    ) -> None:
        recipe, pace = lesson.recipe, Pace.of(lesson.steps)
        arguments = TrainingArguments(
            output_dir=str(work.path),
            max_steps=lesson.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=lesson.learning_rate,
            lr_scheduler_type=_SCHEDULERS[recipe.schedule],
            warmup_steps=math.ceil(recipe.warmup * lesson.steps),
            weight_decay=recipe.weight_decay,
            seed=recipe.seed,
            logging_steps=pace.log,
            logging_nan_inf_filter=False,
            save_steps=pace.save,
            save_total_limit=2,  # the older one is kept until the newer one is complete
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        )
        self._lesson, self._pace = lesson, pace
        self._sums: dict[str, float] = {}
        super().__init__(
            model=student,
            args=arguments,
            data_collator=partial(collate, pad_token_id=lesson.pad_token_id),
            train_dataset=ExampleSet(lesson.examples),
            callbacks=[_Progress(show, work, interrupts)],
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One pass over a fixed order, so that a resumed run skips exactly the seen examples."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._lesson.recipe.batch,
            sampler=Order(self._lesson.order),
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Raises RecipeError if the loss is not finite."""
        step, rounding = self.state.global_step, self._lesson.rounding
        if rounding is not None and step % self._pace.refresh == 0:
            rounding.refresh()
        parts = self._lesson.objective(model, inputs)
        loss = self._lesson.objective.total(parts)
        if not torch.isfinite(loss):
            worst = [name for name, value in parts.items() if not torch.isfinite(value)]
            raise RecipeError(
                f"the loss is {loss.item()} at step {step + 1} ({', '.join(worst) or 'the sum'}): training diverged",
                hint=f"Use a learning_rate below {self._lesson.learning_rate:g} in [training], or a longer warmup.",
            )
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.item()
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's own entry, plus the mean of each term since the last entry."""
        if "loss" in logs:
            logs |= {f"term_{name}": total / self._pace.log for name, total in self._sums.items()}
            self._sums = {}
        super().log(logs, start_time)

    def curve(self) -> list[Point]:
        rows = [row for row in self.state.log_history if "loss" in row]
        return [
            Point(
                step=int(row["step"]),
                loss=float(row["loss"]),
                learning_rate=float(row["learning_rate"]),
                terms={key[5:]: float(value) for key, value in row.items() if key.startswith("term_")},
            )
            for row in rows
        ]


class _Progress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, show: Show, work: WorkFolder, interrupts: Interrupts) -> None:
        self._show, self._work, self._interrupts = show, work, interrupts
        self._before = work.seconds
        self._started, self._first = time.perf_counter(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started, self._first = time.perf_counter(), state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._interrupts.raise_lost()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._work.spent(self._before + time.perf_counter() - self._started)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in (logs or {}):
            return
        done, left = state.global_step - self._first, state.max_steps - state.global_step
        eta = (time.perf_counter() - self._started) / max(done, 1) * left
        self._show(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4f}, {clock(eta)} left")


def clock(seconds: float) -> str:
    """1:05, or 2:03:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def train(
    student: torch.nn.Module, lesson: Lesson, work: WorkFolder, show: Show, interrupts: Interrupts
) -> list[Point]:
    """Train the student in place, from the last checkpoint in ``work`` if any. Returns the loss curve."""
    with _dropout(student, lesson.recipe.dropout), _rounded(lesson.rounding):
        trainer = DistillTrainer(student, lesson, work, show, interrupts)
        last = work.last_checkpoint()
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer.curve()


def _rounded(rounding: Rounding | None) -> Any:
    return rounding.applied() if rounding is not None else nullcontext()


@contextmanager
def _dropout(student: torch.nn.Module, share: float) -> Iterator[None]:
    """Set dropout inside the block, in the modules and the config."""
    config: Any = student.config
    said = {
        key: value
        for key, value in vars(config).items()
        if "drop" in key and key != "layerdrop" and isinstance(value, float)
    }
    modules = [module for module in student.modules() if isinstance(module, torch.nn.Dropout)]
    before = [module.p for module in modules]
    attributes = [
        (module, name, value)
        for module in student.modules()
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float)
    ]
    try:
        for key in said:
            setattr(config, key, share)
        for module in modules:
            module.p = share
        for holder, name, _ in attributes:
            setattr(holder, name, share)
        yield
    finally:
        for key, value in said.items():
            setattr(config, key, value)
        for module, value in zip(modules, before, strict=True):
            module.p = value
        for holder, name, value in attributes:
            setattr(holder, name, value)


def steps_in(student: torch.nn.Module, lesson: Lesson, minutes: float, show: Show) -> int:
    """Steps that this machine makes in that time, measured with a few steps on a copy."""
    show("measuring this machine's speed")
    recipe = lesson.recipe
    probe = copy.deepcopy(student).train()
    rounding = lesson.rounding.of(probe) if lesson.rounding is not None else None
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-6)
    times, device = [], next(probe.parameters()).device
    with _dropout(probe, recipe.dropout), _rounded(rounding):
        for step in range(min(_PROBED_STEPS, lesson.steps)):
            rows = lesson.order[step * recipe.batch : (step + 1) * recipe.batch]
            cpu = collate([(int(i), lesson.examples[int(i)]) for i in rows], lesson.pad_token_id)
            batch = {name: tensor.to(device) for name, tensor in cpu.items()}
            started = time.perf_counter()
            lesson.objective.total(lesson.objective(probe, batch)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - started)
    return max(int(60 * minutes / (sum(times[1:]) / len(times[1:]) if times[1:] else times[0])), 1)
