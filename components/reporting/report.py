"""Writes a run's report: report.html (one file, nothing loaded from elsewhere), plots/*.png and summary.json."""

from __future__ import annotations

import json
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.importing import importing
from components.common.records import RunRecords, StepRecord
from components.reporting.comparisons import Comparisons, compare
from components.reporting.measures import MEASURES
from components.reporting.results import Results, load_results
from components.reporting.summary import build_summary
from components.reporting.verdict import sentences_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "report.html.jinja"


@dataclass(frozen=True, slots=True)
class Picture:
    """One plot in both widths, as PNG."""

    wide: bytes
    narrow: bytes

    @property
    def wide_uri(self) -> str:
        """The wide one as a data URI."""
        return "data:image/png;base64," + b64encode(self.wide).decode()

    @property
    def narrow_uri(self) -> str:
        """The narrow one as a data URI."""
        return "data:image/png;base64," + b64encode(self.narrow).decode()

    @property
    def width(self) -> int:
        """CSS pixels of the wide one, which is saved at twice that."""
        return int.from_bytes(self.wide[16:20], "big") // 2


def write_report(records: RunRecords, out: Path, started: float | None = None) -> dict[str, Any]:
    """Write report.html, summary.json and plots/*.png.

    A run with missing steps is reported too: the verdict names them.

    Args:
        records: The run.
        out: The folder to write to; made if need be.
        started: `time.time()` at the start of the step, so that the timing counts what came before this call as
            overhead; the call itself where absent.

    Returns:
        The summary, as in summary.json.
    """
    begun = time.time()
    results = load_results(records)
    found = compare(results)
    pictures = draw(results, found)
    sentences = sentences_of(results, found)
    # The report cannot know how long its own last lines take; they are some hundredths of a second.
    before = begun - started if started is not None else 0.0
    step = StepRecord("report", "reports", "", str(out), False, before + time.time() - begun, before)
    summary = build_summary(results, found, " ".join(sentences), step)
    html = render(results, found, sentences, pictures, step)
    for name, picture in pictures.items():
        write_whole(out / "plots" / f"{name}.png", picture.wide)
    write_whole(out / "summary.json", (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(out / "report.html", html.encode())
    return summary


def draw(results: Results, found: Comparisons) -> dict[str, Picture]:
    """Every plot for which there are results, by name."""
    with importing():
        from components.reporting import learning_plot, plots, step_plots

    def figures(width: float) -> dict[str, Figure | None]:
        made: dict[str, Figure | None] = {
            "learning": learning_plot.learning_figure(results, width),
            "controls": plots.controls_figure(results, found, width),
            "timing": step_plots.timing_figure(results.records, width),
        }
        made |= {f"phases-{m.title}": plots.phases_figure(results, found, m, width) for m in MEASURES}
        for split in list(results.splits.values())[:1]:
            made["difficulty"] = step_plots.difficulty_figure(split, results.spec.scoring.method, width)
        return made

    return pictures_of(figures)


def pictures_of(figures: Callable[[float], Mapping[str, Figure | None]]) -> dict[str, Picture]:
    """The figures that there are in both widths, by name; `figures` makes them for a width in inches."""
    from components.reporting.plot_style import NARROW, WIDE, drawing, to_png

    with drawing():
        wide, narrow = ({n: to_png(f) for n, f in figures(w).items() if f} for w in (WIDE, NARROW))
    return {name: Picture(wide[name], narrow[name]) for name in wide}


def render(
    results: Results, found: Comparisons, sentences: list[str], pictures: dict[str, Picture], step: StepRecord
) -> str:
    """The page."""
    from components.reporting.page import build_page

    page = build_page(results, found, sentences, step)
    return fill(_TEMPLATE, page=page, pictures=pictures)


def fill(template: str, **values: Any) -> str:
    """A page from one of the templates beside this module. Everything that comes from data is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = lambda text: re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)
    environment.filters["unbroken"] = _unbroken
    environment.filters["coded"] = _coded
    environment.filters["whole"] = lambda number: f"{number:,}"
    return environment.get_template(template).render(**values)


def _unbroken(text: str) -> str:
    """The text with intervals and p-values kept on one line."""
    return re.sub(r"\[[^\[\]]*\]|\bp [=<>] ", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def _coded(text: str) -> Any:
    """The text as HTML, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped just now


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
