"""Models: finding, checking and loading them, and the one rendering of a conversation into tokens.

Training, scoring, evaluation and generation all render through `encode`, so they agree on every token. Weights are
safetensors and nothing of a model's own code is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.digests import digest, digest_file
from components.common.errors import DataError, UserError
from components.common.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = Sequence[tuple[str, str]]

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""For tokenizers without a chat template: a heading for each turn, the end-of-sequence token after each reply. Where
the tokenizer itself begins every text with a token (`<s>` of Llama), `load_tokenizer` puts that token in front."""

_WEIGHTS = "*.safetensors"
_READ = ("*.json", _WEIGHTS, "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        input_ids: All tokens.
        response_mask: True where the token belongs to a reply (its end token included): where the loss is taken.
        truncated: Tokens cut off at the end.
    """

    input_ids: list[int]
    response_mask: list[bool]
    truncated: int = 0

    @property
    def labels(self) -> list[int]:
        """The tokens to predict, -100 outside the replies."""
        return [token if kept else -100 for token, kept in zip(self.input_ids, self.response_mask, strict=True)]

    @property
    def response_tokens(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.response_mask)


def model_folder(path: str) -> Path:
    """The local folder of a model: `lab`, a folder, or a hub id from the local cache or the hub.

    Raises:
        UserError: If the folder is not there, holds no safetensors, or the hub cannot be reached.
    """
    if path == "lab":
        from components.lab import MODEL_FOLDER

        return Path(MODEL_FOLDER)
    folder = Path(path)
    if not folder.is_dir():
        folder = _from_hub(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"the model folder {folder} has no config.json", "give a folder saved by `save_pretrained`")
    if not any(folder.glob(_WEIGHTS)):
        others = sorted(item.name for item in folder.glob("*.bin")) + sorted(item.name for item in folder.glob("*.pt"))
        found = f" (it has {', '.join(others)}, which is pickled and never loaded)" if others else ""
        raise UserError(
            f"the model folder {folder} has no weights in safetensors{found}",
            "save the model with `save_pretrained(..., safe_serialization=True)`",
        )
    return folder


def _from_hub(model_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(model_id, allow_patterns=list(_READ), local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        cached = None
    # The cache may hold a part of the model only, as when somebody loaded its tokenizer.
    if cached is not None and _is_whole(cached):
        return cached
    try:
        return Path(snapshot_download(model_id, allow_patterns=list(_READ), etag_timeout=10))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if cached is not None and any(cached.glob(_WEIGHTS)):
            return cached
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the model {model_id!r} is neither a folder nor to be had from the Hugging Face hub: {reason}",
            "check the name and the network, log in with `hf auth login` for gated models, or give a local folder",
        ) from None


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a configuration, a tokenizer and every part of the weights."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        parts = {"model.safetensors"}
    return all((folder / name).is_file() for name in ("config.json", "tokenizer_config.json", *parts))


def model_digest(path: str) -> str:
    """Digest of a model's files: its configuration, weights, tokenizer and chat template."""
    folder = model_folder(path)
    files = sorted({item for pattern in _READ for item in folder.glob(pattern)})
    return digest({item.name: digest_file(item.resolve()) for item in files})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a chat template and a padding token in any case."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the tokenizer in {folder} cannot be loaded: {str(error).splitlines()[0]}",
            "the folder needs tokenizer.json (save it with `tokenizer.save_pretrained`)",
        ) from None
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer in {folder} has no eos_token", "set `eos_token` in tokenizer_config.json")
    if tokenizer.chat_template is None:
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + DEFAULT_CHAT_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so sharing the token is safe
    return tokenizer


def load_model(folder: Path, spec: ModelSpec, device: str = "cpu") -> PreTrainedModel:
    """The weights of a model folder, in evaluation mode on a device.

    Raises:
        UserError: If the architecture is unknown or the weights do not fit it.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the model in {folder} cannot be loaded: {str(error).splitlines()[0]}",
            "it must be a causal language model that transformers knows by itself",
        ) from None
    if report["missing_keys"]:  # transformers fills them with random numbers and goes on
        raise UserError(
            f"the weights in {folder} lack {len(report['missing_keys'])} tensor(s), e.g. {min(report['missing_keys'])}",
            "copy the model again, or save it with `save_pretrained`",
        )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def context_length(folder: Path) -> int:
    """Tokens that the model's positions allow; a large number where its configuration names no limit."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return 1 << 20


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, ValueError) as error:
        roles = ", ".join(role for role, _ in messages) or "(none)"
        raise UserError(
            f"the model's chat template refuses the turns {roles}: {error}",
            "take these turns out of the data, or set another chat_template in the model's folder",
        ) from None
    return text


def _segments(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[tuple[str, bool]]:
    """The rendered conversation cut where replies begin and end, as (text, is it a reply)."""
    segments: list[tuple[str, bool]] = []
    done = ""
    for place, (role, _) in enumerate(messages):
        if role != "assistant":
            continue
        before, through = _render(tokenizer, messages[:place], True), _render(tokenizer, messages[: place + 1], False)
        if not (before.startswith(done) and through.startswith(before)):
            raise UserError(
                "the model's chat template rewrites earlier turns, so replies cannot be told from prompts",
                "set a chat_template in which each turn only appends (e.g. ChatML) in the model's folder",
            )
        segments += [(before[len(done) :], False), (through[len(before) :], True)]
        done = through
    return segments


def _end(reply: list[int], eos: int) -> int:
    """Tokens of a reply up to its end token; all where it has none."""
    return len(reply) - reply[::-1].index(eos) if eos in reply else len(reply)


def _assemble(tokens: list[tuple[list[int], bool]], eos: int, max_length: int | None) -> Encoded:
    ids = list(tokens[-1][0])
    # The last reply ends with its end token: what a template writes after it is never generated, so never learnt.
    ids = ids[: _end(ids, eos)] if eos in ids else [*ids, eos]
    whole: list[int] = []
    mask: list[bool] = []
    for part, reply in [*tokens[:-1], (ids, True)]:
        learnt = _end(part, eos) if reply else 0
        whole += part
        mask += [True] * learnt + [False] * (len(part) - learnt)
    limit = len(whole) if max_length is None else max_length
    return Encoded(whole[:limit], mask[:limit], max(0, len(whole) - limit))


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Messages], max_length: int | None = None
) -> list[Encoded]:
    """Conversations as tokens, with the replies marked.

    Prompts and replies are tokenized apart and joined, so that a reply's tokens never depend on whether it is being
    trained on or generated.

    Args:
        tokenizer: The model's tokenizer.
        conversations: Each ends with an assistant turn.
        max_length: Tokens to keep of each; the rest is cut and counted.
    """
    cut = [_segments(tokenizer, messages) for messages in conversations]
    texts = [text for segments in cut for text, _ in segments]
    if not texts:
        return []
    ids = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])
    eos = int(tokenizer.eos_token_id)
    return [_assemble([(next(ids), reply) for _, reply in segments], eos, max_length) for segments in cut]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Messages]) -> list[list[int]]:
    """Prompts as tokens, ready for a reply: exactly the prefix that `encode` gives them."""
    ids: list[list[int]] = []
    for prompt in prompts:
        segments = _segments(tokenizer, [*prompt, ("assistant", "")])
        texts = [text for text, _ in segments[:-1]]
        parts = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ids.append([token for part in parts for token in part])
    return ids


def reply_header(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the chat template writes to open a reply; the end token where it writes nothing."""
    turns = [("user", "x")]
    header = _render(tokenizer, turns, True)[len(_render(tokenizer, turns, False)) :]
    ids = tokenizer(header, add_special_tokens=False)["input_ids"] if header else []
    return [int(token) for token in ids] or [int(tokenizer.eos_token_id)]


def refuse_long_prompts(encoded: Sequence[tuple[str, Encoded]], limit: int) -> None:
    """Raise where a prompt fills the whole context, so that nothing of the reply is left.

    Args:
        encoded: (example id, tokens cut at `limit`).
        limit: Tokens of context.
    """
    bad = [name for name, item in encoded if item.response_tokens == 0]
    if bad:
        raise DataError(
            f"{len(bad)} example(s) have a prompt that fills the whole context of {limit} tokens, e.g. {bad[0]}",
            "shorten or remove them, raise `curriculum.sft.max_length`, or take a model with a longer context",
        )


def quiet() -> None:
    """Keep the libraries' progress bars and advice off the user's screen; errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
