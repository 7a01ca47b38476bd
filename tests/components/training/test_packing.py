"""Packed batches: as many examples to a row as fit, and each scores as it does alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from components.training.batches import WINDOW, group_by_length
from components.training.packing import PackedCollator, bins, keeps_apart


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_every_example_is_in_one_row_and_no_row_is_too_full(lengths):
    rows = bins(lengths, max(lengths))
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= max(lengths) for row in rows)


def test_short_examples_fill_the_room_beside_long_ones():
    assert bins([10, 4, 6, 3, 7], 10) == [[0], [4, 3], [2, 1]]


def llama(attention: str, **more: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, attn_implementation=attention, **more,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def examples(number: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for place in range(number):
        ids = torch.randint(1, 128, (5 + 3 * place,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return found


def nll(model, batch) -> float:
    """The summed loss of all labels, in nats."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits.double()
    found = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    return float(found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_of_a_packed_batch_is_that_of_its_examples_one_by_one(attention):
    model, every, collate = llama(attention), examples(8), PackedCollator(0)
    packed = collate(every)
    assert packed["input_ids"].shape[0] < len(every)
    alone = sum(nll(model, collate([example])) for example in every)
    assert nll(model, packed) == pytest.approx(alone, rel=1e-5)


def test_a_first_token_is_never_predicted_from_the_example_before():
    every = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]} for _ in range(2)]
    every.append({"input_ids": list(range(1, 9)), "labels": [-100] * 8})
    batch = PackedCollator(0)(every)
    starts = batch["position_ids"] == 0
    assert (batch["labels"][starts] == -100).all()


def test_padding_belongs_to_no_example():
    batch = PackedCollator(9)([{"input_ids": [1, 2, 3, 4], "labels": [1] * 4}, {"input_ids": [5, 6], "labels": [5, 6]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_keeps_examples_apart_is_seen_to(attention):
    assert keeps_apart(llama(attention))


def test_a_model_that_mixes_them_is_seen_too():
    """Attention that sees the whole row: what a mask given by somebody else does to packed examples."""
    model = llama("sdpa")
    whole = model.forward

    def leaking(input_ids, position_ids=None, **more):
        return whole(input_ids, attention_mask=torch.ones_like(input_ids), position_ids=position_ids, **more)

    model.forward = leaking
    assert not keeps_apart(model)


def test_looking_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)).train()
    keeps_apart(model)
    assert model.training


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 5))
def test_grouping_keeps_every_example_in_its_window(lengths, size, seed):
    rows = list(range(len(lengths)))
    grouped = group_by_length(rows, lengths, size, seed)
    window = WINDOW * size
    for start in range(0, len(rows), window):
        assert sorted(grouped[start : start + window]) == rows[start : start + window]


def test_grouping_puts_like_lengths_together_and_forgets_no_order():
    lengths = [(7 * place) % 64 + 1 for place in range(64)]
    grouped = group_by_length(list(range(64)), lengths, 8, seed=1)
    steps = [[lengths[row] for row in grouped[start : start + 8]] for start in range(0, 64, 8)]
    assert all(max(step) - min(step) <= 8 for step in steps)
    assert (
        grouped
        == group_by_length(list(range(64)), lengths, 8, seed=1)
        != group_by_length(list(range(64)), lengths, 8, seed=2)
    )
    assert sorted(steps) != steps  # the steps of a window are not sorted by length
