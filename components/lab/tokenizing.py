"""Builds the lab's tokenizer: byte-level BPE with single digits, five special tokens and a chat template.

A word keeps one token wherever it stands because it always carries its leading space: the template writes a space
before every turn's content, and the pre-training text starts every line with one.
"""

import itertools
from typing import TYPE_CHECKING

from components.lab.corpus import END, documents
from components.lab.generator import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
VOCABULARY = 1024
MAX_LENGTH = 1024

# Only the assistant's turn is closed by the end token: it also separates the documents of the pre-training text, so
# after it the base model would take the rest for another document.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}{{- ' ' + (message['content'] | trim) + '<|end|>' -}}{%- endgeneration -%}"
    "{%- elif message['role'] in ['system', 'user'] -%}"
    "{{- '<|' + message['role'] + '|> ' + (message['content'] | trim) -}}"
    "{%- else -%}"
    "{{- raise_exception('the lab model knows the roles system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer(seed: int) -> "PreTrainedTokenizerFast":
    """The tokenizer, trained on a sample of the pre-training text and on the wording of some instructions.

    The wording takes part only in the choice of tokens, so that its words are single tokens; the model never sees it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces = r"'s| ?\p{L}+| ?\p{N}|\n| ?[^\s\p{L}\p{N}]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = [document.removesuffix(END) for document in itertools.islice(documents(seed), 8000)]
    wording = [" " + row["prompt"] for row in generate(4000, seed)]
    tokenizer.train_from_iterator(itertools.chain(text, wording), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
