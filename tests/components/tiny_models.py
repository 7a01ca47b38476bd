"""Tiny tokenizers and models made on the spot, so that tests meet more than the lab's model."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(eos="<|endoftext|>", special=(), template=None, bos=None):
    """One token a byte (so 256 of them), then the special tokens from number 256 on: the last of them is `eos`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = [*special, *([bos] if bos else []), eos]
    inner.add_special_tokens(names)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


def chatml_tokenizer():
    return byte_tokenizer("<|im_end|>", ["<|im_start|>"], CHATML)


def gpt2(context=64, layers=2, seed=0, spread=0.02):
    """A GPT-2 of random weights (normal, of this spread): absolute positions, tied embeddings."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=258,
        n_positions=context,
        n_embd=32,
        n_layer=layers,
        n_head=2,
        bos_token_id=257,
        eos_token_id=257,
        initializer_range=spread,
    )
    return GPT2LMHeadModel(config).eval()


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
