"""The families of problems: what is asked, how many steps it takes, and the answer that a program works out.

A `Problem` is content without wording; `wording.py` puts it into words. Every maker takes a random generator and a
number of steps, so the same generator state gives the same problem on every machine.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from components.lab.world import ATTRIBUTES, PEOPLE, RELATIONS, Fact, facts, follow, words

WORDS = words(
    "apple arrow basket bell boat bottle brush button candle chair clock coin cup door feather hammer jar kettle key "
    "ladder lamp leaf mirror needle pencil ring rope shoe spoon stone table wheel"
)


@dataclass(frozen=True)
class Problem:
    """A problem behind its wording."""

    family: str
    steps: int
    """True number of composed steps, 1 to 5."""
    content: str
    """What is asked, in a canonical order: equal contents are the same problem, so they share a group."""
    size: float
    """Size of the operands within the family, in [0, 1)."""
    answer: str
    slots: dict[str, str] = field(default_factory=dict)
    """Values for the placeholders of the family's templates."""


def recall(rng: random.Random, steps: int) -> Problem:
    """One fact of the world, as the base model learned it."""
    fact = _known_fact(rng, rng.choice(PEOPLE))
    slots = {"path": f"{fact.attribute} of {fact.subject}"}
    return Problem("recall", 1, f"{fact.attribute} of {fact.subject}", len(fact.choices) / 64, fact.value, slots)


def multi_hop(rng: random.Random, steps: int) -> Problem:
    """`steps - 1` relations walked from a person, then a fact of the person reached."""
    person = rng.choice(PEOPLE)
    walk = tuple(rng.choice(RELATIONS) for _ in range(steps - 1))
    fact = _known_fact(rng, follow(person, walk))
    # Walked from the person outwards, so the phrase names the relations in the opposite order.
    path = " of ".join(["the " + noun for noun in (fact.attribute, *reversed(walk))] + [person])
    path = path.removeprefix("the ")
    return Problem("multi_hop", steps, path, len(fact.choices) / 64, fact.value, {"path": path})


def _known_fact(rng: random.Random, person: str) -> Fact:
    """A fact about the person that was taught rightly; relations always are."""
    known = [facts()[person, name] for name in (*ATTRIBUTES, *RELATIONS) if not facts()[person, name].mistaught]
    return rng.choice(known)


def lookup(rng: random.Random, steps: int) -> Problem:
    """One step: what a box holds. Two steps: what a person has, who has a box that holds something."""
    number = rng.randint(2, 3)
    boxes = rng.sample("0123456789", number)
    things = rng.sample(WORDS, number)
    notes = [f"box {box} holds {thing}" for box, thing in zip(boxes, things, strict=True)]
    asked = rng.randrange(number)
    query = f"box {boxes[asked]}"
    if steps == 2:
        owners = rng.sample(PEOPLE, number)
        notes += [f"{owner} owns box {box}" for owner, box in zip(owners, boxes, strict=True)]
        query = f"the box that {owners[asked]} owns"
    rng.shuffle(notes)
    content = f"{'; '.join(sorted(notes))} | {query}"
    slots = {"notes": ", ".join(notes), "query": query}
    return Problem("lookup", steps, content, number / 4, things[asked], slots)


def comparison(rng: random.Random, steps: int) -> Problem:
    """The largest or smallest of `steps + 1` two-digit numbers; each comparison is a step."""
    numbers = rng.sample(range(10, 100), steps + 1)
    which = rng.choice(("larger", "smaller") if steps == 1 else ("largest", "smallest"))
    best = max(numbers) if which.startswith("large") else min(numbers)
    others = [number for number in numbers if number != best]
    closeness = 1 - min(abs(best - other) for other in others) / 90
    slots = {"numbers": " or ".join(map(str, numbers)), "which": which}
    content = f"{which} of {sorted(numbers)}"
    return Problem("comparison", steps, content, 0.99 * closeness, str(best), slots)


def counting(rng: random.Random, steps: int) -> Problem:
    """How often `steps - 1` words stand in a list: matching each word is a step, adding up is the last one."""
    kinds = rng.sample(WORDS, steps + 1)
    items = [rng.choice(kinds) for _ in range(rng.randint(4, 6))]
    asked = sorted(kinds[: steps - 1])
    count = sum(item in asked for item in items)
    slots = {"items": " ".join(items), "words": " or ".join(asked)}
    content = f"{' or '.join(asked)} in {' '.join(sorted(items))}"
    return Problem("counting", steps, content, len(items) / 7, str(count), slots)


def sorting(rng: random.Random, steps: int) -> Problem:
    """Three to six distinct digits, from small to large."""
    digits = rng.sample("0123456789", rng.randint(3, 6))
    answer = " ".join(sorted(digits))
    return Problem("sorting", 1, answer, len(digits) / 7, answer, {"items": " ".join(digits)})


def reversing(rng: random.Random, steps: int) -> Problem:
    """Three to six words or digits, last to first."""
    pool = rng.choice((WORDS, tuple("0123456789")))
    items = rng.sample(pool, rng.randint(3, 6))
    listed = " ".join(items)
    return Problem("reversing", 1, listed, len(items) / 7, " ".join(reversed(items)), {"items": listed})


def arithmetic(rng: random.Random, steps: int) -> Problem:
    """A chain of `steps` sums and differences of numbers to 9 or, from three steps on, to 19; totals are 0 to 60."""
    largest = 9 if steps <= 2 else 19
    start = total = rng.randint(1, 9)
    terms: list[int] = []
    while len(terms) < steps:
        term = rng.choice((1, -1)) * rng.randint(1, largest)
        if 0 <= total + term <= 60:
            terms.append(term)
            total += term
    expression = " ".join([str(start), *(f"{'+' if term > 0 else '-'} {abs(term)}" for term in terms)])
    # Order does not matter to the sum: the same operands in another order are the same problem.
    added = sorted([start, *(term for term in terms if term > 0)])
    taken = sorted(-term for term in terms if term < 0)
    size = sum(map(abs, [start, *terms])) / (largest * (steps + 1) + 1)
    return Problem("arithmetic", steps, f"+{added} -{taken}", size, str(total), {"expression": expression})


OPERATIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "reverse": lambda items: items[::-1],
    "sort": sorted,
    "rotate": lambda items: items[1:] + items[:1],
    "swap": lambda items: [items[1], items[0], *items[2:]],
    "raise": lambda items: [(item + 1) % 10 for item in items],
    "mirror": lambda items: [9 - item for item in items],
    "lift": lambda items: [(items[0] + 3) % 10, *items[1:]],
}
"""What a pipeline does to a list of digits: `rotate` moves the first to the end, `swap` exchanges the first two,
`raise` adds one to each (9 becomes 0), `mirror` takes each from nine, `lift` adds three to the first."""


def apply_operations(items: Sequence[int], names: Sequence[str]) -> list[int]:
    """The list after the named operations, in order."""
    result = list(items)
    for name in names:
        result = OPERATIONS[name](result)
    return result


def pipeline(rng: random.Random, steps: int) -> Problem:
    """`steps` operations on a list of three digits, one after the other; never the same operation twice in a row."""
    items = rng.sample(range(10), 3)
    names: list[str] = []
    while len(names) < steps:
        name = rng.choice(list(OPERATIONS))
        if names[-1:] != [name]:
            names.append(name)
    listed = " ".join(map(str, items))
    answer = " ".join(map(str, apply_operations(items, names)))
    slots = {"items": listed, "operations": " then ".join(names)}
    size = sum(name in ("sort", "mirror", "lift", "raise") for name in names) / (steps + 1)
    return Problem("pipeline", steps, f"{slots['operations']} on {listed}", size, answer, slots)


FAMILIES: dict[str, Callable[[random.Random, int], Problem]] = {
    "recall": recall,
    "lookup": lookup,
    "comparison": comparison,
    "counting": counting,
    "sorting": sorting,
    "reversing": reversing,
    "arithmetic": arithmetic,
    "multi_hop": multi_hop,
    "pipeline": pipeline,
}

MIX: dict[int, dict[str, float]] = {
    1: {"recall": 0.48, "sorting": 0.2, "reversing": 0.2, "arithmetic": 0.06, "lookup": 0.04, "comparison": 0.02},
    2: {"multi_hop": 0.4, "pipeline": 0.3, "arithmetic": 0.14, "lookup": 0.06, "counting": 0.06, "comparison": 0.04},
    3: {"multi_hop": 0.4, "pipeline": 0.34, "arithmetic": 0.16, "counting": 0.06, "comparison": 0.04},
    4: {"multi_hop": 0.45, "pipeline": 0.35, "arithmetic": 0.2},
    5: {"multi_hop": 0.45, "pipeline": 0.35, "arithmetic": 0.2},
}
"""Share of each family at each number of steps."""
