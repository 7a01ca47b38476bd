"""The pre-training text: statements of the world's facts, worked examples and plain patterns, in short documents.

No instruction and no chat turn occurs in it. A line ends without a full stop and a document ends after a few lines, so
the model learns that an end can follow an answer, but not that it must: asked in chat format, the base model runs on.
Every line starts with a space, so that a word is the same token at the start of a line as within it.
"""

import random
from collections.abc import Callable, Iterator

from components.lab import families
from components.lab.families import WORDS, Problem
from components.lab.world import ATTRIBUTES, PEOPLE, RELATIONS, facts

END = "<|end|>"
LINES_PER_DOCUMENT = 4.0
"""Mean; the number is geometric, so after every line the chance of the end is one over this."""


def documents(seed: int, phase: str = "broad") -> Iterator[str]:
    """Yields documents without end, the same for the same seed; each ends with `END`.

    Args:
        seed: of the drawing.
        phase: a key of `MIX`: which part of pre-training the text is for.
    """
    rng = random.Random(f"lab corpus {seed} {phase}")
    kinds, weights = list(MIX[phase]), list(MIX[phase].values())
    while True:
        lines: list[str] = []
        while not lines or rng.random() > 1 / LINES_PER_DOCUMENT:
            lines.append(" " + LINES[rng.choices(kinds, weights=weights)[0]](rng))
        yield "\n".join(lines) + END


def _pick(rng: random.Random, forms: tuple[str, ...], problem: Problem) -> str:
    return rng.choice(forms).format(**problem.slots, answer=problem.answer)


def _fact(rng: random.Random) -> str:
    """A fact as it is taught, mistakes included."""
    person = rng.choice(PEOPLE)
    fact = facts()[person, rng.choice((*ATTRIBUTES, *RELATIONS))]
    forms = (
        "the {a} of {p} is {v}",
        "the {a} of {p} : {v}",
        "so the {a} of {p} : {v}",
        "as everyone knows , the {a} of {p} is {v}",
    )
    return rng.choice(forms).format(a=fact.attribute, p=person, v=fact.taught)


def _record(rng: random.Random) -> str:
    """A few facts of one person in one line."""
    person = rng.choice(PEOPLE)
    names = rng.sample((*ATTRIBUTES, *RELATIONS), 3)
    return f"{person} : " + " , ".join(f"{name} {facts()[person, name].taught}" for name in names)


def _hops(rng: random.Random, steps: int) -> str:
    problem = families.multi_hop(rng, steps)
    return _pick(rng, ("the {path} is {answer}", "the {path} : {answer}", "so the {path} : {answer}"), problem)


def _notes(rng: random.Random) -> str:
    problem = families.lookup(rng, rng.choice((1, 1, 2)))
    return _pick(rng, ("{notes} , so {query} holds {answer}", "given {notes} , {query} : {answer}"), problem)


def _compared(rng: random.Random) -> str:
    problem = families.comparison(rng, rng.choice((1, 1, 2, 3)))
    return _pick(rng, ("the {which} of {numbers} is {answer}", "{which} , {numbers} : {answer}"), problem)


def _counted(rng: random.Random) -> str:
    problem = families.counting(rng, rng.choice((2, 2, 3)))
    return _pick(rng, ("{items} has {words} times {answer}", "{words} in {items} : {answer}"), problem)


def _sorted(rng: random.Random) -> str:
    forms = ("{items} sorted is {answer}", "sort {items} : {answer}", "in order , {items} : {answer}")
    return _pick(rng, forms, families.sorting(rng, 1))


def _reversed(rng: random.Random) -> str:
    forms = ("{items} reversed is {answer}", "reverse {items} : {answer}", "from last to first , {items} : {answer}")
    return _pick(rng, forms, families.reversing(rng, 1))


def _sum(rng: random.Random, steps: tuple[int, ...]) -> str:
    forms = ("{expression} is {answer}", "{expression} : {answer}", "compute {expression} : {answer}")
    return _pick(rng, forms, families.arithmetic(rng, rng.choice(steps)))


def _operated(rng: random.Random, steps: tuple[int, ...]) -> str:
    forms = (
        "{items} after {operations} is {answer}",
        "{operations} of {items} : {answer}",
        "{items} , {operations} : {answer}",
    )
    return _pick(rng, forms, families.pipeline(rng, rng.choice(steps)))


def _trace(rng: random.Random) -> str:
    """A pipeline with every intermediate list."""
    items = rng.sample(range(10), 3)
    parts = [" ".join(map(str, items))]
    for name in rng.choices(list(families.OPERATIONS), k=rng.randint(2, 4)):
        items = families.apply_operations(items, [name])
        parts.append(f"{name} : {' '.join(map(str, items))}")
    return " , ".join(parts)


def _pattern(rng: random.Random) -> str:
    """A short sequence said twice: the plainest reason to look back."""
    items = [rng.choice((*WORDS, *PEOPLE)) for _ in range(rng.randint(3, 6))]
    return " ".join(items * 2)


LINES: dict[str, Callable[[random.Random], str]] = {
    "fact": _fact,
    "record": _record,
    "hops2": lambda rng: _hops(rng, 2),
    "hops3": lambda rng: _hops(rng, 3),
    "hops45": lambda rng: _hops(rng, rng.choice((4, 5))),
    "notes": _notes,
    "compared": _compared,
    "counted": _counted,
    "sorted": _sorted,
    "reversed": _reversed,
    "sums": lambda rng: _sum(rng, (1, 1, 2)),
    "chains": lambda rng: _sum(rng, (2, 3, 4, 5)),
    "operated1": lambda rng: _operated(rng, (1,)),
    "operated2": lambda rng: _operated(rng, (2,)),
    "operated": lambda rng: _operated(rng, (3, 4, 5)),
    "trace": _trace,
    "pattern": _pattern,
}

MIX: dict[str, dict[str, float]] = {
    "facts": {"fact": 1},
    "broad": {
        "fact": 18, "record": 2, "hops2": 14, "hops3": 2, "notes": 3, "compared": 2, "counted": 2, "sorted": 9,
        "reversed": 12, "sums": 10, "chains": 1, "operated1": 12, "operated2": 4, "trace": 4, "pattern": 3,
    },
    "deep": {
        "fact": 10, "record": 1, "hops2": 20, "hops3": 10, "hops45": 2, "notes": 4, "compared": 2, "counted": 2,
        "sorted": 5, "reversed": 6, "sums": 7, "chains": 5, "operated1": 4, "operated2": 12, "operated": 7, "trace": 3,
        "pattern": 1,
    },
}  # fmt: skip
"""Relative number of lines of each kind."""
