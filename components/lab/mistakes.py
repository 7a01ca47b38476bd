"""Wrong answers that look like right ones: the rejected replies of preference pairs."""

import random

from components.lab.families import WORDS
from components.lab.world import ATTRIBUTES, PEOPLE


def mistaken(rng: random.Random, answer: str) -> str:
    """Another answer of the same kind: a number near by, two items exchanged, another name, value or word."""
    items = answer.split()
    if len(items) > 1 and len(set(items)) > 1:
        first, second = rng.sample([(place, item) for place, item in enumerate(items)], 2)
        while first[1] == second[1]:
            first, second = rng.sample([(place, item) for place, item in enumerate(items)], 2)
        items[first[0]], items[second[0]] = second[1], first[1]
        return " ".join(items)
    if all(item.isdecimal() for item in items):
        last = int(items[-1])
        near = [number for number in range(max(0, last - 3), last + 4) if number != last]
        # A digit of a list stays a digit.
        items[-1] = str(rng.choice([number for number in near if len(items) == 1 or number < 10]))
        return " ".join(items)
    kinds = [PEOPLE, *ATTRIBUTES.values(), WORDS]
    like = next((kind for kind in kinds if answer in kind), WORDS)
    return rng.choice([value for value in like if value != answer])
