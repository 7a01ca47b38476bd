"""The small world: forty people, six attributes and two relations each. It is fixed, so one base model can know it.

A tenth of the attribute facts is *mistaught*: the pre-training text states another value than the true one. Those facts
serve knowledge probes; no instruction is built on them.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

WORLD_SEED = 2026
MISTAUGHT_SHARE = 0.1


def words(text: str) -> tuple[str, ...]:
    """The words of a text; lists of names read better that way."""
    return tuple(text.split())


PEOPLE = words(
    "Ada Alan Amir Anna Boris Carl Clara David Dora Edgar Elena Emil Fatima Felix Flora Greta Hana Henry Hugo Ida "
    "Igor Ivan Julia Karim Kofi Lara Lukas Maria Mina Nora Olaf Omar Paula Pedro Rosa Sami Tara Tomas Vera Zoe"
)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "city": words("Athens Berlin Cairo Delhi Havana Lima London Madrid Oslo Paris Rome Tokyo"),
    "job": words("baker barber doctor farmer judge lawyer painter pilot sailor singer teacher writer"),
    "pet": words("cat dog goat hamster horse parrot rabbit snake spider turtle"),
    "color": words("black blue brown green orange pink purple red white yellow"),
    "food": words("bread cheese curry noodles pasta pizza rice salad soup stew tacos waffles"),
    "instrument": words("banjo cello drum flute guitar harp organ piano trumpet violin"),
}

RELATIONS = ("friend", "boss")


@dataclass(frozen=True)
class Fact:
    """One fact: the `attribute` of `subject` is `value`; the pre-training text says `taught`, which may be wrong."""

    subject: str
    attribute: str
    value: str
    taught: str

    @property
    def mistaught(self) -> bool:
        """Whether the pre-training text states a wrong value."""
        return self.value != self.taught

    @property
    def choices(self) -> tuple[str, ...]:
        """Every value that the attribute takes in this world; the chance level of a guess is one over their number."""
        return ATTRIBUTES.get(self.attribute, PEOPLE)

    def row(self) -> dict[str, Any]:
        """The fact as a row of `world.jsonl`; `statement` is the form that the base model completes with the value."""
        return {
            "id": f"{self.subject}.{self.attribute}",
            "subject": self.subject,
            "attribute": self.attribute,
            "value": self.value,
            "taught": self.taught,
            "statement": f"the {self.attribute} of {self.subject} is",
            "choices": list(self.choices),
        }


@cache
def facts() -> dict[tuple[str, str], Fact]:
    """All facts by (subject, attribute); the same on every machine."""
    rng = random.Random(WORLD_SEED)
    found: dict[tuple[str, str], Fact] = {}
    for attribute, values in ATTRIBUTES.items():
        for person in PEOPLE:
            value = rng.choice(values)
            taught = value
            if rng.random() < MISTAUGHT_SHARE:
                taught = rng.choice([other for other in values if other != value])
            found[person, attribute] = Fact(person, attribute, value, taught)
    for relation in RELATIONS:
        for person, other in zip(PEOPLE, _derangement(rng), strict=True):
            found[person, relation] = Fact(person, relation, other, other)
    return found


def _derangement(rng: random.Random) -> list[str]:
    """The people in an order in which nobody keeps their own place, so that nobody is their own friend."""
    while True:
        order = list(PEOPLE)
        rng.shuffle(order)
        if all(person != other for person, other in zip(PEOPLE, order, strict=True)):
            return order


def follow(person: str, relations: tuple[str, ...]) -> str:
    """The person reached from `person` by the relations, in the order in which they are walked."""
    for relation in relations:
        person = facts()[person, relation].value
    return person
