"""How fast phases were: written where a phase is made, read by its key; in a folder and in S3."""

import threading

import pytest

from components.common.curriculum import expand
from components.common.errors import UserError
from components.common.models import model_digest
from components.common.pace import Pace, alike, note_pace
from components.common.spec import Spec
from components.common.store import Store


def spec(**more):
    data = {"train": [{"path": "lab://instructions?count=40"}]}
    phases = [{"tiers": [1]}, {"method": "grpo", "tiers": [1], "samples": 4}]
    values = {"name": "x", "data": data, "splitting": {"tiers": 1}, "controls": [], "curriculum": {"phases": phases}}
    return Spec.model_validate({**values, **more})


def like(made, index=0):
    return alike(made, expand(made, 17)[0].phases[index])


def note(store, like, seconds, tokens=1000, examples=10):
    about = {"alike": like, "train_seconds": seconds, "tokens": tokens, "sequence": examples}
    note_pace(store, spec(), about)


def pace(store):
    return Pace(store, model_digest("lab", store.memory))


def test_a_time_is_told_only_from_phases_that_were_alike(store):
    made = spec()
    sft = like(made)
    assert pace(store).seconds(sft, 20, 3000) is None
    for seconds in (50.0, 10.0, 5.0):
        note(store, sft, seconds)
    note(store, {**sft, "device": "cuda"}, 1.0)
    told = pace(store)
    assert told.seconds(sft, 20, 3000) == 30.0  # the middle one: 100 tokens a second
    assert told.seconds(sft, 20, None) is None
    assert told.seconds({**sft, "workers": 2}, 20, 3000) is None
    assert Pace(store, "another model").seconds(sft, 20, 3000) is None


def test_of_the_other_methods_the_examples_count(store):
    grpo = like(spec(), 1)
    note(store, grpo, 10.0, tokens=7, examples=5)
    assert pace(store).seconds(grpo, 20, None) == 40.0


def test_only_the_last_phases_count(store):
    sft = like(spec())
    for seconds in (1.0, 1.0, 1.0, 1.0, 1.0, 100.0, 100.0, 100.0):
        note(store, sft, seconds)
    assert pace(store).seconds(sft, 20, 3000) == 300.0


def test_phases_that_end_together_are_all_remembered(store):
    sft, start = like(spec()), threading.Barrier(3)
    pace(store)  # the model's digest is known, as it is to a step

    def one():
        start.wait(20)
        note(store, sft, 10.0)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    note(store, sft, 1000.0)
    note(store, sft, 1000.0)
    assert pace(store).seconds(sft, 20, 3000) == 30.0  # three of five


@pytest.mark.parametrize("data", [b"", b"[]", b'{"rates": 3}', b'{"rates": ["x", 0]}', b'{"rates": [NaN, -1]}'])
def test_a_damaged_register_tells_nothing_and_is_written_anew(store, data):
    sft = like(spec())
    note(store, sft, 10.0)
    (register,) = [item.name for item in store.objects.list_registers("pace")]
    assert store.objects.swap(register, data, store.objects.look(register)[1]) is not None
    assert pace(store).seconds(sft, 20, 3000) is None
    note(store, sft, 10.0)
    assert pace(store).seconds(sft, 20, 3000) == 30.0


def test_a_store_that_does_not_answer_stops_no_phase(s3_place, monkeypatch):
    monkeypatch.setattr("components.common.pace._PATIENCE", 0.2)
    store = Store(s3_place)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    note(store, like(spec()), 10.0)
    with pytest.raises(UserError, match="did not answer"):
        store.objects.patient(0.2).look("pace/any")
