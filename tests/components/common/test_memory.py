"""The estimate of memory: what it says of known models, and beside what training on this CPU really holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from components.common.errors import UserError
from components.common.memory import Batch, estimate, rows_of
from components.common.model_shape import model_shape, target_linears, tensor_shapes
from components.common.models import model_folder
from components.common.spec import ComputeSpec, ModelSpec
from components.common.spec_phases import DpoSettings, GrpoSettings, SftSettings

GIB = 1 << 30
CLOSE = 0.15
"""What the estimate may be off by; most cases are within 0.02."""


@pytest.fixture(scope="module")
def live() -> ModuleType:
    """The module `live_memory`, imported when it is needed: it sets how the threads of OpenMP wait."""
    from tests.components import live_memory

    return live_memory


def headers(folder: Path, config: dict, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A model's folder with the headers of its safetensors and no numbers."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header = {name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, 0]} for name, shape in shapes.items()}
    raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    return folder


LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def llama_8b(tmp_path: Path):
    """The shape of Llama 3.1 8B."""
    layer = {
        "self_attn.q_proj": (4096, 4096),
        "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096),
        "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336),
        "input_layernorm": (4096,),
        "post_attention_layernorm": (4096,),
    }
    shapes = {f"model.layers.{n}.{name}.weight": shape for n in range(32) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (128256, 4096), "model.norm.weight": (4096,)}
    return model_shape(headers(tmp_path / "8b", LLAMA, {**shapes, "lm_head.weight": (128256, 4096)}))


def need(shape, batch, settings=None, model=None, compute=None, references=False):
    return estimate(
        shape,
        ModelSpec.model_validate({"dtype": "bfloat16", **(model or {})}),
        ComputeSpec.model_validate({"gpus_per_worker": 1, **(compute or {})}),
        settings or SftSettings(),
        batch,
        references,
    )


def test_the_shape_of_a_known_model(llama_8b):
    assert llama_8b.parameters == 8_030_261_248
    assert llama_8b.embedding == llama_8b.head == 525_336_576
    assert llama_8b.matrices == 6_979_321_856
    assert (llama_8b.gated, llama_8b.rms, llama_8b.head_dim, llama_8b.vocabulary) == (True, True, 128, 128256)
    assert {one.name: one.count for one in llama_8b.linears} == dict.fromkeys(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 32
    )


def test_targets_are_matched_as_peft_matches_names(llama_8b):
    assert len(target_linears(llama_8b, [])) == 7
    assert [one.name for one in target_linears(llama_8b, ["q_proj", "mlp.up_proj"])] == ["q_proj", "up_proj"]
    assert target_linears(llama_8b, ["proj"]) == []


def test_full_fine_tuning_is_sixteen_bytes_for_each_parameter(llama_8b):
    found = need(llama_8b, Batch(1, 8, passes=2), compute={"gradient_checkpointing": True})
    assert found.weights == 4 * llama_8b.parameters
    assert found.moments == 8 * llama_8b.parameters
    assert found.gradients >= 4 * llama_8b.parameters
    assert found.copies == 12 * llama_8b.parameters


def test_an_adapter_trains_its_rank_times_both_sides_of_each_matrix(llama_8b):
    found = need(llama_8b, Batch(1, 8), model={"adapter": {"rank": 64}})
    trained = 167_772_160  # 64 * 32 * (4 matrices of attention and 3 of the MLP, the sum of their sides)
    assert found.moments == 8 * trained
    assert found.weights == 2 * llama_8b.parameters + 4 * trained
    some = need(llama_8b, Batch(1, 8), model={"adapter": {"rank": 8, "target_modules": ["q_proj", "v_proj"]}})
    assert some.moments == 8 * 8 * 32 * (4096 + 4096 + 4096 + 1024)
    quantized = need(llama_8b, Batch(1, 8), model={"adapter": {"rank": 64, "quantize": "nf4"}})
    outside = llama_8b.parameters - llama_8b.matrices
    assert quantized.weights == pytest.approx(4.127 / 8 * llama_8b.matrices + 4 * outside + 4 * trained)


def test_float32_on_a_gpu_keeps_the_weights_of_grouped_attention_without_a_mask(llama_8b):
    def more(gpus: int, masked: bool, length: int, **model: str) -> int:
        batch = Batch(1, length, masked=masked)
        adapted = {"dtype": "float32", "adapter": {"rank": 8}, **model}
        return need(llama_8b, batch, model=adapted, compute={"gpus_per_worker": gpus}).activations

    weights = 4 * 32 * 32 * (2048**2 - 2 * 1024**2)  # bytes, layers, heads; what grows with the square of the length
    grown = more(1, False, 2048) - 2 * more(1, False, 1024)
    assert grown == pytest.approx(weights, rel=0.1)
    assert more(0, False, 2048) - 2 * more(0, False, 1024) < weights / 10
    assert more(1, False, 2048, dtype="bfloat16") - 2 * more(1, False, 1024, dtype="bfloat16") < weights / 10


def test_inside_a_quantized_mlp_numbers_are_float32(llama_8b):
    def kept(**adapter: object) -> int:
        return need(llama_8b, Batch(4, 512), model={"adapter": {"rank": 16, **adapter}}).activations

    assert kept(quantize="nf4") - kept() == 2 * 3 * 14336 * 4 * 512 * 32


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_zero3"])
def test_shards_divide_what_each_worker_holds(llama_8b, strategy):
    alone = need(llama_8b, Batch(1, 512), compute={"gradient_checkpointing": True})
    eight = need(llama_8b, Batch(1, 512), compute={"gradient_checkpointing": True, "workers": 8, "strategy": strategy})
    assert eight.moments == alone.moments // 8
    assert eight.weights > alone.weights // 8
    assert eight.device < alone.device / 3


def test_several_workers_of_ddp_hold_buckets_of_gradients_beside_the_gradients(llama_8b):
    batch, compute = Batch(1, 8, passes=2), {"gradient_checkpointing": True}
    two = need(llama_8b, batch, compute={**compute, "workers": 2})
    assert two.gradients - need(llama_8b, batch, compute=compute).gradients == 4 * llama_8b.parameters


def test_a_selected_checkpoint_and_a_reference_are_copies(llama_8b):
    selecting = need(llama_8b, Batch(1, 8), SftSettings(select="best(loss)"))
    assert selecting.copies == 16 * llama_8b.parameters
    assert need(llama_8b, Batch(1, 8), references=True).reference == 4 * llama_8b.parameters


def test_generation_holds_a_cache_of_keys_and_values(llama_8b):
    grpo = GrpoSettings(batch_size=64, samples=8)
    batch = Batch(8, 2048, passes=64, prompts=512, new_tokens=1024)
    found = need(llama_8b, batch, grpo, compute={"gradient_checkpointing": True})
    cache = 2 * 2 * 32 * 8 * 128 * 2048 * 512
    assert (found.gradients, found.activations) == (0, cache + 512 * 16 * 128256)


def test_rows_of_a_forward_pass():
    assert rows_of(SftSettings(batch_size=128), 4) == 32
    assert rows_of(SftSettings(batch_size=9, micro_batch_size=4), 2) == 4
    assert rows_of(DpoSettings(batch_size=8, micro_batch_size=2), 1) == 4
    assert rows_of(GrpoSettings(batch_size=8, samples=4), 2) == 16
    assert rows_of(GrpoSettings(batch_size=8, samples=4, micro_batch_size=8), 2) == 8


def test_what_is_no_safetensors_file_is_said(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 32)
    with pytest.raises(UserError, match="is not a safetensors file"):
        tensor_shapes(tmp_path)


def test_an_architecture_that_does_not_tell_its_shape_is_not_guessed(tmp_path):
    assert model_shape(headers(tmp_path / "odd", {"model_type": "odd"}, {"a.weight": (2, 3)})) is None


LORA, BF16 = {"adapter": {"rank": 16}}, {"dtype": "bfloat16"}
RECOMPUTED = {"compute": {"gradient_checkpointing": True}}
SHAPES = {
    "lab": None,
    "8M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "vocab_size": 8192},
    "grouped": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "vocab_size": 2048,
        "num_key_value_heads": 2,
    },
    "42M": {},
}


@pytest.fixture(scope="module")
def models(live, tmp_path_factory):
    """Folders of models by name, made when they are first asked for."""
    made = {"lab": model_folder("lab")}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = live.llama(tmp_path_factory.mktemp(name), **SHAPES[name])
        return made[name]

    return find


def compared(live, folder, rows, length, uneven, more):
    """The estimate of a phase over what it was seen to hold."""
    one = live.compared(folder, rows, length, uneven, more)
    assert (one.found.weights, one.found.moments) == (one.seen["weights"], one.seen["moments"])
    return one.whole


@pytest.mark.parametrize(
    ("model", "rows", "length", "uneven", "more"),
    [
        ("lab", 8, 96, False, {}),
        ("lab", 32, 64, True, {"settings": {"batching": "packed"}}),
        ("lab", 16, 64, True, {"method": "dpo"}),
        ("8M", 2, 64, False, {"settings": {"batch_size": 6, "micro_batch_size": 2}}),
        ("8M", 8, 64, False, {"model": BF16, **RECOMPUTED}),
        ("8M", 4, 128, True, {"model": {**LORA, **BF16}}),
        ("grouped", 2, 256, True, {}),
    ],
    ids=str,
)
def test_the_estimate_is_what_training_on_this_cpu_holds(live, models, model, rows, length, uneven, more):
    assert compared(live, models(model), rows, length, uneven, more) == pytest.approx(1, abs=CLOSE)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("rows", "length", "uneven", "more"),
    [
        (4, 256, False, {}),
        pytest.param(4, 256, False, {"model": LORA}, marks=pytest.mark.soak),
        pytest.param(4, 256, False, {"model": {"attention": "eager"}}, marks=pytest.mark.soak),
        pytest.param(2, 1024, False, RECOMPUTED, marks=pytest.mark.soak),
        pytest.param(4, 256, True, {"model": BF16}, marks=pytest.mark.soak),
        pytest.param(4, 256, False, {"model": {**LORA, **BF16}}, marks=pytest.mark.soak),
        (4, 128, True, {"method": "dpo", "model": LORA}),
    ],
    ids=str,
)
def test_the_estimate_holds_for_a_model_of_42_million_parameters(live, models, rows, length, uneven, more):
    assert compared(live, models("42M"), rows, length, uneven, more) == pytest.approx(1, abs=CLOSE)
