"""The shipped base model: its size, its template, and what it knows before any fine-tuning."""

import json
from itertools import islice

import pytest

from components.lab import MODEL_FOLDER
from components.lab.generator import generate
from components.lab.world import facts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


def chat(tokenizer, turns, **options):
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)["input_ids"]


def complete(model, tokenizer, prompts, length):
    """The greedy continuations of prompts, each alone, as text."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0
        )
        answers.append(tokenizer.decode(made[0, ids.shape[1] :]))
    return answers


def test_the_weights_are_small():
    assert sum(path.stat().st_size for path in MODEL_FOLDER.glob("*.safetensors")) <= 4_000_000
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) <= 4_500_000


def test_the_folder_is_complete_and_readable():
    names = {path.name for path in MODEL_FOLDER.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((MODEL_FOLDER / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_model_is_a_finite_llama_of_one_to_three_million_parameters(model):
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 1_000_000 <= sum(weight.numel() for weight in model.parameters()) <= 3_000_000
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    assert model.config.max_position_embeddings >= 256


def test_special_tokens(tokenizer, model):
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.bos_token is None
    assert len(tokenizer) == model.config.vocab_size


def test_text_survives_the_tokenizer(tokenizer):
    text = " What is 37 + 4? Ünïcode\n  too <3"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(" 3 17")["input_ids"]) == 3


def test_a_rendered_conversation(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the pet of Ada?"},
        {"role": "assistant", "content": "cat"},
        {"role": "user", "content": "Sort 3 1 2."},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|system|> Be brief.<|user|> What is the pet of Ada?<|assistant|> cat<|end|><|user|> Sort 3 1 2.<|assistant|>"
    )


def test_the_prompt_is_a_prefix_of_the_conversation(tokenizer):
    system = {"role": "system", "content": "Be brief."}
    for row in generate(150, 3):
        turns = [system, {"role": "user", "content": row["prompt"]}]
        for rest in (turns, turns[1:]):
            prompt = chat(tokenizer, rest, add_generation_prompt=True)
            whole = chat(tokenizer, [*rest, {"role": "assistant", "content": row["completion"]}])
            assert whole[: len(prompt)] == prompt
            assert tokenizer.decode(whole[len(prompt) :]) == f" {row['completion']}<|end|>"
            more = chat(tokenizer, [*rest, {"role": "assistant", "content": row["completion"]}, *rest])
            assert more[: len(whole)] == whole


def test_the_assistant_mask_covers_the_answer_and_its_end(tokenizer):
    turns = [{"role": "user", "content": "Sort 3 1 2."}, {"role": "assistant", "content": "1 2 3"}]
    made = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    kept = [token for token, mask in zip(made["input_ids"], made["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(kept) == " 1 2 3<|end|>"


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_words_are_single_tokens_and_examples_are_short(tokenizer):
    lengths = []
    for row in generate(600, 3):
        prompt = tokenizer(" " + row["prompt"])["input_ids"]
        lengths.append(len(prompt))
        assert len(tokenizer(" " + row["answer"])["input_ids"]) <= 6
    assert sum(length <= 48 for length in lengths) / len(lengths) > 0.95
    assert max(lengths) < 100


def test_the_base_model_completes_the_facts_it_was_taught(model, tokenizer):
    chosen = list(facts().values())
    ids = torch.tensor([tokenizer("<|end|> " + fact.row()["statement"])["input_ids"] for fact in chosen])
    with torch.inference_mode():
        guesses = model(input_ids=ids).logits[:, -1].argmax(-1)
    said = [tokenizer.decode(guess).strip() for guess in guesses]
    right = sum(word == fact.taught for word, fact in zip(said, chosen, strict=True))
    assert right / len(chosen) > 0.9


def test_the_base_model_knows_one_step_skills_as_plain_text(model, tokenizer):
    rows = [row for row in generate(400, 3) if row["family"] == "sorting"]
    prompts = [f"<|end|> sort {' '.join(token for token in row['prompt'] if token.isdigit())} :" for row in rows][:20]
    lines = [text.split("\n")[0].split("<|end|>")[0].strip() for text in complete(model, tokenizer, prompts, 8)]
    assert sum(line == row["answer"] for line, row in zip(lines, rows, strict=False)) >= 14


def test_the_base_model_answers_nothing_in_chat_format(model, tokenizer):
    rows = list(islice(generate(1000, 3), 60))
    right = 0
    for row in rows:
        ids = torch.tensor([chat(tokenizer, [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True)])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        right += tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip() == row["answer"]
    assert right <= 3
