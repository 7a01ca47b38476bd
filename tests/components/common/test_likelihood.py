import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from components.common.likelihood import batches_by_length, response_nll
from components.common.rendering import Encoded, encode
from tests.components import tiny_models as tiny

TALKS = [
    [("user", "What is 2 + 3?"), ("assistant", "5")],
    [("user", "Sort these words: pear, fig, apple."), ("assistant", "apple, fig, pear")],
    [("user", "a"), ("assistant", "b"), ("user", "c d e f"), ("assistant", "g h")],
    [("system", "Be brief."), ("user", "x"), ("assistant", "")],
]


def one_by_one(model, items):
    """Each marked token's -log p, computed alone, without padding and batches."""
    sums = []
    for item in items:
        with torch.inference_mode():
            logits = model(torch.tensor([item.input_ids])).logits[0].double()
        logs = torch.log_softmax(logits, -1)
        marked = [place for place in range(1, len(item.input_ids)) if item.response_mask[place]]
        sums.append(-sum(float(logs[place - 1, item.input_ids[place]]) for place in marked))
    return np.array(sums)


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batches_change_nothing(lab_weights, lab_tokenizer, batch_tokens):
    items = encode(lab_tokenizer, TALKS)
    sums = response_nll(lab_weights, items, batch_tokens)
    assert sums.shape == (4,)
    np.testing.assert_allclose(sums, one_by_one(lab_weights, items), rtol=1e-5)


def build(name):
    torch.manual_seed(1)
    if name == "gpt2":
        return tiny.gpt2()
    if name == "opt":
        return OPTForCausalLM(
            OPTConfig(
                vocab_size=258,
                hidden_size=16,
                ffn_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                word_embed_proj_dim=16,
            )
        ).eval()
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).eval()


@pytest.mark.parametrize("name", ["gpt2", "opt", "neox"])
def test_other_architectures_agree_with_the_plain_computation(name):
    model = build(name)
    items = [
        Encoded([5, 6, 7, 8, 9], [False, False, True, True, True]),
        Encoded([1, 2], [False, True]),
        Encoded([3, 4, 5], [False, False, True]),
    ]
    np.testing.assert_allclose(response_nll(model, items, 100), one_by_one(model, items), rtol=1e-5)


def test_a_uniform_model_gives_the_logarithm_of_its_vocabulary_for_each_token():
    model = tiny.gpt2()
    torch.nn.init.zeros_(model.transformer.wte.weight)
    items = [Encoded([1, 2, 3, 4], [False, True, False, True]), Encoded([9, 9], [False, True])]
    np.testing.assert_allclose(response_nll(model, items, 64), np.log(258) * np.array([2, 1]), rtol=1e-6)


def test_the_first_token_never_counts():
    model = tiny.gpt2()
    marked, plain = Encoded([7, 8, 9], [True, True, True]), Encoded([7, 8, 9], [False, True, True])
    assert response_nll(model, [marked], 9)[0] == response_nll(model, [plain], 9)[0]
    assert response_nll(model, [Encoded([7], [True])], 9).tolist() == [0.0]


def test_a_conversation_without_a_mark_costs_nothing_also_beside_others():
    model = tiny.gpt2()
    empty, marked = Encoded([7, 8, 9], [False] * 3), Encoded([4, 5], [False, True])
    together = response_nll(model, [empty, marked], 100)
    assert together[0] == 0.0
    assert together[1] == pytest.approx(one_by_one(model, [marked])[0], rel=1e-5)
    assert response_nll(model, [empty], 100).tolist() == [0.0]


def test_no_conversations_are_no_numbers():
    assert response_nll(tiny.gpt2(), [], 100).shape == (0,)


def test_progress_ends_at_the_number_of_conversations():
    said = []
    response_nll(tiny.gpt2(), [Encoded([1, 2], [False, True])] * 5, 4, said.append)
    assert said == [2, 4, 5]


def test_batches_are_these():
    assert batches_by_length([3, 9, 2, 5, 3], 10) == [[1], [3, 0], [4, 2]]


def test_one_item_may_exceed_the_budget_alone():
    assert batches_by_length([50, 1], 10) == [[0], [1]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40)), st.integers(1, 100))
def test_every_item_is_in_one_batch_within_the_budget(lengths, budget):
    batches = batches_by_length(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
