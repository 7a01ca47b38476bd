import pytest
import torch

from components.common.errors import DataError
from components.common.generation import generate
from components.common.rendering import encode_prompts
from tests.components import tiny_models as tiny

PROMPTS = [
    [("user", "What is 2 + 3?")],
    [("user", "Sort these words: pear, fig, apple.")],
    [("user", "hi")],
    [("system", "Be brief."), ("user", "Reverse: a b c d e f g h"), ("assistant", "h g"), ("user", "Again.")],
]


def by_hand(model, tokenizer, prompt, limit, context):
    """Greedy search over the whole text again for every token; no cache, no padding, no `generate`."""
    (ids,) = encode_prompts(tokenizer, [prompt])
    made = []
    while len(made) < limit and len(ids) + len(made) < context:
        with torch.inference_mode():
            token = int(model(torch.tensor([ids + made])).logits[0, -1].argmax())
        made.append(token)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(made, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def small():
    """A GPT-2 of 64 positions and its tokenizer."""
    tokenizer = tiny.chatml_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tiny.gpt2(spread=0.5), tokenizer


@pytest.mark.parametrize("batch_tokens", [64, 10_000])
def test_batches_give_what_greedy_search_by_hand_gives(lab_weights, lab_tokenizer, batch_tokens):
    expected = [by_hand(lab_weights, lab_tokenizer, prompt, 12, 512) for prompt in PROMPTS]
    assert generate(lab_weights, lab_tokenizer, PROMPTS, 12, batch_tokens, 512) == expected


def test_a_reply_ends_at_the_end_token(lab_weights, lab_tokenizer):
    end = lab_tokenizer.eos_token_id
    bias = torch.zeros(lab_weights.config.vocab_size)
    bias[end] = 1e4
    hook = lab_weights.lm_head.register_forward_hook(lambda _module, _inputs, output: output + bias)
    try:
        assert generate(lab_weights, lab_tokenizer, PROMPTS, 50, 10_000, 512) == [""] * 4
    finally:
        hook.remove()


def test_no_reply_leaves_the_context_and_none_depends_on_its_neighbours(small):
    model, tokenizer = small
    prompts = [[("user", "x" * size)] for size in (1, 10, 18, 20, 21, 1)]
    assert [len(ids) for ids in encode_prompts(tokenizer, prompts)] == [20, 29, 37, 39, 40, 20]
    expected = [by_hand(model, tokenizer, prompt, 10, 41) for prompt in prompts]
    assert len(set(expected)) > 2
    assert generate(model, tokenizer, prompts, 10, 10_000, 41) == expected


def test_a_prompt_that_fills_the_context_is_refused(small):
    model, tokenizer = small
    with pytest.raises(DataError, match=r"1 prompt\(s\) fill the whole context of 40 tokens"):
        generate(model, tokenizer, [[("user", "x")], [("user", "x" * 60)]], 5, 1000, 40)


def test_settings_that_came_with_the_model_do_not_bend_greedy_search(lab_weights, lab_tokenizer):
    plain = generate(lab_weights, lab_tokenizer, PROMPTS, 8, 1000, 512)
    before = lab_weights.generation_config
    own = type(before)(repetition_penalty=50.0, no_repeat_ngram_size=1, min_new_tokens=8, do_sample=True, top_k=3)
    lab_weights.generation_config = own
    try:
        assert generate(lab_weights, lab_tokenizer, PROMPTS, 8, 1000, 512) == plain
        assert lab_weights.generation_config is own
    finally:
        lab_weights.generation_config = before


def test_no_prompts_are_no_replies(small):
    assert generate(*small, [], 5, 1000, 64) == []


def test_progress_ends_at_the_number_of_prompts(small):
    said = []
    generate(*small, [[("user", "x")]] * 5, 2, 60, 64, said.append)
    assert said == [2, 4, 5]
