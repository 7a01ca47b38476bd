"""That checkpoints can be compared is seen before a phase begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.common.errors import DataError, UserError
from components.common.examples import Example, write_rows
from components.common.selection import for_selection
from components.training.fit import fit

Job = Callable[..., dict[str, Any]]


def held_out(folder: Path, selects: bool = True, prompt: str = "1 + 1", **more: Any) -> str:
    """A file of one example, which is for selection or not."""
    groups = (f"g{number}" for number in range(100))
    made = (Example(messages=(("user", prompt), ("assistant", "2")), group=group, id="one", **more) for group in groups)
    path = folder / "held_out.parquet"
    write_rows(path, [next(one for one in made if for_selection(one) == selects).to_row()])
    return str(path)


def refused(make_job: Job, select: str, selection: str, kind: type[UserError], said: str) -> None:
    job = make_job("job", {"select": select}, selection=selection)
    with pytest.raises(kind, match=said):
        fit(job)
    assert not (Path(job["out"]) / "scratch" / "data.arrow").exists()  # before anything is worked out


@pytest.mark.parametrize("select", ["best(loss)", "best(accuracy)"])
def test_a_prompt_that_leaves_no_room_is_refused(make_job, tmp_path, select):
    selection = held_out(tmp_path, prompt="one two three " * 400, answer="2", verifier="exact")
    said = "1 .* a prompt that fills|1 prompt.s. fill the whole context"
    refused(make_job, select, selection, DataError, said)


def test_an_answer_that_its_verifier_cannot_use_is_refused(make_job, tmp_path):
    selection = held_out(tmp_path, answer="{", verifier="json_schema")
    refused(make_job, "best(accuracy)", selection, UserError, "it is not JSON, so it is no JSON schema")


@pytest.mark.parametrize(("select", "selects"), [("best(loss)", False), ("best(accuracy)", True)])
def test_nothing_to_compare_on_is_refused(make_job, tmp_path, select, selects):
    refused(make_job, select, held_out(tmp_path, selects), DataError, "finds no held-out example to select on")
