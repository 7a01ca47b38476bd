"""The model card of the lab's base model, with the figures of the run that made it."""

from typing import TYPE_CHECKING

from components.lab.tokenizing import MAX_LENGTH

if TYPE_CHECKING:
    from components.lab.pretraining import Recipe, Record

MACHINE = "AMD EPYC, 2 cores"
DATE = "2026-11-20"
CURVE_ROWS = 12

CARD = """\
# The lab's base model

A language model of {parameters:,} parameters that knows a world of forty people and a few skills. It exists so that
phasetune can be tried and tested on a laptop: fine-tuning it takes seconds, and how hard a problem is for it is known.

- Architecture: Llama, hidden size 128, 6 layers, 4 heads, MLP 384, context {context} (trained on 256),
  untied embeddings, bf16 weights.
- Tokenizer: byte-level BPE, one token per digit and per word of the world, trained on the pre-training text and on the
  instructions' wording. The chat template knows system, user and assistant. `<|end|>` closes each assistant turn and is
  the eos token; padding has a token of its own; there is no bos token.
- Made by `python -m components.lab.pretraining` on {date}; machine: {machine}.

## Recipe
| | |
| --- | --- |
| text | facts, worked examples, patterns (`components/lab/corpus.py`); no instruction, no chat turn |
| data digest | `{digest}` (SHA-256 of the first 10,000 documents of each mix) |
| seed | {recipe.seed} |
| size | {tokens:.1f} M tokens, each seen once; {record.steps} steps of {recipe.batch_size} x {recipe.sequence_length} |
| time | {record.minutes:.1f} minutes |
| precision | fp32 weights under bf16 autocast, rounded to bf16 at the end |
| layers' matrices | Muon, {recipe.muon_rate}, updates scaled as AdamW's, weight decay {recipe.weight_decay} |
| the rest | AdamW, {recipe.adamw_rate}, weight decay {recipe.weight_decay} |
| schedule | {recipe.facts_steps} steps of facts; the broad mix to {broad:.0%} of the time; the deep mix, rate falling |

The role tokens never occur in the text. Their input embeddings start as copies: system and user from a newline,
assistant from a colon.

## Loss (nats per token)
Held-out text of the deep mix, with the shipped bf16 weights: **{record.held_out_loss:.3f}**.
Much of the text is drawn at random, so this cannot come near 0.

| step | tokens (M) | training loss |
| --- | --- | --- |
{curve}

The mix changes after {recipe.facts_steps} steps and at {broad:.0%} of the time: losses before and after differ in text.

## What it can do
- Complete statements: `<|end|> the city of Ada is`, `<|end|> sort 3 1 2 :`. It completes {record.facts_known:.1%} of
  the facts with the value it was taught. Each line of its text starts with a space, and `<|end|>` stands before a
  document: as the very first token of all, a word of the statement is read badly.
- In chat format it answers next to nothing exactly, for it never learned to stop after an answer. Fine-tuning teaches
  it that, and how instructions are worded.
- A tenth of the attribute facts is wrong in its text on purpose (`taught` differs from `value` in `world.jsonl`):
  material for knowledge probes. No instruction asks for them.

## What it cannot do
- Anything outside its world: it has never seen ordinary language.
- Five hops, three sums in a row, or four list operations, more than now and then; finding the right one of several
  notes (it names any of them); counting. Fine-tuning in this size does not change that.
- Wordings that fine-tuning did not show; text of more than {recipe.sequence_length} tokens, which it never saw.
- Worked examples are drawn like the instructions, so the content of a held-out problem (never its wording) may have
  stood in the text. What fine-tuning shows is that the skill carries over to the format, not that it is new.
"""


def model_card(recipe: "Recipe", record: "Record") -> str:
    """The card as Markdown."""
    every = max(1, -(-len(record.curve) // CURVE_ROWS))
    kept = record.curve[every - 1 :: every]
    if record.curve and kept[-1:] != record.curve[-1:]:
        kept.append(record.curve[-1])
    return CARD.format(
        parameters=record.parameters,
        context=MAX_LENGTH,
        date=DATE,
        machine=MACHINE,
        digest=record.data_digest,
        recipe=recipe,
        record=record,
        tokens=record.tokens / 1e6,
        broad=recipe.broad_until,
        curve="\n".join(f"| {step} | {tokens:.2f} | {loss:.3f} |" for step, tokens, loss in kept),
    )
