import re

import pytest

from components.common.errand import Errand, failure_in, failure_line
from components.common.errors import DataError

ERRAND = Errand(
    "train.main.1.s17", "run-1", "phases", "k" * 64, "components.training.step:run", {"context": "{}", "index": 1}
)


def test_an_errand_survives_its_way() -> None:
    assert Errand.decoded(ERRAND.encoded()) == ERRAND


def test_an_encoded_errand_means_nothing_to_a_shell() -> None:
    nasty = Errand("s", "$(rm -rf /)", "phases", "k", "t", {"context": "'; {{workflow.name}} $(HOME) \n#"})
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", nasty.encoded())
    assert Errand.decoded(nasty.encoded()) == nasty


@pytest.mark.parametrize("text", ["", "rubbish!", "eJwDAAAAAAE="])
def test_what_is_no_errand_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Errand.decoded(text)


def test_a_failure_that_can_be_mended_is_found_in_a_log() -> None:
    log = "step 1\n" + failure_line(DataError("row 3 is empty\nand more", "remove it")) + "\nTraceback ..."
    found = failure_in("job failed, last logs: (pid=7) " + log)
    assert isinstance(found, DataError)
    assert (found.message, found.remedy) == ("row 3 is empty\nand more", "remove it")


def test_any_other_failure_is_not_taken_for_one() -> None:
    assert failure_line(RuntimeError("x")) == ""
    assert failure_in('phasetune-failed: {"kind": "Path", "message": 1}\nphasetune-failed: {') is None
