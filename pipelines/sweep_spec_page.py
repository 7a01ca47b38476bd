"""The table of a sweep's keys in docs/sweeps.md, made from the models: `python -m pipelines.sweep_spec_page FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.spec_page import rows_of
from pipelines.sweep_spec import Integers, LogUniform, Sample, SweepSpec, Uniform

HEAD = "| key | allowed | default | meaning |\n| --- | --- | --- | --- |"
_BELOW = "\n\n"
"""What ends the table."""


def table() -> str:
    """The table, in Markdown."""
    return "\n".join([HEAD, *_rows()])


def _rows() -> Iterator[str]:
    for row in rows_of(SweepSpec, ""):
        if not row.startswith("| `space."):
            yield row
        if row.startswith("| `space`"):
            yield from dict.fromkeys(
                row for form in (Sample, Uniform, LogUniform, Integers) for row in rows_of(form, "space.KEY.")
            )


def renewed(page: str) -> str:
    """A page with its table made anew.

    Raises:
        ValueError: If it has no such table.
    """
    before, found, after = page.partition(HEAD)
    if not found:
        raise ValueError("the page has no table of keys")
    return before + table() + after[after.index(_BELOW) :]


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(renewed(file.read_text(encoding="utf-8")), encoding="utf-8")
