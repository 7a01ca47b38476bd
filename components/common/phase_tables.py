"""What a phase leaves to look at beside its weights: sampled rollouts and the preference pairs that it made.

Both are files of its entry in the store, which this module reads without the weights beside them.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common.objects import open_objects
from components.common.store import located

ROLLOUTS, PAIRS = "rollouts", "pairs"
MOST_ROWS = 500
_LONGEST = 4000
"""Characters of a text that are kept."""


@dataclass(frozen=True, slots=True)
class PhaseTable:
    """A table of texts and numbers.

    Attributes:
        columns: The names.
        rows: The values: texts, numbers, None.
    """

    columns: list[str]
    rows: list[list[Any]]

    def to_json(self) -> str:
        """The form in which MLflow keeps tables."""
        return json.dumps({"columns": self.columns, "data": self.rows}, ensure_ascii=False)


def read_phase_tables(uri: str) -> dict[str, PhaseTable]:
    """The tables of a phase's entry by name; of long ones a part, evenly spread.

    Args:
        uri: Where the entry lies: a folder, or below `s3://`.
    """
    import pyarrow.parquet as pq

    found: dict[str, PhaseTable] = {}
    for name in (ROLLOUTS, PAIRS):
        data = _read(uri, f"{name}.parquet")
        if data is None:
            continue
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
        every = -(-len(rows) // MOST_ROWS) or 1
        made = [_pair(row) if name == PAIRS else _rollout(row) for row in rows[::every]]
        columns = list(dict.fromkeys(column for row in made for column in row))
        found[name] = PhaseTable(columns, [[row.get(column) for column in columns] for row in made])
    return found


def _read(uri: str, name: str) -> bytes | None:
    if not uri.startswith("s3://"):
        file = Path(uri) / name
        return file.read_bytes() if file.is_file() else None
    place, _, _ = located(uri)
    return open_objects(place).read(f"{uri.removeprefix(place).lstrip('/')}/{name}")


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    """An example with a rejected reply, as `Example.to_row` spells it."""
    turns = row["messages"]
    return {"prompt": _text(turns[:-1]), "chosen": _text(turns[-1]["content"]), "rejected": _text(row["rejected"])}


def _rollout(row: dict[str, Any]) -> dict[str, Any]:
    """A sampled completion; each reward gets a column of its own."""
    made: dict[str, Any] = {}
    for name, value in row.items():
        if name == "rewards" and isinstance(value, dict):
            made |= {f"reward {reward}": number for reward, number in value.items()}
        elif name == "rewards" and isinstance(value, str) and value.startswith("{"):
            made |= {f"reward {reward}": number for reward, number in json.loads(value).items()}
        else:
            made[name] = value if isinstance(value, int | float) or value is None else _text(value)
    return made


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        value = "\n".join(str(turn["content"]) for turn in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
