"""What a trial asks for, as pieces of work with the keys of their results.

A trial is a run of one spec with one seed. Its data, scores and splits come first: only when the split is in the store
can the keys of its phases be told, as they hold the promised order of the examples. Trials whose phases and evaluations
have the same keys are the same trial, whatever their parameters and their splits say: one tier has one order, however
it is scored, and two cuts may split alike.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common.curriculum import MAIN, OWN, Curriculum, PhasePlan, expand, sequence
from components.common.examples import read_rows
from components.common.keys import evaluation_key, phase_key, scores_key, splits_key
from components.common.models import model_digest
from components.common.pace import Pace, alike, alike_evaluation
from components.common.phase_data import own_data, preparing_places, required
from components.common.spec import Spec
from components.common.step import Reference
from components.common.store import Kind, Store
from pipelines.sweep_tree import Work

_UNKNOWN = 1.0
"""Seconds that a piece of work is taken to last for which there is no experience, for each of its examples a part of
it: only the proportions matter."""
_EXAMPLES = 1000
_FIRST = 1e6
"""Seconds that what comes before the phases is taken to last: it is begun first, as nobody knows yet what follows."""


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work, and the step's function that does it.

    Attributes:
        work: Its place in the tree.
        kind: Of its result.
        target: The step's function.
        arguments: Its arguments but for `context` and the references.
        needs: The arguments that are references to other pieces' results, by the key of the result; an empty key
            stands for an empty reference.
        label: What users read.
    """

    work: Work
    kind: Kind
    target: str
    arguments: dict[str, Any]
    needs: dict[str, str]
    label: str


@dataclass(frozen=True, slots=True)
class Chain:
    """All that a trial asks for with one seed.

    Attributes:
        tasks: Parents before children.
        phases: The keys of the main curriculum's phases, in order.
        evaluations: The key of each of these phases' evaluation; empty where it is not evaluated.
        tokens: That each of these phases will see, as the split tells; None of one with data of its own.
        estimated: Whether the seconds of all phases come from experience.
    """

    tasks: tuple[Task, ...]
    phases: tuple[str, ...]
    evaluations: tuple[str, ...]
    tokens: tuple[int | None, ...]
    estimated: bool

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two trials the same: what is trained and what it comes to, of controls too.

        Not how that was come by. Keys of scores and splits hold settings that need not change a single tier; what of a
        split matters, phases and evaluations hold: the examples in order, and the held-out part with its tiers.
        """
        return tuple(task.work.key for task in self.tasks if task.kind in ("phases", "evaluations"))

    def upto(self, phases: int | None) -> tuple[Task, ...]:
        """The tasks of its first phases, the evaluation of the last among them; all where None."""
        if phases is None or phases >= len(self.phases):
            return self.tasks
        last = self.evaluations[phases - 1]
        return self.tasks[: 1 + next(place for place, task in enumerate(self.tasks) if task.work.key == last)]


class Chains:
    """Makes the chains of trials; what they share is worked out once.

    Args:
        store: The sweep's store.
        every: Whether every phase is evaluated, rather than each curriculum's last.
    """

    def __init__(self, store: Store, every: bool) -> None:
        self._store = store
        self._every = every
        self._digest = functools.lru_cache(maxsize=None)(lambda path: model_digest(path, store.memory))
        self._fingerprints: dict[str, str] = {}
        self._tiers = functools.lru_cache(maxsize=64)(_tier_tokens)
        self._held_out = functools.lru_cache(maxsize=None)(_held_out)
        self._to_evaluate = functools.lru_cache(maxsize=None)(_to_evaluate)
        self._paces: dict[str, Pace] = {}
        self._guessed: set[str] = set()
        self._expanded: tuple[Spec, int, Sequence[Curriculum]] | None = None
        self.carried: set[str] = set()
        """The keys of phases whose optimizer the next phase goes on with."""

    def beginning(self, spec: Spec, seed: int) -> tuple[Task, ...]:
        """The pieces before the phases: data, scores, split, and the data of phases that have their own."""
        data = self._fingerprint(("data", spec.data.model_dump_json(), spec.data_seed), lambda: _of_run(spec))
        base = self._digest(spec.model.path)
        scorer = base if spec.scoring.model is None else self._digest(spec.scoring.model)
        scores = scores_key(spec.at("scoring"), data, base, scorer)
        split = splits_key(spec, scores, seed)
        tasks = [
            Task(_work(data, None), "prepared", "components.preparing.step:run", {}, {}, "prepare"),
            Task(_work(scores, data), "scores", "components.scoring.step:run", {}, {"prepared": data}, "score"),
            Task(
                _work(split, scores), "splits", "components.splitting.step:run", {"seed": seed}, {"scores": scores},
                f"split into {spec.splitting.tiers}",
            ),
        ]  # fmt: skip
        for (curriculum, index, _), key in self._own(spec, seed, data).items():
            place = {"curriculum": curriculum, "index": index, "seed": seed}
            target = "components.preparing.step:run_phase"
            label = f"prepare data of phase {index}"
            if all(task.work.key != key for task in tasks):
                tasks.append(Task(_work(key, data), "prepared", target, place, {"prepared": data}, label))
        return tuple(tasks)

    def whole(self, spec: Spec, seed: int) -> Chain:
        """The whole chain; the store must hold what `beginning` names."""
        tasks = list(self.beginning(spec, seed))
        split = tasks[2].work.key
        own = self._own(spec, seed, tasks[0].work.key)
        main: tuple[list[str], list[str], list[int | None]] = ([], [], [])
        for curriculum in self._curricula(spec, seed):
            keys, measured, counts = self._curriculum(spec, seed, curriculum, split, own, tasks)
            if curriculum.name == MAIN:
                main = (keys, measured, counts)
        keys, measured, counts = main
        estimated = all(task.work.key not in self._guessed for task in tasks)
        return Chain(tuple(tasks), tuple(keys), tuple(measured), tuple(counts), estimated)

    def _curriculum(
        self,
        spec: Spec,
        seed: int,
        curriculum: Curriculum,
        split: str,
        own: dict[tuple[str, int, int], str],
        tasks: list[Task],
    ) -> tuple[list[str], list[str], list[int | None]]:
        """Add a curriculum's tasks; the keys of its phases, of their evaluations, and their tokens."""
        from components.training.step import phase_files, selection_digest, span_of

        folder = self._folder("splits", split)
        keys: list[str] = []
        measured: list[str] = []
        counts: list[int | None] = []
        parent = self._digest(spec.model.path)
        for plan in curriculum.phases:
            place = {"curriculum": curriculum.name, "index": plan.index, "seed": seed}
            data = own.get((curriculum.name, plan.index, seed), "")
            ids, tokens = self._examples(spec, folder, data)
            order = sequence(plan, ids, seed)
            files = phase_files(folder, spec.splitting.tiers, self._folder("prepared", data) if data else None)
            span = (
                span_of(spec, plan, files, seed)
                if plan.settings.carry == "optimizer" or _carries(curriculum, plan)
                else None
            )
            chosen = selection_digest(plan, folder / "held_out.parquet")
            key = phase_key(spec, plan, order, parent, seed, span, chosen)
            seen = sum(min(tokens.get(item, 0), plan.settings.max_length) for item in order)
            seconds = self._pace(spec).seconds(alike(spec, plan), len(order), seen)
            if seconds is None:
                self._guessed.add(key)
            before = keys[-1] if keys else split
            tasks.append(
                Task(
                    Work(key, before, seconds or _UNKNOWN * len(order) / _EXAMPLES, counted=True),
                    "phases",
                    "components.training.step:run",
                    place,
                    {"split": split, "parent": keys[-1] if keys else "", "data": data},
                    f"train {curriculum.name} {plan.index} ({plan.name})",
                )
            )
            if _carries(curriculum, plan):
                self.carried.add(key)
            keys.append(key)
            parent = key
            counts.append(None if data else seen)
            measured.append("")
            if self._every or plan is curriculum.phases[-1]:
                asked = spec.at("evaluation")
                measured[-1] = evaluation_key(asked, key, self._held_out(folder))
                examples = self._to_evaluate(folder, asked.evaluation.max_examples)
                lasting = self._pace(spec).seconds(alike_evaluation(asked), examples, None) or _UNKNOWN
                needs = {"split": split, "phase": key}
                target, label = "components.evaluation.step:run", f"evaluate {curriculum.name} {plan.index}"
                tasks.append(Task(_work(measured[-1], key, lasting), "evaluations", target, place, needs, label))
        return keys, measured, counts

    def _examples(self, spec: Spec, folder: Path, data: str) -> tuple[dict[int, list[str]], dict[str, int]]:
        if data:
            path = self._folder("prepared", data) / "train.parquet"
            return {OWN: [row["id"] for row in read_rows(path, ["id"])]}, {}
        return self._tiers(folder, spec.splitting.tiers)

    def _folder(self, kind: Kind, key: str) -> Path:
        entry = self._store.find(kind, key)
        if entry is None:
            raise AssertionError(f"{kind}/{key} should be in the store by now")
        return entry.path

    def _own(self, spec: Spec, seed: int, prepared: str) -> dict[tuple[str, int, int], str]:
        """The key of the own data of every phase that has some."""
        keys: dict[tuple[str, int, int], str] = {}
        plans = {(c.name, plan.index): plan for c in self._curricula(spec, seed) for plan in c.phases}
        for place in preparing_places(spec) if any(plan.data for plan in plans.values()) else ():
            if place[2] == seed:
                plan = plans[place[0], place[1]]
                about = ("own", own_data(spec, plan).model_dump_json(), str(required(plan).content), prepared)
                keys[place] = self._fingerprint(
                    (*about, spec.data_seed), functools.partial(_of_phase, spec, plan, prepared)
                )
        return keys

    def _curricula(self, spec: Spec, seed: int) -> Sequence[Curriculum]:
        """A spec's curricula; asked for several times while a trial's chain is made, and of one trial after another."""
        if self._expanded is None or self._expanded[0] is not spec or self._expanded[1] != seed:
            self._expanded = (spec, seed, expand(spec, seed))
        return self._expanded[2]

    def _fingerprint(self, about: tuple[Any, ...], make: Callable[[], str]) -> str:
        name = repr(about)
        if name not in self._fingerprints:
            self._fingerprints[name] = make()
        return self._fingerprints[name]

    def _pace(self, spec: Spec) -> Pace:
        base = self._digest(spec.model.path)
        return self._paces.setdefault(base, Pace(self._store, base))

    def reference(self, kind: Kind, key: str) -> str:
        """The reference of a result in the store, as a step takes it; empty for an empty key."""
        if not key:
            return ""
        entry = self._store.find(kind, key)
        if entry is None:
            raise AssertionError(f"{kind}/{key} should be in the store by now")
        return Reference(key, entry.uri).to_json()


def _work(key: str, parent: str | None, seconds: float = _FIRST) -> Work:
    return Work(key, parent, seconds, counted=False)


def _carries(curriculum: Curriculum, plan: PhasePlan) -> bool:
    """Whether the next phase goes on with this one's optimizer, so that the two share a schedule."""
    return any(one.settings.carry == "optimizer" for one in curriculum.phases if one.index == plan.index + 1)


def _of_run(spec: Spec) -> str:
    from components.preparing.sources import fingerprint

    return fingerprint(spec.data, spec.data_seed)


def _of_phase(spec: Spec, plan: PhasePlan, prepared: str) -> str:
    from components.preparing.sources import fingerprint

    return fingerprint(own_data(spec, plan), spec.data_seed, required(plan), prepared)


def _held_out(folder: Path) -> str:
    from components.evaluation.step import held_out_digest

    return held_out_digest(folder / "held_out.parquet")


def _to_evaluate(folder: Path, most: int | None) -> int:
    """Examples of an evaluation: at most so many of each tier."""
    tiers = Counter(row["tier"] for row in read_rows(folder / "held_out.parquet", ["tier"]))
    return sum(tiers.values()) if most is None else sum(min(most, count) for count in tiers.values())


def _tier_tokens(folder: Path, tiers: int) -> tuple[dict[int, list[str]], dict[str, int]]:
    from components.training.step import tier_files

    ids: dict[int, list[str]] = {}
    tokens: dict[str, int] = {}
    for tier, path in tier_files(folder, tiers).items():
        rows = list(read_rows(path, ["id", "tokens"]))
        ids[tier] = [row["id"] for row in rows]
        tokens.update((row["id"], row["tokens"]) for row in rows)
    return ids, tokens
