"""The tree of a sweep: every distinct piece of work once, however many trials ask for it, and what is done next.

A piece of work is known by the key of its result, so trials whose curricula begin alike share the beginning. The
planner hands ready pieces to whoever is free and never the same one twice; a trial that waits for a piece of another
trial holds nothing. It decides, and does nothing itself: it has no clock, no process and no file, so the same code
plans a sweep on two cores and, in a simulation, ten thousand trials on a thousand GPUs.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["waiting", "ready", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work as a trial asks for it.

    Attributes:
        key: Of its result: equal keys are one piece of work.
        parent: The key of what must be done before; None where nothing must.
        seconds: What it may take, by experience; only the order in which pieces are started depends on it.
        counted: Whether it is a phase; evaluations are not counted among a sweep's phases.
    """

    key: str
    parent: str | None
    seconds: float
    counted: bool = True


@dataclass(slots=True)
class Node:
    """A piece of work in the tree.

    Attributes:
        work: What it is.
        state: How far it is.
        waiting: How many trials still want it, or something below it.
        remaining: Seconds of the longest path from its start to an end below it.
        reason: Why it failed.
    """

    work: Work
    state: State = "waiting"
    waiting: int = 0
    remaining: float = 0.0
    reason: str = ""
    found: bool = False
    children: list[Node] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Trial:
    nodes: list[Node]
    left: int
    state: Literal["running", "done", "failed", "stopped"] = "running"


class Planner:
    """Grants pieces of work, the most urgent first.

    A ready piece is the more urgent the longer the path below it is, and among equals the more trials wait for it: so
    the longest chains start first, and what many share before what one wants.

    Args:
        stored: The keys of results that are there already.

    Attributes:
        requested: Phases that trials have asked for, shared ones as often as they were.
        found: Phases in the tree that were stored already.
        in_order: The trials are brought to their end one after another instead: for a budget that may be spent before
            the work is done, as chains that are all begun and none ended tell nothing. Set it before `add`.
    """

    def __init__(self, stored: Container[str] = ()) -> None:
        self._stored = stored
        self._nodes: dict[str, Node] = {}
        self._trials: list[_Trial] = []
        self._ready: list[tuple[float, int, int, Node]] = []
        self._count = itertools.count()
        self._ended: list[int] = []
        self.requested = self.found = self._distinct = 0
        self.in_order = False

    def add(self, chain: Sequence[Work]) -> int:
        """Ask for a trial's pieces, parents before children; returns the trial's number, from 0.

        Raises:
            ValueError: If a piece's parent is neither in the tree nor before it.
        """
        number, nodes = len(self._trials), []
        for work in chain:
            node = self._nodes.get(work.key)
            if node is None:
                node = self._new(work)
            node.trials.append(number)
            nodes.append(node)
        self.requested += sum(work.counted for work in chain)
        trial = _Trial(nodes, sum(node.state != "done" for node in nodes))
        self._trials.append(trial)
        for node in reversed(nodes):
            if node.state in ("done", "failed"):
                continue
            node.waiting += 1
            longest = max((child.remaining for child in node.children), default=0.0)
            node.remaining = max(node.remaining, node.work.seconds + longest)
            self._offer(node)
        if any(node.state == "failed" for node in nodes):
            self._end(number, "failed")
        elif not trial.left:
            self._end(number, "done")
        return number

    def _new(self, work: Work) -> Node:
        parent = None if work.parent is None else self._nodes.get(work.parent)
        if work.parent is not None and parent is None:
            raise ValueError(f"{work.key} comes after {work.parent}, which nobody has asked for")
        node = Node(work)
        if parent is not None:
            parent.children.append(node)
        if work.key in self._stored:
            node.state, node.found = "done", True
        elif parent is None or parent.state == "done":
            node.state = "ready"
        elif parent.state == "failed":
            node.state, node.reason = "failed", parent.reason
        self._nodes[work.key] = node
        self._distinct += work.counted
        self.found += work.counted and node.found
        return node

    def _offer(self, node: Node) -> None:
        """Put a ready piece where `grant` looks; entries that its later ones outdate are skipped there."""
        if node.state == "ready":
            heapq.heappush(self._ready, (*self._rank(node), next(self._count), node))

    def _rank(self, node: Node) -> tuple[float, int]:
        return (node.trials[0], 0) if self.in_order else (-node.remaining, -node.waiting)

    def grant(self, phases: bool = True) -> Work | None:
        """The most urgent piece that can be done now; from here on it counts as running. None where there is none.

        Args:
            phases: Whether it may be a phase; else it is what measures those that are done.
        """
        passed_over, found = [], None
        while self._ready and found is None:
            entry = heapq.heappop(self._ready)
            node = entry[3]
            if node.state != "ready" or not node.waiting or entry[:2] != self._rank(node):
                continue
            if node.work.counted and not phases:
                passed_over.append(entry)
                continue
            node.state, found = "running", node.work
        for entry in passed_over:
            heapq.heappush(self._ready, entry)
        return found

    def finished(self, key: str) -> None:
        """A piece is done; what waited for it alone becomes ready."""
        node = self._running(key)
        node.state = "done"
        for child in node.children:
            if child.state == "waiting":
                child.state = "ready"
                self._offer(child)
        for number in node.trials:
            trial = self._trials[number]
            trial.left -= 1
            if not trial.left and trial.state == "running":
                self._end(number, "done")

    def lost(self, key: str) -> None:
        """Whoever did the piece is gone: it is granted again."""
        node = self._running(key)
        node.state = "ready"
        self._offer(node)

    def failed(self, key: str, reason: str) -> None:
        """A piece cannot be done: every trial that wants it, or what comes after it, has failed."""
        waiting = [self._running(key)]
        while waiting:
            node = waiting.pop()
            if node.state in ("done", "failed"):
                continue
            node.state, node.reason = "failed", reason
            waiting += node.children
            for number in node.trials:
                if self._trials[number].state == "running":
                    self._end(number, "failed")

    def stop(self, trial: int) -> None:
        """A trial is not wanted any more; what it shares with others goes on, what is running is not broken off."""
        if self._trials[trial].state == "running":
            self._end(trial, "stopped")

    def _end(self, number: int, state: Literal["done", "failed", "stopped"]) -> None:
        trial = self._trials[number]
        trial.state = state
        self._ended.append(number)
        if state == "done":
            return
        for node in trial.nodes:
            if node.state not in ("done", "failed"):
                node.waiting -= 1
                self._offer(node)

    def _running(self, key: str) -> Node:
        node = self._nodes[key]
        if node.state != "running":
            raise ValueError(f"{key} is {node.state}, not running")
        return node

    def take_ended(self) -> list[int]:
        """The trials that have ended since this was last asked, in that order."""
        ended, self._ended = self._ended, []
        return ended

    def trial_state(self, trial: int) -> str:
        """`running`, `done`, `failed` or `stopped`."""
        return self._trials[trial].state

    def reason(self, trial: int) -> str:
        """Why a trial failed; empty where it has not."""
        return next((node.reason for node in self._trials[trial].nodes if node.state == "failed"), "")

    def node(self, key: str) -> Node:
        """A piece of work in the tree."""
        return self._nodes[key]

    def nodes(self) -> Iterable[Node]:
        """Every piece of work, in the order in which they were first asked for."""
        return self._nodes.values()

    def distinct(self) -> int:
        """Phases in the tree, each once."""
        return self._distinct

    def to_do(self) -> float:
        """Seconds of all that is still wanted."""
        return sum(node.work.seconds for node in self._wanted())

    def longest(self) -> float:
        """Seconds of the longest path of what is still wanted: no number of slots can be faster."""
        return max((node.remaining for node in self._wanted()), default=0.0)

    def _wanted(self) -> Iterable[Node]:
        return (node for node in self._nodes.values() if node.waiting and node.state not in ("done", "failed"))
