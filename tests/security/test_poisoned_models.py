"""A model from somebody else: pickles, code, lying files, and templates that try to get out."""

import json
import shutil
import struct

import pytest
from safetensors.torch import load_file

from components.common.errors import UserError
from components.common.models import load_model, load_tokenizer, model_digest, model_folder
from components.common.rendering import encode
from components.common.spec import ModelSpec

TALK = [[("user", "1 + 1?"), ("assistant", "2")]]


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# --- pickles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_that_is_only_a_pickle_is_refused(model, trap, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(trap.pickle)
    with pytest.raises(UserError, match="pickled and never loaded"):
        model_folder(str(model))
    assert not trap.sprung


def test_pickles_beside_the_weights_are_never_opened(model, trap):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "a.pkl"):
        (model / name).write_bytes(trap.pickle)
        (model / name).chmod(0)
    load_tokenizer(model_folder(str(model)))
    load_model(model, ModelSpec())
    model_digest(str(model))
    assert not trap.sprung


@pytest.mark.parametrize("part", ["evil.bin", "../outside.safetensors", "/outside.safetensors", "a/b.safetensors", 7])
def test_an_index_names_safetensors_of_its_own_folder_only(model, trap, part):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "evil.bin").write_bytes(trap.pickle)
    shutil.copy(model / "other.safetensors", model.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, part)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"the model's index .* is damaged"):
        model_folder(str(model))
    assert not trap.sprung


@pytest.mark.parametrize("index", [[], {"weight_map": [1]}, {}, None, "x"])
def test_an_index_of_another_form_is_said_in_one_message(model, index):
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"the model's index .* is damaged"):
        model_folder(str(model))


def test_a_configuration_cannot_name_a_pickle_as_the_weights(model, trap):
    (model / "evil.bin").write_bytes(trap.pickle)
    change(model / "config.json", transformers_weights="evil.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(model, ModelSpec())
    assert not trap.sprung


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_a_configuration_cannot_bring_kernels_from_the_hub(model, key):
    change(model / "config.json", **{key: "somebody/kernels"})
    try:
        loaded = load_model(model, ModelSpec())
    except UserError:
        return
    assert loaded.config._attn_implementation == "sdpa"  # ours stands


@pytest.mark.parametrize("name", ["evil.Tokenizer", "../evil", "EvilTokenizer"])
def test_a_tokenizer_class_of_the_models_own_is_not_imported(model, trap, monkeypatch, name):
    for file in ("evil.py", "tokenization_evil.py"):
        (model / file).write_text(trap.code)
    monkeypatch.syspath_prepend(str(model))
    change(model / "tokenizer_config.json", tokenizer_class=name)
    assert encode(load_tokenizer(model), TALK)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(model)
    assert not trap.sprung


# --- files that lie --------------------------------------------------------------------------------------------------


def header(**tensor):
    text = json.dumps({"a": tensor}).encode()
    return struct.pack("<Q", len(text)) + text


LIES = {
    "a header larger than the file": struct.pack("<Q", 1 << 60) + b"{}",
    "more data than there is": header(dtype="F32", shape=[1 << 40], data_offsets=[0, 4 << 40]),
    "a negative shape": header(dtype="F32", shape=[-1], data_offsets=[0, 4]),
    "an overflowing shape": header(dtype="F32", shape=[1 << 40, 1 << 40], data_offsets=[0, 4]) + b"1234",
    "offsets that overlap": header(dtype="F32", shape=[1], data_offsets=[4, 0]) + b"12345678",
    "no JSON": struct.pack("<Q", 4) + b"\x80\x04.\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie_are_said_in_one_message(model, lie):
    (model / "model.safetensors").write_bytes(LIES[lie])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(model, ModelSpec())


# --- chat templates --------------------------------------------------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ self.__init__.__globals__['os'].system('touch MARK') }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
    "{{ strftime_now.__globals__['__builtins__']['open']('MARK', 'w') }}",
    "{{ ('{0.__class__.__init__.__globals__}').format(raise_exception) }}",
    "{% set x = messages.append({'role': 'user', 'content': 'x'}) %}",
    "{% for i in range(999999999) %}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ 1 / 0 }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(lab_model, trap, template):
    tokenizer = load_tokenizer(lab_model)
    tokenizer.chat_template = template.replace("MARK", str(trap.mark)) + tokenizer.chat_template
    with pytest.raises(UserError, match=r"the model's chat template refuses the turns"):
        encode(tokenizer, TALK)
    assert not trap.sprung


def test_the_words_of_a_conversation_are_no_template(lab_model):
    tokenizer = load_tokenizer(lab_model)
    said = "{{ 7 * 7 }}{% raise %}{{ ''.__class__ }}"
    (found,) = encode(tokenizer, [[("user", said), ("assistant", said)]])
    assert tokenizer.decode(found.input_ids).count(said) == 2
