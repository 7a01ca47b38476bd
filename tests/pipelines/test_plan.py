"""What a plan says of memory, and whether it refuses; and what it says before anything has run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.common.curriculum import expand
from components.common.errors import UserError
from components.common.memory import Batch
from components.common.model_shape import ModelShape, model_shape
from components.common.models import model_folder
from components.common.pace import alike, note_pace
from components.common.spec import Spec
from components.common.store import Store
from pipelines.compute_check import Machine
from pipelines.memory_check import Case, check_fits, gib, largest_batch, needed
from pipelines.plan_page import duration
from pipelines.planning import check_inputs, make_plan

GIB = 1 << 30
GPUS = Machine(16, 512 * GIB, (80 * GIB,) * 8)


def spec(store="runs/store", settings=None, phases=None, **more):
    curriculum = {"sft": {"batch_size": 8, "max_length": 64, **(settings or {})}}
    if phases is not None:
        curriculum["phases"] = phases
    data = {"train": [{"path": "lab://instructions?count=40"}]}
    values = {"name": "x", "data": data, "splitting": {"tiers": 1}, "controls": [], "store": str(store)}
    return Spec.model_validate({**values, "curriculum": curriculum, **more})


def first(made):
    return expand(made, 17)[0].phases[0]


@pytest.fixture(scope="module")
def large() -> ModelShape:
    """As the lab's model, but of a billion parameters."""
    shape = model_shape(model_folder("lab"))
    assert shape is not None
    linears = tuple(replace(one, size=(2048, 8192 if "mlp" in one.path else 2048), count=24) for one in shape.linears)
    parameters = sum(one.parameters for one in linears) + 2 * 2048 * 32000
    return replace(
        shape, hidden=2048, layers=24, mlp=8192, heads=16, kv_heads=16, head_dim=128, vocabulary=32000,
        parameters=parameters, embedding=2048 * 32000, head=2048 * 32000, linears=linears,
    )  # fmt: skip


def refusal(large, batch, gpu, **more):
    made = spec(compute={"gpus_per_worker": 1, **more.pop("compute", {})}, **more)
    case = Case(made, first(made), large, batch)
    machine = replace(GPUS, gpus=(gpu,) * 8)
    with pytest.raises(UserError) as caught:
        check_fits(case, machine, lengths_known=True)
    return caught.value, needed(case, machine)


def test_a_phase_that_cannot_fit_is_refused_with_its_parts_and_what_there_is(large):
    error, need = refusal(large, Batch(8, 4096), 80 * GIB)
    assert need.there == round(0.95 * 80 * GIB) - GIB // 2
    assert error.message.startswith(f"the phase tier-1 needs about {gib(need.needed)} of each GPU, of which 75.5 GiB")
    assert "in batches of 8 x 4096 tokens" in error.message


def test_recomputing_activations_is_the_remedy_where_it_is_enough(large):
    error, need = refusal(large, Batch(8, 4096), 80 * GIB)
    assert error.remedy.startswith("set `compute.gradient_checkpointing: true`: it then needs about ")
    assert float(error.remedy.split("about ")[1].split()[0]) < need.needed / GIB


def test_smaller_batches_are_named_beside_it_where_both_are_needed(large):
    error, _ = refusal(large, Batch(64, 4096), 31 * GIB)
    assert "`compute.gradient_checkpointing: true` and `micro_batch_size: 1` in `curriculum.sft`" in error.remedy


def test_shards_are_the_remedy_where_the_states_do_not_fit_and_there_are_workers(large):
    error, _ = refusal(large, Batch(1, 512), 24 * GIB, compute={"workers": 8})
    assert error.remedy.startswith("set `compute.strategy: fsdp`")


def test_an_adapter_is_the_remedy_where_nothing_else_is(large):
    error, _ = refusal(large, Batch(1, 512), 16 * GIB)
    assert error.remedy.startswith("set `model.adapter: {rank: 16}`")


def test_a_model_that_never_fits_is_said_to(large):
    error, _ = refusal(large, Batch(1, 512), 2 * GIB)
    assert error.remedy == "take a smaller model, or a machine with more memory: no setting makes it fit"


def test_without_lengths_only_what_cannot_fit_with_short_examples_is_refused(large):
    made = spec(compute={"gpus_per_worker": 1})
    case = Case(made, first(made), large, Batch(8, 4096))
    assert not check_fits(case, GPUS, lengths_known=False).fits
    with pytest.raises(UserError):
        check_fits(case, replace(GPUS, gpus=(16 * GIB,)), lengths_known=False)


def test_gpus_whose_memory_is_not_told_refuse_nothing(large):
    made = spec(compute={"gpus_per_worker": 1})
    assert check_fits(Case(made, first(made), large, Batch(64, 4096)), replace(GPUS, gpus=(0,)), True).there is None


def test_on_a_cpu_every_worker_counts(large):
    one, two = spec(), spec(compute={"workers": 2})
    small = [needed(Case(made, first(made), large, Batch(1, 64)), Machine(2, 64 * GIB)) for made in (one, two)]
    assert small[1].needed > 1.7 * small[0].needed - small[0].memory.copies


@pytest.mark.parametrize(
    ("settings", "workers", "lengths", "rows", "length"),
    [
        ({"batching": "padded", "batch_size": 2}, 1, [5, 60, 9, 8], 2, 60),
        ({"batching": "padded", "batch_size": 2}, 1, [5, 600, 9, 8], 2, 64),
        ({"batching": "padded", "batch_size": 2}, 2, [5, 60, 9, 8], 1, 60),
        ({"batching": "packed", "batch_size": 4}, 1, [10, 60, 20, 30], 2, 60),
        ({"batching": "grouped", "batch_size": 2}, 1, [60, 5, 59, 6], 2, 60),
        ({"batching": "padded", "batch_size": 4, "micro_batch_size": 1}, 1, [5, 60, 9, 8], 1, 60),
    ],
)
def test_the_largest_batch_is_found_among_the_examples(settings, workers, lengths, rows, length):
    made = spec(settings=settings, compute={"workers": workers})
    names = [str(place) for place in range(len(lengths))]
    batch = largest_batch(made, first(made), 17, 4096, names, dict(zip(names, lengths, strict=True)))
    assert (batch.rows, batch.length) == (rows, length)


def test_the_batches_of_the_other_methods_count_sides_and_completions():
    dpo = spec(phases=[{"method": "dpo", "data": [{"path": "lab://preferences"}], "batch_size": 8, "max_length": 100}])
    assert largest_batch(dpo, first(dpo), 17, 4096) == Batch(16, 100)
    grpo = spec(phases=[{"method": "grpo", "tiers": [1], "batch_size": 8, "samples": 4, "max_new_tokens": 30}])
    found = largest_batch(grpo, first(grpo), 17, 4096, ["a"], {"a": 50})
    assert found == Batch(32, 80, prompts=32, new_tokens=30)


def test_a_plan_of_an_empty_store_names_every_phase_and_what_it_waits_for(tmp_path):
    phases = [{"tiers": [1]}, {"method": "grpo", "steps": 3, "data": [{"path": "lab://instructions?count=40&draw=2"}]}]
    plan = make_plan(spec(tmp_path / "store", phases=phases), Machine(2, 64 * GIB))
    assert [name for name, _, _ in plan.steps] == ["prepare", "prepare grpo", "score", "split, seed 17"]
    assert [(one.key, one.waits, one.steps, one.stored) for one in plan.phases] == [
        (None, "after scoring", None, False),
        (None, "after scoring", 3, False),
    ]
    assert all(one.bound and one.need is not None for one in plan.phases)
    assert not (tmp_path / "store").exists()


def test_data_of_a_phase_that_are_not_there_are_refused_before_anything(tmp_path):
    phases = [{"tiers": [1]}, {"method": "dpo", "data": [{"path": str(tmp_path / "pairs.jsonl")}]}]
    with pytest.raises(UserError, match="there is no such file or folder"):
        check_inputs(spec(tmp_path / "store", phases=phases))


def test_a_plan_lists_nothing_of_the_store(tmp_path, monkeypatch):
    def listed(*_):
        raise AssertionError("the store is listed")

    monkeypatch.setattr("components.common.store_local.LocalEntries.listed", listed)
    monkeypatch.setattr("components.common.objects.LocalObjects.list", listed)
    made = spec(tmp_path / "store", phases=[{"method": "grpo", "tiers": [1], "steps": 3, "batch_size": 8}])
    about = {"alike": alike(made, first(made)), "train_seconds": 10.0, "tokens": 7, "sequence": 12}
    note_pace(Store(made.store), made, about)
    assert [one.seconds for one in make_plan(made, Machine(2, 64 * GIB)).phases] == [20.0]


def test_times_and_sizes_are_shown_as_people_read_them():
    assert [duration(seconds) for seconds in (9.4, 600, 9000)] == ["9 s", "10 min", "2.5 h"]
    assert [gib(size) for size in (1 << 20, 3 * GIB // 2)] == ["1 MiB", "1.5 GiB"]
