"""A model from somebody else: pickles, adapters, code, lying files, and templates that try to get out."""

import importlib.util
import json
import shutil
import socket
import struct

import pytest
from safetensors.torch import load_file

from components.common.errors import UserError
from components.common.model_shape import model_shape, tensor_shapes
from components.common.models import context_length, load_model, load_tokenizer, model_digest, model_folder
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


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "other.safetensors.index.json"])
@pytest.mark.parametrize("part", ["evil.bin", "../outside.safetensors", "/outside.safetensors", "a/b.safetensors", 7])
def test_an_index_names_safetensors_of_its_own_folder_only(model, trap, part, name):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "evil.bin").write_bytes(trap.pickle)
    shutil.copy(model / "other.safetensors", model.parent / "outside.safetensors")
    (model / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, part)}))
    change(model / "config.json", transformers_weights=name)
    for read in (lambda: model_folder(str(model)), lambda: load_model(model, ModelSpec())):
        with pytest.raises(UserError, match=r"the model's index .* is damaged"):
            read()
    assert not trap.sprung


@pytest.mark.parametrize("index", [[], {"weight_map": [1]}, {}, None, "x"])
def test_an_index_of_another_form_is_said_in_one_message(model, index):
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"the model's index .* is damaged"):
        model_folder(str(model))


@pytest.mark.parametrize("name", ["adapter_model.bin", "evil.bin", "a/b.safetensors.index.json", "a/b.safetensors", 7])
@pytest.mark.parametrize("spelt", ["plainly", "by another name"])
def test_a_configuration_cannot_name_a_pickle_as_the_weights(model, trap, name, spelt):
    for pickle in ("adapter_model.bin", "evil.bin"):
        (model / pickle).write_bytes(trap.pickle)
    if spelt == "plainly":
        change(model / "config.json", transformers_weights=name)
    else:
        change(model / "config.json", attribute_map={"transformers_weights": "x"}, x=name)
    with pytest.raises(UserError, match=r"cannot be loaded: its configuration names .* as the weights"):
        load_model(model, ModelSpec())
    assert not trap.sprung


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def leftover(model, lab_model):
    """The configuration of a LoRA whose files lie beside the weights."""
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(load_model(lab_model, ModelSpec()), LoraConfig(r=1, target_modules=["q_proj"]))
    made.save_pretrained(model.parent / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(model.parent / "adapter" / name, model)
    return model / "adapter_config.json"


ADAPTERS = {
    "a LoRA": {},
    "an IA3": {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []},
    "pickles elsewhere": {"peft_type": "XLORA", "hidden_size": 64, "adapters": {"0": "ELSEWHERE"}},
    "another model": {"base_model_name_or_path": "ELSEWHERE"},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_beside_the_weights_is_refused(model, leftover, trap, kind):
    elsewhere = model.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "adapter_model.bin").write_bytes(trap.pickle)
    shutil.copy(leftover, elsewhere)
    change(model / "config.json", use_cache=False)  # XLoRA wants it
    change(leftover, **json.loads(json.dumps(ADAPTERS[kind]).replace("ELSEWHERE", str(elsewhere))))
    for read in (lambda: model_folder(str(model)), lambda: load_model(model, ModelSpec())):
        with pytest.raises(UserError, match=r"has an adapter \(adapter_config\.json\) beside its weights.*\n.*merge"):
            read()
    assert not trap.sprung


def test_an_adapter_in_a_folder_below_is_nobody_s(model, leftover):
    (model / "below").mkdir()
    leftover.rename(model / "below" / leftover.name)
    loaded = load_model(model_folder(str(model)), ModelSpec())
    assert not [name for name in loaded.state_dict() if "lora" in name]


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The hosts that anybody asked for; nobody gets an answer."""
    hosts = []

    def resolve(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return hosts


KERNELS = {
    "_attn_implementation": r"`kernels` is either not installed",
    "_experts_implementation": r'`experts_implementation="somebody/kernels"` is not supported',
}


@pytest.mark.parametrize("key", KERNELS)
def test_a_configuration_cannot_bring_kernels_from_the_hub(model, asked, key):
    change(model / "config.json", **{key: "somebody/kernels"})
    with pytest.raises(UserError, match=KERNELS[key]):
        load_model(model, ModelSpec())
    assert importlib.util.find_spec("kernels") is None
    assert not asked


@pytest.mark.parametrize("key", ["attn_implementation", "use_kernels", "kernel_config"])
def test_a_configuration_s_wish_for_kernels_is_not_heard(model, asked, key):
    change(model / "config.json", **{key: "somebody/kernels"})
    loaded = load_model(model, ModelSpec())
    assert (loaded.config._attn_implementation, loaded.use_kernels) == ("sdpa", False)
    assert not asked


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


SPARSE = {"longer than safetensors allows": (3 << 30, 4 << 30), "longer than the file": (60 << 20, 60 << 20)}


@pytest.mark.parametrize("said", SPARSE)
def test_a_header_that_claims_the_memory_is_not_read(model, memory_of, said):
    claimed, size = SPARSE[said]
    with (model / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", claimed) + b"{}")
        stream.truncate(size)  # a few blocks on the disk

    def read():
        with pytest.raises(UserError, match=f"is not a safetensors file: the header is {said}"):
            tensor_shapes(model)

    assert memory_of(read) < 1 << 20


@pytest.mark.parametrize(
    "tensors",
    [
        [], None, {"a": []}, {"a": {"shape": 5}}, {"a": {"shape": "ab"}}, {"a": {"shape": [[1]]}},
        {"a": {"shape": [-1]}}, {"a": {"shape": [True]}}, "deep",
    ],
)  # fmt: skip
def test_a_header_of_another_form_is_said_in_one_message(model, tensors):
    text = (DEEP if tensors == "deep" else json.dumps(tensors)).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError, match="is not a safetensors file"):
        model_shape(model)


DEEP = "[" * 100_000
READERS = {
    "config.json": [load_tokenizer, lambda folder: load_model(folder, ModelSpec()), model_shape, context_length],
    "tokenizer_config.json": [load_tokenizer],
    "tokenizer.json": [load_tokenizer],
    "special_tokens_map.json": [load_tokenizer],
    "generation_config.json": [lambda folder: load_model(folder, ModelSpec())],
}


@pytest.mark.parametrize("text", ["[]", "null", "7", '"x"', DEEP, "{", "\udcff", '{"a": ' * 100_000])
@pytest.mark.parametrize("name", READERS)
def test_a_description_of_another_form_is_said_in_one_message(model, name, text):
    (model / name).write_bytes(text.encode(errors="surrogateescape"))
    for read in READERS[name]:
        with pytest.raises(UserError, match=rf"the model folder \S+ has a damaged {name}: \S.*\n  remedy: copy"):
            read(model)


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": [1]}, {"max_position_embeddings": "x"}, {"num_attention_heads": 0}, {"hidden_size": -1},
        {"rope_parameters": [1]}, {"rope_scaling": "x"}, {"architectures": 5}, {"model_type": []}, {"hidden_act": {}},
        {"hidden_act": "no such"}, {"text_config": 5}, {"quantization_config": [1]}, {"attribute_map": 5},
        {"auto_map": 5}, {"dtype": []}, {"head_dim": 0}, {"num_hidden_layers": "x"}, {"id2label": 5},
        {"num_key_value_heads": 0}, {"pad_token_id": 1 << 70},
    ],
)  # fmt: skip
def test_a_configuration_with_values_of_other_types_is_said_or_passed_over(model, values):
    change(model / "config.json", **values)
    for read in READERS["config.json"]:
        try:
            read(model)
        except UserError as error:
            assert "cannot be loaded: " in error.message or "has a damaged config.json" in error.message


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_class": 5}, {"tokenizer_class": []}, {"added_tokens_decoder": 5}, {"added_tokens_decoder": {"": 1}},
        {"eos_token": 5}, {"eos_token": []}, {"eos_token": {"content": 5}}, {"chat_template": 5},
        {"chat_template": [1]}, {"extra_special_tokens": 5}, {"auto_map": 5}, {"model_max_length": "x"},
        {"pad_token": 7}, {"eos_token": ""}, {"pad_token": ""}, {"padding_side": 5}, {"model_input_names": 5},
        {"backend": 5}, {"fix_mistral_regex": []},
    ],
)  # fmt: skip
def test_a_tokenizer_with_values_of_other_types_is_said_or_passed_over(model, values):
    change(model / "tokenizer_config.json", **values)
    try:
        load_tokenizer(model)
    except UserError as error:
        assert "the tokenizer in " in error.message


PANIC = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
                   "continuing_subword_prefix": "longer"}}  # fmt: skip
"""tokenizers cuts the prefix off `b`, and panics."""


@pytest.mark.parametrize(
    "values",
    [
        {"model": 5}, {"model": {"type": "BPE", "vocab": 5, "merges": []}}, {"added_tokens": 5}, {"decoder": []},
        {"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}, {"version": 5}, {"normalizer": "x"},
        {"model": {"type": "Unigram", "unk_id": 9, "vocab": []}}, {"post_processor": {"type": "x"}},
        {"model": {"type": "WordPiece", "vocab": {"a": -1}}}, {"truncation": 5}, {"pre_tokenizer": {"type": []}},
        PANIC,
    ],
)  # fmt: skip
def test_a_vocabulary_with_values_of_other_types_is_said_or_passed_over(model, values):
    change(model / "tokenizer.json", **values)
    try:
        load_tokenizer(model)
    except UserError as error:
        assert "the tokenizer in " in error.message


@pytest.mark.parametrize("values", [{"max_length": "x"}, {"eos_token_id": "x"}, {"cache_implementation": 5},
                                    {"compile_config": 5}, {"watermarking_config": 5}])  # fmt: skip
def test_generation_settings_of_other_types_are_said_or_passed_over(model, values):
    (model / "generation_config.json").write_text(json.dumps(values))
    try:
        load_model(model, ModelSpec())
    except UserError as error:
        assert "cannot be loaded: " in error.message


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
