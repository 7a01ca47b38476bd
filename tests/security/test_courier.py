"""The actor that reads and writes files of a phase for workers on other machines: those of the phase only."""

import pytest

from components.training.nodes import Courier

ELSEWHERE = [
    "{out}/../secret",
    "/no-such-folder/secret",  # an absolute one, and nobody's: where this fails, it is written and deleted
    "{out}x/secret",
    "{model}/../secret",
    "{out}/a/../../secret",
    "secret",
    "",
]


@pytest.fixture
def places(tmp_path):
    for name in ("out", "outx", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "secret").write_text("inside" if name != "outx" else "mine")
    (tmp_path / "secret").write_text("mine")
    return {name: str(tmp_path / name) for name in ("out", "model")}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_nothing_elsewhere_is_read_written_or_deleted(places, tmp_path, place):
    courier, name = Courier([places["model"]], places["out"]), place.format(**places)
    calls = [
        lambda: courier.files(name),
        lambda: courier.read(name, 0),
        lambda: courier.exists(name),
        lambda: courier.write(name, 0, b"evil"),
        lambda: courier.note(name, b"evil"),
        lambda: courier.finish(name),
        lambda: courier.clear(name),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is not the phase's"):
            call()
    assert (tmp_path / "secret").read_text() == (tmp_path / "outx" / "secret").read_text() == "mine"


def test_a_model_is_read_and_never_written(places):
    courier, weights = Courier([places["model"]], places["out"]), f"{places['model']}/secret"
    assert courier.read(weights, 0) == b"inside"
    for call in (lambda: courier.note(weights, b"evil"), lambda: courier.clear(places["model"])):
        with pytest.raises(ValueError, match="is not the phase's"):
            call()
    courier.note(f"{places['out']}/new/file", b"good")
    assert courier.read(f"{places['out']}/new/file", 0) == b"good"
