"""Progress of a training: a line for each epoch, and a bar over the whole run in a terminal."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, Timer
from torch import Tensor

from recsys.core.progress import Progress, duration, now, say
from recsys.experiments.run_table import is_maximized

# Seconds after which a long epoch, or a validation within it, has a line of its own.
MINUTE = 60.0


class FitProgress(ProgressBar):
    """Writes loss, validation metric, best so far, speed and time left after each epoch, and every minute.

    Args:
        metric: validation metric that selects the checkpoint.
        what: name of the work in lines and bars.
    """

    def __init__(self, metric: str, what: str = "training") -> None:
        super().__init__()
        self.metric, self.what = metric, what
        self._is_shown = True
        self._fit: Progress | None = None
        self._evaluation: Progress | None = None
        self._best: tuple[float, int] | None = None

    def disable(self) -> None:
        """Show nothing; called in all processes but the first."""
        self._is_shown = False

    def enable(self) -> None:
        """Show progress again."""
        self._is_shown = True

    def print(self, *args: Any, **settings: Any) -> None:  # noqa: ARG002
        """Write a line of another callback."""
        if self._is_shown:
            say(" ".join(map(str, args)))

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far and its epoch."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best value of earlier starts of the run."""
        self._best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Begin the bar of the run."""
        # A run that continues within an epoch does not begin the epoch again.
        self.on_train_epoch_start(trainer, module)
        if self._is_shown:
            self._fit = Progress(self.what, _total_steps(trainer), first=MINUTE)
            self._first_step = self._fit.done = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:  # noqa: ARG002
        """Begin to count the epoch."""
        self._losses: list[Tensor | float] = [0.0]
        self._batches, self._targets, self._epoch_begin, self._validated = 0, module.num_targets, now(), 0.0
        self._score: float | None = None

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Count a step."""
        if self._fit is None:
            return
        # Losses are added on their device and read only when a line is due, because reading waits for the device.
        self._losses[0] += outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._batches += 1
        self._fit.done = trainer.global_step
        self._fit.show(lambda: self._line(trainer, module))

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Write the line of the epoch."""
        if self._fit is not None:
            self._fit.say(f"{self.what}: {self._line(trainer, module, of_step=False)}")

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:  # noqa: ARG002
        """Remove the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Remove the bars."""
        self._close()

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:  # noqa: ARG002
        """Begin a validation, within an epoch or alone."""
        self._begin_evaluation("validation", sum(map(int, trainer.num_val_batches)))

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:  # noqa: ARG002
        """Remember the metric, if this validation is part of a training."""
        seconds = self._end_evaluation()
        value = trainer.callback_metrics.get(self.metric)
        if self._fit is not None and value is not None:
            self._validated += seconds
            self._score = float(value)
            sign = 1 if is_maximized(self.metric) else -1
            if self._best is None or sign * self._score > sign * self._best[0]:
                self._best = self._score, trainer.current_epoch + 1

    def on_test_start(self, trainer: L.Trainer, module: Any) -> None:  # noqa: ARG002
        """Begin the evaluation on the test part."""
        self._begin_evaluation("test", sum(map(int, trainer.num_test_batches)))

    def on_test_batch_end(self, *_: Any, **settings: Any) -> None:  # noqa: ARG002
        """Count a batch."""
        if self._evaluation is not None:
            self._evaluation.advance()

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: L.Trainer, module: Any) -> None:  # noqa: ARG002
        """Remove the bar."""
        self._end_evaluation()

    def _line(self, trainer: L.Trainer, module: Any, *, of_step: bool = True) -> str:
        """Return the line of an epoch, or of a step within it."""
        assert self._fit is not None
        per_epoch, total = _steps_per_epoch(trainer), self._fit.total
        epochs = "" if total is None else f" of {math.ceil(total / per_epoch)}"
        words = f"epoch {trainer.current_epoch + 1}{epochs}"
        # The bar of a terminal has little room, and the lines of the epochs above it have the rest.
        is_bar = of_step and self._fit.has_bar
        if of_step and not is_bar:
            steps = "" if total is None else f" of {total:,.0f}"
            words += f", step {trainer.global_step:,}{steps}"
        parts = [f"loss {float(self._losses[0]) / self._batches:.4f}"] if self._batches else []
        if self._best is not None and not is_bar:
            best = f"best {self._best[0]:.4f} in epoch {self._best[1]}"
            is_new = self._score is not None and not of_step
            parts.append(f"{self.metric} {self._score:.4f} ({best})" if is_new else f"{self.metric} {best}")
        if not is_bar:
            training = max(now() - self._epoch_begin - self._validated, 1e-9)
            parts.append(f"{(module.num_targets - self._targets) / training:,.0f} targets/s")
        left = self._seconds_left(trainer)
        if left:
            stops_early = bool(trainer.early_stopping_callbacks)
            parts.append(f"{'at most ' if stops_early else ''}{duration(left)} left")
        return ", ".join([words, *parts])

    def _seconds_left(self, trainer: L.Trainer) -> float | None:
        """Return the time to the last step of the run at its speed so far, or to its time limit."""
        assert self._fit is not None
        bounds = [timer.time_remaining() for timer in _callbacks(trainer) if isinstance(timer, Timer)]
        made = trainer.global_step - self._first_step
        if self._fit.total is not None and made:
            bounds.append(self._fit.seconds / made * max(self._fit.total - trainer.global_step, 0))
        return min((bound for bound in bounds if bound is not None), default=None)

    def _begin_evaluation(self, what: str, num_batches: int) -> None:
        if self._is_shown:
            self._evaluation = Progress(what, num_batches, unit="batches", first=MINUTE)

    def _end_evaluation(self) -> float:
        """Remove the bar of an evaluation and return its seconds."""
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is None:
            return 0.0
        evaluation.close()
        return evaluation.seconds

    def _close(self) -> None:
        self._end_evaluation()
        if self._fit is not None:
            self._fit.close()
            self._fit = None


def _steps_per_epoch(trainer: L.Trainer) -> int:
    return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))


def _total_steps(trainer: L.Trainer) -> float | None:
    """Return the number of steps after which training ends at the latest; None if only time or patience ends it."""
    steps = float(trainer.estimated_stepping_batches)
    return steps if math.isfinite(steps) else None


def _callbacks(trainer: Any) -> list[L.Callback]:
    """Return the callbacks, which Lightning sets without declaring them."""
    return list(trainer.callbacks)
