"""An adapter from somebody else: pickles, and configurations that ask for more than its own weights."""

import json

import pytest

from components.common.adapters import with_adapter
from components.common.errors import UserError
from components.common.models import load_weights
from components.common.spec import ModelSpec


@pytest.fixture
def adapter(tmp_path, lab_model):
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(load_weights(lab_model, ModelSpec()), LoraConfig(r=1, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def put_on(folder, lab_model):
    return with_adapter(load_weights(lab_model, ModelSpec()), folder, trained=False)


def test_pickles_beside_an_adapter_are_never_opened(adapter, lab_model, trap):
    for name in ("adapter_model.bin", "optimizer.pt"):
        (adapter / name).write_bytes(trap.pickle)
    put_on(adapter, lab_model)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="has no safetensors"):
        put_on(adapter, lab_model)
    assert not trap.sprung


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "megatron_config": {"a": 1},
         "megatron_core": "evil"},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 1, "prompt_tuning_init": "TEXT",
         "prompt_tuning_init_text": "x", "tokenizer_name_or_path": "evil",
         "tokenizer_kwargs": {"trust_remote_code": True}},
        {"peft_type": "XLORA", "hidden_size": 8, "adapters": {"0": "../elsewhere"}},
        {"peft_type": "NO_SUCH_KIND"},
        {},
        [],
    ],
)  # fmt: skip
def test_an_adapter_that_asks_for_more_than_its_own_weights_is_refused(adapter, lab_model, trap, monkeypatch, config):
    (adapter / "evil.py").write_text(trap.code)
    monkeypatch.syspath_prepend(str(adapter))
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not fit the model"):
        put_on(adapter, lab_model)
    assert not trap.sprung
