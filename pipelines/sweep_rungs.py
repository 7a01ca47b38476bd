"""Early stopping by ASHA, among trials of the same number of tiers only.

After its first phase a curriculum of three tiers has seen a third of its data, one of a single tier all of it: at equal
tokens they are not at the same place. So every number of tiers has rungs of its own.
"""

from __future__ import annotations

from typing import Any

from pipelines.sweep_spec import SweepSpec

_NO_END = 10**15
"""Tokens at which ASHA would end a trial by itself: never."""


def per_tiers(spec: SweepSpec, objective: str, tokens: str) -> Any:
    """A scheduler of Tune that hands every trial to the ASHA of its number of tiers.

    Args:
        spec: The sweep's.
        objective: The reported metric's name.
        tokens: The reported name of the training tokens so far.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    class PerTiers(FIFOScheduler):  # type: ignore[misc]  # Tune's classes carry no types
        """Delegates by the number of tiers in a trial's configuration."""

        def __init__(self) -> None:
            super().__init__()
            self.groups: dict[int, Any] = {}

        def _group(self, trial: Any) -> Any:
            config = trial.config
            tiers = int(config["trial"]["tiers"] if "trial" in config else config["tiers"])
            if tiers not in self.groups:
                self.groups[tiers] = AsyncHyperBandScheduler(
                    time_attr=tokens,
                    metric=objective,
                    mode=spec.objective.mode,
                    max_t=_NO_END,
                    grace_period=spec.stop.grace_tokens,
                    reduction_factor=spec.stop.reduction,
                    stop_last_trials=False,
                )
            return self.groups[tiers]

        def set_search_properties(self, metric: str | None, mode: str | None, **_: Any) -> bool:
            return True

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._group(trial).on_trial_add(tune_controller, trial)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            self._group(trial).on_trial_error(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision: str = self._group(trial).on_trial_result(tune_controller, trial, result)
            return decision

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self._group(trial).on_trial_complete(tune_controller, trial, result)

        def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
            self._group(trial).on_trial_remove(tune_controller, trial)

        def debug_string(self) -> str:
            return "; ".join(f"{tiers} tiers: {group.debug_string()}" for tiers, group in sorted(self.groups.items()))

    return PerTiers()
