import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.common.errors import DataError, UserError
from components.common.models import context_length, load_model, load_tokenizer, model_digest, model_folder
from components.common.rendering import Encoded, encode, encode_prompts, refuse_long_prompts
from components.common.spec import ModelSpec
from tests.components import tiny_models as tiny

TALK = [("system", "Be brief."), ("user", "What is 2 + 3?"), ("assistant", "5"), ("user", "And 1?"), ("assistant", "6")]


def learnt(tokenizer, encoded):
    return tokenizer.decode([i for i, kept in zip(encoded.input_ids, encoded.response_mask, strict=True) if kept])


def text(tokenizer, encoded):
    return tokenizer.decode(encoded.input_ids)


@pytest.fixture
def lab_copy(tmp_path):
    return shutil.copytree(model_folder("lab"), tmp_path / "model")


# --- a conversation as tokens ----------------------------------------------------------------------------------------


def test_one_turn_of_the_lab_learns_the_reply_and_its_end(lab_tokenizer):
    (item,) = encode(lab_tokenizer, [[("user", "What is 2 + 3?"), ("assistant", "5")]])
    assert text(lab_tokenizer, item) == "<|user|> What is 2 + 3?<|assistant|> 5<|end|>"
    assert learnt(lab_tokenizer, item) == " 5<|end|>"
    assert item.truncated == 0


def test_every_reply_of_a_long_conversation_is_learnt_and_nothing_else(lab_tokenizer):
    (item,) = encode(lab_tokenizer, [TALK])
    assert text(lab_tokenizer, item) == (
        "<|system|> Be brief.<|user|> What is 2 + 3?<|assistant|> 5<|end|><|user|> And 1?<|assistant|> 6<|end|>"
    )
    assert learnt(lab_tokenizer, item) == " 5<|end|> 6<|end|>"


def test_what_chatml_writes_after_an_end_token_is_never_learnt():
    tokenizer = tiny.chatml_tokenizer()
    (item,) = encode(tokenizer, [TALK])
    assert learnt(tokenizer, item) == "5<|im_end|>6<|im_end|>"
    assert text(tokenizer, item).endswith("<|im_start|>assistant\n6<|im_end|>")
    assert "5<|im_end|>\n<|im_start|>user" in text(tokenizer, item)


def test_the_tokens_of_a_chatml_reply_are_these():
    # One token a byte: "\n" stands after the 10 tokens of `<|im_start|>assistant`, then h, i, <|im_end|>.
    (item,) = encode(tiny.chatml_tokenizer(), [[("user", "x"), ("assistant", "hi")]])
    assert item.response_mask == [False] * 20 + [True] * 3
    assert item.labels == [-100] * 20 + item.input_ids[20:]
    assert item.input_ids[-1] == 257
    assert item.response_tokens == 3


def test_a_tokenizer_without_a_template_gets_the_documented_one(tmp_path):
    tokenizer = load_tokenizer(tiny.save(tmp_path, tiny.gpt2(), tiny.byte_tokenizer()))
    (item,) = encode(
        tokenizer, [[("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")]]
    )
    assert text(tokenizer, item) == (
        "### System:\ns\n### User:\nu\n### Assistant:\na<|endoftext|>\n### User:\nv\n### Assistant:\nb<|endoftext|>"
    )
    assert learnt(tokenizer, item) == "a<|endoftext|>b<|endoftext|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_the_default_template_begins_as_the_tokenizer_does(tmp_path):
    tokenizer = load_tokenizer(tiny.save(tmp_path, tiny.gpt2(), tiny.byte_tokenizer(bos="<s>")))
    (item,) = encode(tokenizer, [[("user", "u"), ("assistant", "a")]])
    assert text(tokenizer, item) == "<s>### User:\nu\n### Assistant:\na<|endoftext|>"


def test_a_template_that_forgets_the_end_gets_it_from_us():
    tokenizer = tiny.byte_tokenizer(template="{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    (item,) = encode(tokenizer, [[("user", "u"), ("assistant", "a")]])
    assert learnt(tokenizer, item) == "a|<|endoftext|>"


@pytest.mark.parametrize("maker", ["chatml_tokenizer", None])
def test_a_prompt_is_exactly_the_prefix_of_its_conversation(lab_tokenizer, maker):
    tokenizer = lab_tokenizer if maker is None else getattr(tiny, maker)()
    (prompt,) = encode_prompts(tokenizer, [TALK[:-1]])
    (whole,) = encode(tokenizer, [TALK])
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.response_mask[len(prompt) :] == [True] * (len(whole.input_ids) - len(prompt))
    assert whole.response_mask[len(prompt) - 1] is False


def test_no_conversations_are_no_tokens(lab_tokenizer):
    assert encode(lab_tokenizer, []) == []
    assert encode_prompts(lab_tokenizer, []) == []


def test_what_is_cut_off_is_counted():
    tokenizer = tiny.chatml_tokenizer()
    talk = [[("user", "x"), ("assistant", "hello")]]
    (whole,) = encode(tokenizer, talk)
    (cut,) = encode(tokenizer, talk, max_length=22)
    assert len(whole.input_ids) == 26
    assert (cut.input_ids, cut.response_mask) == (whole.input_ids[:22], whole.response_mask[:22])
    assert (cut.truncated, cut.response_tokens) == (4, 2)
    assert encode(tokenizer, talk, max_length=26) == [whole]


def test_a_prompt_that_fills_the_context_is_refused_by_its_id():
    good, full = Encoded([1, 2], [False, True]), Encoded([1, 2], [False, False], 5)
    refuse_long_prompts([("a", good)], 2)
    with pytest.raises(DataError, match=r"1 example\(s\) have a prompt that fills the whole context of 2 tokens.*b"):
        refuse_long_prompts([("a", good), ("b", full)], 2)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = tiny.byte_tokenizer(
        template="{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match="rewrites earlier turns"):
        encode(tokenizer, [[("user", "u"), ("assistant", "a")]])


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system role') }}", "{% if %}", "{{ messages[9].role.x }}"]
)
def test_a_template_that_fails_is_said_in_one_message(template):
    with pytest.raises(UserError, match="chat template refuses the turns system, user"):
        encode(tiny.byte_tokenizer(template=template), [[("system", "s"), ("user", "u"), ("assistant", "a")]])


def test_a_conversation_that_begins_with_a_reply_is_refused(lab_tokenizer):
    with pytest.raises(UserError, match=r"refuses the turns \(none\)"):
        encode(lab_tokenizer, [[("assistant", "a")]])


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_without_weights_is_refused(lab_copy):
    (lab_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights in safetensors\n  remedy: save the model with"):
        model_folder(str(lab_copy))


def test_pickled_weights_are_named_and_not_loaded(lab_copy):
    (lab_copy / "model.safetensors").rename(lab_copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"\(it has pytorch_model.bin, which is pickled and never loaded\)"):
        model_folder(str(lab_copy))


def test_a_folder_without_a_configuration_is_refused(lab_copy):
    (lab_copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        model_folder(str(lab_copy))


@pytest.mark.timeout(60)  # that it ends at all; unguarded it would take minutes or never end
def test_an_unknown_hub_id_without_a_network_fails_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the model 'nobody/nothing' is neither a folder nor to be had"):
        model_folder("nobody/nothing")


@pytest.mark.parametrize("files", [["config.json", "tokenizer_config.json"], ["config.json", "model.safetensors"]])
def test_a_part_of_a_model_in_the_hub_cache_is_not_taken_for_the_whole(monkeypatch, tmp_path, files):
    asked = []

    def download(model_id, local_files_only=False, **_):
        asked.append(local_files_only)
        return tmp_path / ("cached" if local_files_only else "whole")

    shutil.copytree(model_folder("lab"), tmp_path / "whole")
    (tmp_path / "cached").mkdir()
    for name in files:
        shutil.copy(tmp_path / "whole" / name, tmp_path / "cached")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert model_folder("some/model") == tmp_path / "whole"
    assert asked == [True, False]


def test_a_sharded_model_in_the_hub_cache_needs_all_its_parts(monkeypatch, tmp_path, lab_copy):
    (lab_copy / "model.safetensors").rename(lab_copy / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (lab_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **options: asked.append(options) or str(lab_copy)
    )
    model_folder("some/model")
    assert len(asked) == 2
    shutil.copy(lab_copy / "a.safetensors", lab_copy / "b.safetensors")
    model_folder("some/model")
    assert len(asked) == 3


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_damaged_weights_are_said_in_one_message(lab_copy, content):
    file = lab_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000] if content is None else content)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(lab_copy, ModelSpec())


def test_a_missing_tensor_is_never_filled_with_random_numbers(lab_copy):
    weights = load_file(lab_copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, lab_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensor\(s\), e.g. model.layers.1.mlp.up_proj.weight"):
        load_model(lab_copy, ModelSpec())


def test_weights_of_another_shape_are_refused(lab_copy):
    config = json.loads((lab_copy / "config.json").read_text())
    (lab_copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(lab_copy, ModelSpec())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_description_is_said_in_one_message(lab_copy, name):
    (lab_copy / name).write_text("{")
    with pytest.raises(UserError, match=rf"the model folder .* has a damaged {name}: "):
        load_tokenizer(lab_copy)


def test_a_tied_model_is_whole_without_its_output_layer(tmp_path):
    folder = tiny.save(tmp_path, tiny.gpt2(), tiny.byte_tokenizer())
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert not load_model(folder, ModelSpec()).training
    assert context_length(folder) == 64


def test_the_type_of_the_weights_is_the_specs(lab_weights):
    assert {weight.dtype for weight in lab_weights.parameters()} == {torch.float32}
    half = load_model(model_folder("lab"), ModelSpec(dtype="bfloat16"))
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_no_code_of_a_model_is_ever_run(lab_copy, tmp_path, model_type):
    trap, sprung = "import pathlib; pathlib.Path({!r}).touch()", tmp_path / "sprung"
    for name in ("evil.py", "custom_generate/generate.py"):
        (lab_copy / name).parent.mkdir(exist_ok=True)
        (lab_copy / name).write_text(trap.format(str(sprung)))
    config = json.loads((lab_copy / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (lab_copy / "config.json").write_text(json.dumps(config))
    about = json.loads((lab_copy / "tokenizer_config.json").read_text())
    (lab_copy / "tokenizer_config.json").write_text(
        json.dumps({**about, "auto_map": {"AutoTokenizer": ["evil.T", None]}})
    )
    load_tokenizer(lab_copy)
    if model_type == "llama":
        load_model(lab_copy, ModelSpec())
    else:
        with pytest.raises(UserError, match="cannot be loaded"):
            load_model(lab_copy, ModelSpec())
    assert not sprung.exists()


# --- the digest ------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_content_and_not_of_times_places_or_notes(lab_copy):
    before = model_digest("lab")
    for file in lab_copy.iterdir():
        os.utime(file, (1, 1))
    (lab_copy / "README.md").write_text("another card")
    assert model_digest(str(lab_copy)) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_the_digest_changes_with_any_byte(lab_copy, name):
    before = model_digest(str(lab_copy))
    content = bytearray((lab_copy / name).read_bytes())
    content[-1] ^= 1
    (lab_copy / name).write_bytes(content)
    assert model_digest(str(lab_copy)) != before


def test_a_padding_token_that_the_model_never_had_is_replaced(tmp_path):
    tokenizer = tiny.chatml_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    folder = tiny.save(tmp_path, tiny.gpt2(), tokenizer)
    assert load_tokenizer(folder).pad_token == "<|im_end|>"


def test_an_end_token_beyond_the_embeddings_is_refused(tmp_path):
    tokenizer = tiny.byte_tokenizer("<|end|>", ["<|one|>", "<|two|>"])
    folder = tiny.save(tmp_path, tiny.gpt2(), tokenizer)
    with pytest.raises(UserError, match="beyond the 258 tokens"):
        load_tokenizer(folder)


def test_remembered_digests_are_the_digests(tmp_path):
    folder = tiny.save(tmp_path / "model", tiny.gpt2(), tiny.byte_tokenizer())
    plain = model_digest(str(folder))
    assert model_digest(str(folder), tmp_path / "memory") == plain
    assert model_digest(str(folder), tmp_path / "memory") == plain
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert model_digest(str(folder), tmp_path / "memory") == model_digest(str(folder)) != plain
