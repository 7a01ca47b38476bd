"""What is compared, and how its numbers are written: accuracy in percent, loss in nats per token."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """A result with its interval; NaN where the data say nothing about the spread.

    Attributes:
        value: The estimate; of several seeds the mean.
        low: The interval's lower end.
        high: The interval's upper end.
        spread: Standard deviation between the seeds; NaN for one seed.
    """

    value: float
    low: float
    high: float
    spread: float = math.nan


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of the held-out part.

    Attributes:
        suite: The first part of the metric's name.
        leaf: The last part of the metric's name.
        title: How a sentence calls it.
        higher_is_better: Its direction.
        scale: What a stored value is multiplied with to be written.
        decimals: Digits after the point.
        sign: Follows a written value.
        unit: Follows a written difference.
    """

    suite: str
    leaf: str
    title: str
    higher_is_better: bool
    scale: float
    decimals: int
    sign: str
    unit: str

    def metric(self, part: str = "") -> str:
        """The metric's name, of everything or of one part: `tier_1`, `unseen_wording`."""
        return ".".join(name for name in (self.suite, part, self.leaf) if name)

    def number(self, value: float) -> str:
        """The bare number, scaled and rounded."""
        return "n/a" if math.isnan(value) else f"{value * self.scale:.{self.decimals}f}"

    def bounds(self, low: float, high: float) -> str:
        """`[38.9, 43.4]`."""
        if math.isnan(low) or math.isnan(high):
            return "[no interval]"
        return f"[{self.number(low)}, {self.number(high)}]"

    def level(self, level: Level) -> str:
        """`41.2% [38.9, 43.4]`."""
        return f"{self.number(level.value)}{self.sign} {self.bounds(level.low, level.high)}"

    def gap(self, value: float) -> str:
        """`+0.4`; a difference that rounds to nothing has no sign."""
        text = self.number(value)
        if not text.strip("-0.") or math.isnan(value):
            return text.lstrip("-")
        return text if text.startswith("-") else f"+{text}"

    def difference(self, value: float, low: float, high: float) -> str:
        """`+0.4 points [-1.2, 2.0]`."""
        return f"{self.gap(value)}{self.unit and ' ' + self.unit} {self.bounds(low, high)}"

    def read(self, metrics: Mapping[str, float | None], part: str = "") -> Level | None:
        """The level among a step's metrics, or None where it was not measured."""
        name = self.metric(part)
        value = _known(metrics.get(name))
        if math.isnan(value):
            return None
        return Level(value, _known(metrics.get(f"{name}.low")), _known(metrics.get(f"{name}.high")))


ACCURACY = Measure("verifiable", "accuracy", "accuracy", True, 100.0, 1, "%", "points")
LOSS = Measure("loss", "nats_per_token", "loss", False, 1.0, 3, "", "")
MEASURES = (ACCURACY, LOSS)


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)


def parts_of(metrics: Iterable[str], measure: Measure) -> tuple[list[str], list[str]]:
    """The tiers and the slices that a measure was taken on: (`tier_1`, ...) by number, and the rest by name."""
    pattern = re.compile(rf"{re.escape(measure.suite)}\.([^.]+)\.{re.escape(measure.leaf)}")
    parts = {match[1] for name in metrics if (match := pattern.fullmatch(name))}
    tiers = [part for part in parts if re.fullmatch(r"tier_\d+", part)]
    return sorted(tiers, key=lambda part: int(part[5:])), sorted(parts - set(tiers))


def part_title(part: str) -> str:
    """`tier_1` -> `tier 1`; the whole held-out part has the empty name."""
    return part.replace("_", " ") if part else "all"


def p_value(p: float) -> str:
    """`p = .61`, `p = .043`, `p < .001`, `p > .99`."""
    if math.isnan(p):
        return "p unknown"
    if p < 0.001:
        return "p < .001"
    if p > 0.99:
        return "p > .99"
    return "p = " + (f"{p:.3f}" if p < 0.0995 else f"{p:.2f}").lstrip("0")


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
