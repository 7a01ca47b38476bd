"""The learning curve of a phase, and the end of one whose loss is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Point = dict[str, float]
_RENAMED = {"num_tokens": "tokens"}
_LEFT_OUT = frozenset({"epoch", "step_time", "total_flos"})


class Diverged(Exception):
    """The loss or its gradient is not a number; nothing of that step has gone into the weights.

    Attributes:
        step: The optimizer step, from 1.
        learning_rate: What the step would have used.
        what: The value, in words.
        rows: The rows of its batch, of all workers.
    """

    def __init__(self, step: int, learning_rate: float, what: str, rows: Sequence[int]) -> None:
        super().__init__(f"{what} at step {step} (learning rate {learning_rate:.3g})")
        self.step = step
        self.learning_rate = learning_rate
        self.what = what
        self.rows = list(rows)


class Curve(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Keeps the learning curve and passes every point on.

    Args:
        points: The curve so far, of earlier attempts.
        tokens: Tokens seen up to each step, where they are known beforehand; else the trainer's count is taken.
        on_point: Told every new point.

    Attributes:
        points: {"step", "loss" (nats per response token, or the method's own), "learning_rate", "grad_norm", "tokens",
            "time" (Unix)} and what the method's trainer logs beside them.
    """

    def __init__(self, points: list[Point], tokens: Sequence[int] | None, on_point: Callable[[Point], None]) -> None:
        self.points = points
        self._tokens = tokens
        self._before = points[-1]["tokens"] if points else 0.0
        self._on_point = on_point

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called after every optimizer step."""
        if logs is None or "loss" not in logs:
            return
        told = {
            _RENAMED.get(name, name): float(value)
            for name, value in logs.items()
            if name not in _LEFT_OUT and isinstance(value, int | float) and math.isfinite(value)
        }
        tokens = told.get("tokens", 0.0) + self._before
        if self._tokens is not None:
            tokens = float(self._tokens[state.global_step - 1])
        point = {"grad_norm": 0.0, **told, "step": float(state.global_step), "tokens": tokens, "time": time.time()}
        self.points.append(point)
        self._on_point(point)
