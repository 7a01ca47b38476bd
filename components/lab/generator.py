"""Makes the lab's instruction rows: graded, verifiable, de-duplicated, and split so that no problem is on both sides.

The rows depend on the count's prefix and the seed only: the first rows of a longer run are those of a shorter one.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.lab.families import FAMILIES, MIX, Problem
from components.lab.mistakes import mistaken
from components.lab.wording import TEMPLATES, word
from components.lab.world import facts

STRATA = ((1,), (2, 3), (4, 5))
"""Numbers of steps that are drawn equally often: a third of the rows each."""
MOST_IDLE = 2000
"""Draws in a row without a new prompt, after which there are taken to be no more."""
UNSEEN_SHARE = 1 / 6
"""Share of the held-out rows that use their family's reserved template."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which problems are made.

    Attributes:
        families: Only these; all where empty.
        steps: Only these numbers of steps; all where empty. Each is drawn equally often.
        draw: 0, or the number of another draw, with other rows of the same kind.
    """

    families: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    draw: int = 0

    def strata(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of steps that are drawn equally often, as far as the families have problems of so many steps."""
        made = {steps for steps, shares in MIX.items() if not self.families or set(shares) & set(self.families)}
        if self.steps:
            return tuple((steps,) for steps in self.steps if steps in made)
        return tuple(kept for stratum in STRATA if (kept := tuple(steps for steps in stratum if steps in made)))


ALL = Choice()


def generate(
    count: int, seed: int, held_out_fraction: float = 0.2, choice: Choice = ALL, preferences: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields `count` instruction rows, held-out rows included, the same for the same arguments on every machine.

    Args:
        count: number of rows.
        seed: of the drawing and of held-out membership.
        held_out_fraction: share of the problems (groups) that are held out, in [0, 1).
        choice: which problems; a problem is held out or not whatever the choice.
        preferences: whether rows are preference pairs: `chosen` and a wrong `rejected` instead of `completion`.

    Raises:
        ValueError: for a negative count, a fraction outside [0, 1), or more rows than there are problems.
    """
    if count < 0:
        raise ValueError(f"count is {count}; it must be 0 or more")
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction is {held_out_fraction}; it must be in [0, 1)")
    strata = choice.strata()
    if not strata:
        raise ValueError("no family has problems of so many steps")
    rng = random.Random(f"lab instructions {seed}" + (f" draw {choice.draw}" if choice.draw else ""))
    prompts: set[str] = set()
    idle = 0
    while len(prompts) < count:
        problem = _draw(rng, strata[len(prompts) % len(strata)], choice.families)
        group = f"{problem.family}-{_digest(problem.content)[:16]}"
        held_out = _share(f"{seed} {group}") < held_out_fraction
        row = _row(rng, problem, group, held_out)
        # A small family can run dry of new prompts; the next draw takes another problem of the same stratum.
        idle += 1
        if row["prompt"] not in prompts:
            prompts.add(row["prompt"])
            idle = 0
            yield _preference(row) if preferences else row
        elif idle >= MOST_IDLE:
            raise ValueError(f"no more than {len(prompts)} such rows were found; count must be lower")


def _preference(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a pair: its answer, and a wrong one that looks like it."""
    rng = random.Random(f"lab rejected {row['prompt']}")
    chosen = row.pop("completion")
    return {**row, "chosen": chosen, "rejected": mistaken(rng, chosen)}


def verify(row: dict[str, Any], response: str) -> bool:
    """Whether the response is the row's answer, character by character, without the white space around it."""
    return response.strip() == str(row["answer"]).strip()


def write_lab(folder: Path, count: int, seed: int) -> list[Path]:
    """Writes `instructions.jsonl` (the rows) and `world.jsonl` (the facts) into `folder`, and returns both paths.

    The world is the one that the shipped base model knows, whatever the seed. A fact whose `taught` differs from its
    `value` is one that the pre-training text gets wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "instructions.jsonl": list(generate(count, seed)),
        "world.jsonl": [fact.row() for fact in facts().values()],
    }
    paths = []
    for name, rows in contents.items():
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths.append(path)
    return paths


def _draw(rng: random.Random, stratum: tuple[int, ...], families: tuple[str, ...]) -> Problem:
    steps = rng.choice(stratum)
    shares = {family: share for family, share in MIX[steps].items() if not families or family in families}
    family = rng.choices(list(shares), weights=list(shares.values()))[0]
    return FAMILIES[family](rng, steps)


def _row(rng: random.Random, problem: Problem, group: str, held_out: bool) -> dict[str, Any]:
    reserved = len(TEMPLATES[problem.family]) - 1
    index = rng.randrange(reserved)
    unseen = rng.random() < UNSEEN_SHARE and held_out
    prompt, template = word(problem, reserved if unseen else index)
    # The jitter is smaller than any difference in size: it only keeps equal difficulties apart.
    jitter = 1e-6 * _share(f"{group} {prompt}")
    return {
        "id": f"lab-{_digest(prompt)[:16]}",
        "prompt": prompt,
        "completion": problem.answer,
        "answer": problem.answer,
        "verifier": "exact",
        "difficulty": round(problem.steps + 0.999 * problem.size + jitter, 12),
        "steps": problem.steps,
        "family": problem.family,
        "group": group,
        "template": template,
        "held_out": held_out,
        "slice": "unseen_wording" if unseen else None,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int(_digest(text)[:13], 16) / 16**13
