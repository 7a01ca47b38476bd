"""What the phases sampled, as the report shows it: a few rollouts and preference pairs, in full or shortened."""

from __future__ import annotations

from typing import Any

from components.common.phase_tables import ROLLOUTS, PhaseTable, read_phase_tables
from components.reporting.page_tables import Cell, Table
from components.reporting.results import Results

_EACH = 4
"""Rollouts of the first and of the last step that are shown; twice as many pairs."""
_LONGEST = 300
"""Characters of a text that are kept."""


def shown_tables(results: Results) -> list[tuple[str, str, Table]]:
    """The phases' titles, what is shown, and a few rows of it, for the main run (first seed)."""
    found = []
    for phase in results.main.first:
        if phase.train is not None:
            for name, table in read_phase_tables(phase.train.uri).items():
                title = f"{phase.plan.index}. {phase.plan.name} ({phase.plan.method})"
                rows = _few(table) if name == ROLLOUTS else table.rows[: 2 * _EACH]
                texts = [column for column in table.columns if _is_text(table, column)]
                columns = texts + [column for column in table.columns if column not in texts]
                order = [table.columns.index(column) for column in columns]
                cells: list[list[Cell | str]] = [[_cell(row[place]) for place in order] for row in rows]
                found.append((title, name, Table(columns, cells, texts=len(texts))))
    return found


def _few(table: PhaseTable) -> list[list[Any]]:
    """Rows of the first and of the last step."""
    if "step" not in table.columns or not table.rows:
        return table.rows[: 2 * _EACH]
    place = table.columns.index("step")
    steps = sorted({row[place] for row in table.rows})
    kept = [steps[0], steps[-1]] if len(steps) > 1 else steps
    return [row for step in kept for row in [row for row in table.rows if row[place] == step][:_EACH]]


def _is_text(table: PhaseTable, column: str) -> bool:
    place = table.columns.index(column)
    return any(isinstance(row[place], str) for row in table.rows)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST].rstrip() + " ..."
    if isinstance(value, float):
        return f"{value:.2f}"
    return "\N{EN DASH}" if value is None else str(value)
