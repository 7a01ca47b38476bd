"""Ray Tune's side of a sweep: Tune proposes trials and ends them early, and sees what they come to.

A trial of Tune is a watcher: a process that asks for its trial's results and reports them as they come. It trains
nothing and holds no slot; the planner does the work (`sweep_run.py`). So Tune's searches and schedulers work as they
are, while trials share every phase they have in common.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.common.errand import INSIDE
from components.common.errors import UserError
from pipelines.sweep_rungs import per_tiers
from pipelines.sweep_spec import Sweep
from pipelines.sweep_suggest import suggester

OBJECTIVE = "objective"
TOKENS = "tokens"
_WATCHERS = 4
"""Trials that Tune watches at the same time where it may end some of them early, at least: it compares them."""
_WAIT = 30.0
"""Seconds that a watcher waits for news before it asks whether there are any."""
_HEAD = "node:__internal_head__"
"""A resource that the head has 1 of: watchers are beside the driver, where Tune's files are, and take no core from the
work, which may need every core of a node."""
_ENDING = 15.0
"""Seconds that Tune may take to end its trials."""
_FAILURES = 3
"""How often a watcher that was killed is started again."""


class Board:
    """What watchers ask and what they are told; an actor of Ray, as the two sides are different processes.

    Both sides wait here for news rather than asking again and again, which would take time from the training.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[str, dict[str, Any], int]] = []
        self._reports: dict[str, list[dict[str, float]]] = {}
        self._ended: set[str] = set()
        self._news: dict[str, asyncio.Event] = {}
        self._question = asyncio.Event()

    async def ask(self, watcher: str, config: dict[str, Any], seen: int) -> None:
        """A watcher has begun, or wants more than the reports it has seen."""
        self._asked.append((watcher, config, seen))
        self._question.set()

    async def take(self) -> list[tuple[str, dict[str, Any], int]]:
        """What was asked since this was last called; waits a while for something."""
        if not self._asked:
            self._question.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._question.wait(), _WAIT)
        asked, self._asked = self._asked, []
        return asked

    async def tell(self, watcher: str, reports: list[dict[str, float]], ended: bool) -> None:
        """All that a watcher can be told by now, and whether there will be no more."""
        self._reports[watcher] = reports
        if ended:
            self._ended.add(watcher)
        self._news.setdefault(watcher, asyncio.Event()).set()

    async def read(self, watcher: str, seen: int) -> tuple[list[dict[str, float]], bool]:
        """The reports after those seen, and whether there will be no more; waits a while for either."""
        news = self._news.setdefault(watcher, asyncio.Event())
        if not self._reports.get(watcher, [])[seen:] and watcher not in self._ended:
            news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), _WAIT)
        return self._reports.get(watcher, [])[seen:], watcher in self._ended


def watch(config: dict[str, Any]) -> None:
    """A trial of Tune: report what its trial comes to."""
    import ray
    from ray import tune

    board = ray.get_actor(config["board"])
    watcher, seen = tune.get_context().get_trial_id(), 0
    ray.get(board.ask.remote(watcher, config, seen))
    while True:
        reports, ended = ray.get(board.read.remote(watcher, seen))
        for report in reports:
            seen += 1
            tune.report(report)  # returns when Tune has decided that the trial goes on
            ray.get(board.ask.remote(watcher, config, seen))
        if ended and not reports:
            return  # a trial that failed has reported nothing, or less than it should


@dataclass(slots=True)
class Asked:
    """What a watcher wants.

    Attributes:
        watcher: Its name.
        config: What Tune gave it: `number`, or `params` of a proposed trial.
        seen: Reports that it has seen.
    """

    watcher: str
    config: dict[str, Any]
    seen: int


@dataclass(slots=True)
class Tuning:
    """Tune at work, in a thread.

    Args:
        sweep: The sweep.
        tiers: The number of tiers of every trial that is known, in order; None where Tune proposes the trials.
        slots: Pieces of work at a time, which is how many trials Tune proposes ahead.
        before: What an earlier run of the same sweep proposed, in order.
    """

    sweep: Sweep
    tiers: Sequence[int] | None
    slots: int
    before: Sequence[dict[str, Any]] = ()
    _board: Any = None
    _question: Any = None
    _thread: threading.Thread | None = None
    _left: list[str] = field(default_factory=list)
    _failure: list[BaseException] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    said: str = ""
    """How Tune's trials ended; empty where it was not asked for its end."""

    def start(self) -> None:
        """Connect to Ray and begin; a failure is told by `asked`."""
        try:
            self._start()
        except BaseException as failure:  # this may be a thread's whole work, which has nobody else to tell
            self._failure.append(failure)

    def _start(self) -> None:
        from components.common.launcher import connect_ray, set_ray_environment

        set_ray_environment()
        os.environ |= {
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed reports nothing
            "RAY_AIR_NEW_OUTPUT": "0",  # which prints a panel however quiet it shall be
        }
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(self._watchers)
        connect_ray()
        import ray

        for logger in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)  # failures are told by the sweep
        name = f"board-{os.getpid()}-{time.monotonic_ns()}"
        self._board = ray.remote(num_cpus=0)(Board).options(name=name).remote()
        self._thread = threading.Thread(target=self._fit, args=(name,), name="ray-tune", daemon=True)
        self._thread.start()

    @property
    def _watchers(self) -> int:
        """Trials that Tune watches at the same time: a process each, whose start takes seconds from the training.

        Where Tune neither proposes trials nor ends them it only looks on, at one after another.
        """
        if self.tiers is None:
            return self.slots
        return 1 if self.sweep.spec.stop.scheduler == "none" else max(_WATCHERS, 2 * self.slots)

    @property
    def running(self) -> bool:
        """Whether Tune still watches, or still proposes."""
        return self._thread is not None and self._thread.is_alive()

    def asked(self) -> list[Asked]:
        """What watchers have asked since this was last called; does not wait.

        Raises:
            UserError: If Ray did not start.
            RuntimeError: If Tune itself failed.
        """
        import ray

        if self._failure and isinstance(self._failure[0], UserError):
            raise self._failure[0]
        if self._failure:
            raise RuntimeError(f"Ray Tune ended: {self._failure[0]}") from self._failure[0]
        self._question = self._question or self._board.take.remote()
        if not ray.wait([self._question], timeout=0)[0]:  # slots do not stand still for it
            return []
        told, self._question = ray.get(self._question), None
        return [Asked(*one) for one in told]

    def tell(self, watcher: str, reports: list[dict[str, float]], ended: bool) -> None:
        """Tell a watcher all that it can be told by now."""
        self._board.tell.remote(watcher, reports, ended)

    def left(self) -> list[str]:
        """The watchers that Tune has ended since this was last called, at a rung or at their end."""
        left = self._left[:]
        del self._left[: len(left)]  # Tune's thread goes on with this very list
        return left

    def close(self) -> None:
        """End Tune, and leave Ray before it ends so that nobody waits for it, but not a cluster that does the work."""
        import ray

        self._over.set()
        if self._thread is not None:
            self._thread.join(_ENDING)
            if self._thread.is_alive():
                return  # to leave Ray under a thread that uses it would crash this process
        if INSIDE not in os.environ:
            ray.shutdown()

    def _fit(self, board: str) -> None:
        from components.common.launcher import SESSION

        try:
            place = os.environ.get(SESSION)  # whose folder goes when the session ends, however that comes about
            with tempfile.TemporaryDirectory(
                prefix="phasetune-tune-", dir=place and Path(place).parent, ignore_cleanup_errors=True
            ) as folder:
                found = self._tuner(board, folder).fit()
                self.said = f"Ray Tune saw {found.num_terminated} trials to their end, {found.num_errors} failed"
        except BaseException as failure:  # told by `asked`; a thread has nobody else to tell
            self._failure.append(failure)

    def _tuner(self, board: str, folder: str) -> Any:
        from ray import tune

        spec = self.sweep.spec
        search, space = None, {"board": board}
        if self.tiers is None:
            search = suggester(self.sweep, OBJECTIVE, self.before)
        else:
            numbered = [{"number": number, "tiers": tiers} for number, tiers in enumerate(self.tiers)]
            space |= {"trial": tune.grid_search(numbered)}
        callback = _leaving(self._left.append)
        return tune.Tuner(
            tune.with_resources(watch, tune.PlacementGroupFactory([{_HEAD: 0.001}])),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=None if search is not None or spec.stop.scheduler == "asha" else OBJECTIVE,
                mode=None if search is not None or spec.stop.scheduler == "asha" else spec.objective.mode,
                search_alg=search,
                scheduler=per_tiers(spec, OBJECTIVE, TOKENS) if spec.stop.scheduler == "asha" else None,
                num_samples=spec.search.trials if search is not None else 1,
                max_concurrent_trials=self._watchers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                verbose=0,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=_FAILURES),
                progress_reporter=None,
                stop=_stopper(self._over),
            ),
        )


def _stopper(over: threading.Event) -> Any:
    from ray.tune import Stopper

    class Over(Stopper):  # type: ignore[misc]  # Tune's classes carry no types
        """Ends Tune when the sweep ends before it: at the end of a budget, or at an error."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return over.is_set()

        def __reduce__(self) -> Any:
            return _never, ()  # Tune saves it, and nobody goes on from what it saves

    return Over()


def _never() -> Any:
    return _stopper(threading.Event())


def _leaving(note: Callable[[str], None]) -> Any:
    from ray.tune import Callback

    class Leaving(Callback):  # type: ignore[misc]  # Tune's classes carry no types
        """Notes which trials Tune has ended."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            note(trial.trial_id)

    return Leaving()


def suggested(config: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters of a trial that Tune proposed; None of one that was known before."""
    return json.loads(config["params"]) if "params" in config else None
