"""What the spec's models share: their strictness, and the names of formats, shares and tiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Format = Literal[
    "auto",
    "alpaca",
    "dolly",
    "sharegpt",
    "openorca",
    "oasst",
    "flan",
    "self_instruct",
    "evol_instruct",
    "hh",
    "gsm8k",
    "phased_ift",
    "messages",
]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Tier = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Source(Strict):
    """One source of training rows."""

    path: str
    """A file, a folder, `s3://bucket/key`, `lab://instructions?count=3000`, or `hf://dataset-id?split=train`."""
    format: Format = "auto"
    """The rows' format; `auto` recognises it and says why."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the source's examples that is used, chosen by a seeded hash."""
    name: str | None = None
    """Shown in reports; the path's last part where absent."""


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a spec's values, with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(inner, f"{key}.{part}" if key else str(part))
