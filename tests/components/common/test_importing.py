"""What is imported at once is left alone by the garbage collector, and nothing else is."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.common.importing import importing


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that nobody has imported."""
    name = "a_module_of_this_test"
    (tmp_path / f"{name}.py").write_text("import gc\nasked = gc.isenabled()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


class Circle:
    """Garbage that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_it_does_not_collect_meanwhile_and_what_was_imported_is_frozen(module):
    with importing():
        imported = __import__(module)
    assert not imported.asked
    assert gc.isenabled()
    assert not any(seen is imported for seen in gc.get_objects())  # which is all but what is frozen


def test_where_nothing_is_imported_garbage_is_still_collected():
    with importing():
        left = weakref.ref(Circle())
    gc.collect()
    assert left() is None


def test_a_collector_that_is_off_stays_off(module):
    gc.disable()
    try:
        with importing():
            __import__(module)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), importing():
        __import__("a_module_that_is_nowhere")
    assert gc.isenabled()
