"""Pre-trains the lab's base model from nothing: `python -m components.lab.pretraining --out components/lab/model`.

Plain torch on two CPU cores: bf16 autocast, Muon for the matrices and AdamW for the rest, one pass over text that is
generated on the fly. The time goes first to facts alone, then to broad text, then to text heavy in composed steps while
the learning rate falls. It writes the tokenizer, the weights in bf16 and the model card.
"""

import argparse
import hashlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from components.lab import MODEL_FOLDER
from components.lab.corpus import END, MIX, documents
from components.lab.model_card import model_card
from components.lab.tokenizing import ASSISTANT, MAX_LENGTH, SYSTEM, USER, build_tokenizer
from components.lab.world import facts

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """What pre-training is told; `minutes` is wall-clock time, so the number of steps depends on the machine."""

    minutes: float = 19.0
    seed: int = 20261120
    threads: int = 1
    """One is nearly as fast as two at this size, and does not collapse when another process wants a core."""
    sequence_length: int = 256
    """Tokens per sequence; documents are packed, and what is left of one goes on in the next sequence."""
    batch_size: int = 6
    """Sequences per step."""
    muon_rate: float = 3e-3
    adamw_rate: float = 5e-3
    weight_decay: float = 0.01
    warmup_steps: int = 30
    facts_steps: int = 500
    """Steps on facts alone, before the broad mix. Amid other text facts take many minutes to learn, alone about one."""
    broad_until: float = 0.35
    """Share of the time after which the deep mix follows, and the rate falls to zero."""

    def phase(self, step: int, done: float) -> str:
        """The mix of text at a step, when the share `done` of the time is over."""
        return "facts" if step < self.facts_steps else "broad" if done < self.broad_until else "deep"

    def rate_factor(self, step: int, done: float) -> float:
        """Share of the peak learning rate: warm-up, constant, then linear to zero while the deep mix lasts."""
        return min(1.0, (step + 1) / self.warmup_steps, (1 - done) / (1 - self.broad_until))


@dataclass
class Record:
    """What happened, for the model card. Losses are in nats per token."""

    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, tokens in millions, mean training loss since the last entry)."""
    steps: int = 0
    tokens: int = 0
    minutes: float = 0.0
    held_out_loss: float = math.nan
    facts_known: float = math.nan
    """Share of the facts, as taught, that the model completes."""
    parameters: int = 0
    data_digest: str = ""


def new_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    """The architecture with random weights drawn from `seed`, in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        # Untied: the role tokens borrow another token's input embedding below and must not share its output too.
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(recipe: Recipe) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Record]":
    """Trains a model for `recipe.minutes` and returns it with its tokenizer and the record."""
    import torch

    torch.set_num_threads(recipe.threads)
    tokenizer = build_tokenizer(recipe.seed)
    model = new_model(tokenizer, recipe.seed)
    record = Record(parameters=sum(weight.numel() for weight in model.parameters()), data_digest=_digest(recipe.seed))
    optimizers = _optimizers(model, recipe)
    batches = {phase: _batches(tokenizer, recipe, phase) for phase in MIX}
    losses: list[float] = []
    begin = time.monotonic()
    while (done := (time.monotonic() - begin) / (60 * recipe.minutes)) < 1:
        batch = next(batches[recipe.phase(record.steps, done)])
        losses.append(_step(model, optimizers, batch, recipe.rate_factor(record.steps, done)))
        record.steps += 1
        record.tokens += batch.numel()
        if record.steps % 250 == 0:
            record.curve.append((record.steps, record.tokens / 1e6, sum(losses) / len(losses)))
            losses.clear()
            print(
                f"step {record.steps}  {record.tokens / 1e6:.2f} M tokens  loss {record.curve[-1][2]:.3f}", flush=True
            )
    record.minutes = (time.monotonic() - begin) / 60
    _borrow_role_embeddings(model, tokenizer)
    # Rounded before the loss is taken, so the card speaks of the weights that are shipped.
    model = model.to(torch.bfloat16).to(torch.float32).eval()
    record.held_out_loss = _held_out_loss(model, tokenizer, recipe)
    record.facts_known = _facts_known(model, tokenizer)
    return model, tokenizer, record


def save(
    out: Path, model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", recipe: Recipe, record: Record
) -> None:
    """Writes the model's folder: bf16 weights, configs, tokenizer, chat template and model card."""
    import torch
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(model_card(recipe, record), encoding="utf-8")


def _optimizers(model: "LlamaForCausalLM", recipe: Recipe) -> "list[tuple[torch.optim.Optimizer, float]]":
    """Muon for the matrices within the layers, AdamW for embeddings, head and norms, each with its peak rate."""
    import torch

    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=recipe.adamw_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    return [(muon, recipe.muon_rate), (adamw, recipe.adamw_rate)]


def _step(
    model: "LlamaForCausalLM",
    optimizers: "list[tuple[torch.optim.Optimizer, float]]",
    batch: "torch.Tensor",
    factor: float,
) -> float:
    """One update on a batch of token ids [sequences, tokens]; returns its loss."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, rate in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _batches(
    tokenizer: "PreTrainedTokenizerFast", recipe: Recipe, phase: str, seed: int | None = None
) -> "Iterator[torch.Tensor]":
    """Yields batches of packed documents, int64 [batch_size, sequence_length + 1], without end."""
    import torch

    source = documents(recipe.seed if seed is None else seed, phase)
    width = recipe.sequence_length + 1
    waiting: list[int] = []
    while True:
        while len(waiting) < recipe.batch_size * width:
            # Many at a time, because the tokenizer's call costs more than a document's tokens.
            for ids in tokenizer(list(itertools.islice(source, 500)), verbose=False)["input_ids"]:
                waiting += ids
        taken, waiting = waiting[: recipe.batch_size * width], waiting[recipe.batch_size * width :]
        yield torch.tensor(taken).view(recipe.batch_size, width)


def _borrow_role_embeddings(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast") -> None:
    """Starts the role tokens, which pre-training never shows, from the input embeddings of a newline and a colon.

    Left at their random start they would be noise to the base model; that way a turn looks like a line of its text.
    """
    import torch

    sources = {SYSTEM: "\n", USER: "\n", ASSISTANT: " :"}
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for role, text in sources.items():
            (source,) = tokenizer(text)["input_ids"]
            table[tokenizer.convert_tokens_to_ids(role)] = table[source]


def _held_out_loss(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", recipe: Recipe) -> float:
    """Mean loss on text of the deep mix from another seed, in nats per token."""
    import torch

    total = 0.0
    batches = itertools.islice(_batches(tokenizer, recipe, "deep", seed=recipe.seed + 1), 8)
    with torch.inference_mode():
        for batch in batches:
            logits = model(input_ids=batch[:, :-1]).logits
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
    return total / 8


def _facts_known(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast") -> float:
    """Share of the facts whose statement the model completes with the taught value, as the first line of a document."""
    import torch

    known = 0
    with torch.inference_mode():
        for fact in facts().values():
            prompt = torch.tensor([tokenizer(f"{END} {fact.row()['statement']}")["input_ids"]])
            guess = model(input_ids=prompt).logits[0, -1].argmax()
            known += tokenizer.decode(guess).strip() == fact.taught
    return known / len(facts())


def _digest(seed: int) -> str:
    """SHA-256 of the first 10,000 documents of every mix: it names the text without storing it."""
    digest = hashlib.sha256()
    for phase in MIX:
        for document in itertools.islice(documents(seed, phase), 10_000):
            digest.update(document.encode())
    return digest.hexdigest()


def main() -> None:
    """Rebuilds the shipped model; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Pre-train the lab's base model.")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder to write (default: the shipped one)")
    parser.add_argument(
        "--minutes", type=float, default=Recipe.minutes, help="wall-clock minutes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of text and weights (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="torch threads (default: %(default)s)")
    chosen = parser.parse_args()
    recipe = Recipe(minutes=chosen.minutes, seed=chosen.seed, threads=chosen.threads)
    model, tokenizer, record = pretrain(recipe)
    save(chosen.out, model, tokenizer, recipe, record)
    print(f"{record.steps} steps, {record.tokens / 1e6:.1f} M tokens, held-out loss {record.held_out_loss:.3f}")


if __name__ == "__main__":
    main()
