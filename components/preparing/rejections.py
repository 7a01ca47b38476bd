"""Writes malformed rows to `rejected.jsonl`, and stops the run when there are too many."""

import json
import math
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from components.common.errors import DataError
from components.preparing.convert import Rejection

FAIR_ROWS = 1000
"""Rows after which the share of malformed ones may stop the run before its end."""
SIGMAS = 4.0
"""How far beyond what chance explains the share must then be, in standard deviations."""


class Rejections:
    """The malformed rows of all sources.

    Args:
        path: The file that is written; use as a context manager.
        limit: The largest share that is borne (`data.max_rejected`).
    """

    def __init__(self, path: Path, limit: float) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._limit = limit
        self._reasons: Counter[str] = Counter()
        self._sample = ""
        self.count = 0

    def write(self, file: str, rejection: Rejection) -> None:
        """Add one row: the file it stands in, its line, the reason, and itself."""
        row = {"file": file, "line": rejection.line, "reason": rejection.reason, "row": rejection.row}
        # ASCII escapes keep even broken Unicode; `default` spells what Parquet has and JSON has not (dates, bytes).
        self._file.write(json.dumps(row, default=str) + "\n")
        self.count += 1
        self._reasons[rejection.reason] += 1
        if not self._sample:
            shown = json.dumps(rejection.row, default=str, ensure_ascii=True)
            self._sample = f"{file}, line {rejection.line}: {shown[:300]}{'...' if len(shown) > 300 else ''}"

    def check(self, rows: int, at_end: bool) -> None:
        """Stop if too many of the rows read so far are malformed.

        Before the end only where chance does not explain it: a bad stretch at the start is not a bad file.

        Args:
            rows: Rows read so far, the surplus of expanded ones included.
            at_end: Whether these are all.

        Raises:
            DataError: With the counts, the most frequent reasons and a sample.
        """
        allowed = self._limit * rows
        if not at_end:
            if rows <= FAIR_ROWS:
                return
            allowed += SIGMAS * math.sqrt(rows * self._limit * (1 - self._limit))
        if self.count <= allowed:
            return
        self._file.flush()
        reasons = "; ".join(f"{reason} ({count})" for reason, count in self._reasons.most_common(3))
        raise DataError(
            f"{self.count} of {rows} rows {'' if at_end else 'read so far '}are malformed "
            f"({self.count / rows:.1%}, data.max_rejected is {self._limit:.1%}). Most frequent: {reasons}. "
            f"First: {self._sample}",
            "check `format` and the file, mend the rows, or raise `data.max_rejected`",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
