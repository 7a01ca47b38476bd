"""Models: finding, checking and loading them. Weights are safetensors, and nothing of a model's own code is run."""

from __future__ import annotations

import fnmatch
import os
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.adapters import STACK, merge, read_stack, with_adapter
from components.common.digests import digest, digest_file
from components.common.errors import UserError
from components.common.model_bucket import Marks, fetched, in_bucket, listed
from components.common.model_files import (
    INDEX,
    index_parts,
    read_object,
    refuse_adapter,
    refuse_damaged,
    refuse_foreign_parts,
    refuse_named_weights,
    unusable,
)
from components.common.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""For tokenizers without a chat template: a heading for each turn, the end-of-sequence token after each reply. Where
the tokenizer itself begins every text with a token (`<s>` of Llama), `load_tokenizer` puts that token in front."""

_WEIGHTS = "*.safetensors"
_READ = ("*.json", _WEIGHTS, "*.jinja", "*.txt", "*.model")
_TOKENIZER = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
"""The JSON that transformers reads for a tokenizer."""


def model_folder(path: str) -> Path:
    """The local folder of a model: `lab`, a folder, a copy of what lies in S3, or a hub id from the cache or the hub.

    Raises:
        UserError: If the folder is not there, holds no safetensors, or an adapter beside them, or an index that names
            other files; or if S3 or the hub cannot be reached.
    """
    if path == "lab":
        from components.lab import MODEL_FOLDER

        return Path(MODEL_FOLDER)
    folder = Path(path)
    if in_bucket(path):
        folder = fetched(path, _listed(path))
    elif not folder.is_dir():
        folder = _from_hub(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"the model folder {folder} has no config.json", "give a folder saved by `save_pretrained`")
    if not any(folder.glob(_WEIGHTS)) and not (folder / STACK).is_file():
        others = sorted(item.name for item in folder.glob("*.bin")) + sorted(item.name for item in folder.glob("*.pt"))
        found = f" (it has {', '.join(others)}, which is pickled and never loaded)" if others else ""
        raise UserError(
            f"the model folder {folder} has no weights in safetensors{found}",
            "save the model with `save_pretrained(..., safe_serialization=True)`",
        )
    refuse_foreign_parts(folder)
    return folder


def _listed(path: str) -> Marks:
    """The files of a model in S3.

    Raises:
        UserError: If they are no whole model, or there is an adapter beside it.
    """
    marks = listed(path, _READ)
    if STACK in marks:
        raise UserError(
            f"the model {path} holds adapters, which are not read from S3",
            "copy the folder to a disk, or merge the adapters into their model and give that",
        )
    refuse_adapter(marks, path)
    if not any(fnmatch.fnmatchcase(name, _WEIGHTS) for name in marks):
        raise UserError(
            f"the model {path} has no weights in safetensors",
            "save the model with `save_pretrained(..., safe_serialization=True)` and upload that",
        )
    return marks


def model_headers(path: str) -> Path:
    """A local folder with the configuration of a model in S3 and its safetensors without their weights: its shape.

    Args:
        path: `s3://bucket/prefix`.

    Raises:
        UserError: If there is no whole model, or S3 cannot be reached.
    """
    marks = {name: mark for name, mark in _listed(path).items() if name == "config.json" or name.endswith(_WEIGHTS[1:])}
    return fetched(path, marks, headers=True)


def base_folder(path: str) -> Path:
    """The local folder of a base model, which stands on no other.

    Args:
        path: As `model_folder` takes it.

    Raises:
        UserError: As `model_folder`, or if the folder holds adapters.
    """
    folder = model_folder(path)
    if (folder / STACK).is_file():
        raise UserError(
            f"{folder} holds adapters, and not the model that they were trained on",
            "a base model has all its weights: give the one that the adapters were trained on; "
            "`phasetune evaluate --model ADAPTERS --base MODEL` measures them on it",
        )
    return folder


def base_path(path: str, given: str | None) -> str:
    """What a model is built on: the base model of a folder of adapters, or the model itself.

    Args:
        path: As `model_folder` takes it.
        given: The base model that the user names, if any.

    Raises:
        UserError: If adapters need a base model that neither they nor the user name, or a whole model gets one.
    """
    stack = read_stack(model_folder(path))
    if stack.active is None:
        if given is not None:
            raise UserError(f"the model {path} is whole, and {given} cannot be its base", "leave `--base` out")
        return path
    if given is None and stack.base_name is None:
        raise UserError(
            f"{path} holds adapters, and they do not say where the model is that they were trained on",
            "name it with `--base`: the folder that was `model.path`",
        )
    return given or str(stack.base_name)


def base_of(folder: Path, path: str) -> Path:
    """The base model's folder for what a phase left, or for the base model itself.

    Args:
        folder: What a phase left, or the base model's folder.
        path: The base model, as `model_folder` takes it.

    Raises:
        UserError: If the adapters in the folder were trained on another base model.
    """
    stack, base = read_stack(folder), base_folder(path)
    if stack.active is not None and stack.base != model_digest(path):
        said = "were trained on another base model than" if stack.base else "do not say whether they were trained on"
        raise UserError(
            f"the adapters in {folder} {said} {path}",
            f"give {stack.base_name or 'the model that they were trained on'}, with its files unchanged, or train "
            "their phases again on this one",
        )
    return base


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
    index = folder / INDEX
    parts = index_parts(index) if index.is_file() else {"model.safetensors"}
    return all((folder / name).is_file() for name in ("config.json", "tokenizer_config.json", *parts))


def model_digest(path: str, memory: Path | None = None) -> str:
    """Digest of a model's files: its configuration, weights, tokenizer and chat template.

    Of a model in S3 it is that of their sizes and ETags, so it differs from that of a copy in a folder.

    Args:
        path: As `model_folder` takes it.
        memory: A folder that remembers the digests of files by path, size and time of change: every step of a run
            asks, and reading the weights of a large model takes many seconds. Its parent must exist to be used.

    Raises:
        UserError: As `base_folder`.
    """
    if in_bucket(path):
        # By what the server says of the files: a pod that only works out a key must not fetch a model for it.
        return digest(_listed(path))
    folder = base_folder(path)
    files = sorted({item for pattern in _READ for item in folder.glob(pattern)})
    return digest({item.name: _remembered_digest(item.resolve(), memory) for item in files})


def _remembered_digest(path: Path, memory: Path | None) -> str:
    if memory is None or not memory.parent.is_dir():  # asking makes no store
        return digest_file(path)
    status = path.stat()
    note = memory / digest([str(path), status.st_size, status.st_mtime_ns])
    if note.is_file():
        return note.read_text(encoding="ascii")
    found = digest_file(path)
    memory.mkdir(parents=True, exist_ok=True)
    partial = note.with_name(f".{note.name}-{uuid.uuid4().hex[:12]}")  # threads of one process may ask at once
    partial.write_text(found, encoding="ascii")
    partial.replace(note)
    return found


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a chat template and a padding token in any case.

    Raises:
        UserError: If there is none that can be loaded, or it does not belong to the model.
    """
    from transformers import AutoTokenizer

    refuse_damaged(folder, _TOKENIZER)
    with unusable(
        f"the tokenizer in {folder} cannot be loaded",
        "the folder needs tokenizer.json (save it with `tokenizer.save_pretrained`)",
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.eos_token_id is None:  # an empty token has no id either
        raise UserError(f"the tokenizer in {folder} has no eos_token", "set `eos_token` in tokenizer_config.json")
    if tokenizer.chat_template is None:
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + DEFAULT_CHAT_TEMPLATE
    tokens = _embedded_tokens(folder)
    if tokenizer.eos_token_id >= tokens:
        raise UserError(
            f"the tokenizer in {folder} has an eos_token beyond the {tokens} tokens that the model embeds",
            "take the tokenizer that belongs to the model, or resize the model's embeddings",
        )
    # Some tokenizers name a padding token that the model never had. Padding is masked everywhere, so the end token
    # can serve as well.
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= tokens:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _embedded_tokens(folder: Path) -> int:
    """Tokens that the model has embeddings for; a large number where its configuration does not say."""
    path = folder / "config.json"
    size = read_object(path).get("vocab_size") if path.is_file() else None
    return size if isinstance(size, int) else 1 << 40


def load_model(folder: Path, spec: ModelSpec, device: str = "cpu") -> PreTrainedModel:
    """The weights of a model folder, in evaluation mode on a device.

    Of a folder of adapters the active one stays on top of the base model, as it was trained: in bfloat16, merging it
    would round the sum. Under `quantize` that base has its full weights here.

    Raises:
        UserError: If the architecture is unknown, the weights do not fit it, or adapters belong to another base.
    """
    stack = read_stack(folder)
    if stack.active is None:
        model = load_weights(folder, spec)
    else:
        model = merge(load_weights(base_of(folder, spec.path), spec), folder, stack.merged)
        model = with_adapter(model, folder / stack.active, trained=False).get_base_model()
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def load_weights(folder: Path, spec: ModelSpec, quantize: bool = False) -> PreTrainedModel:
    """The weights of a base model's folder.

    Args:
        folder: As `model_folder` finds it.
        spec: Gives the type and the attention.
        quantize: Whether to follow the adapter's `quantize`, which puts the model on the GPU.

    Raises:
        UserError: If the architecture is unknown or the weights do not fit it, or as `model_folder`: transformers
            obeys what lies there, so it is looked at again.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    refuse_damaged(folder, ("config.json", "generation_config.json"))
    refuse_foreign_parts(folder)
    more: dict[str, Any] = {}
    if quantize and spec.adapter is not None and spec.adapter.quantize == "nf4":
        from transformers import BitsAndBytesConfig

        dtype = getattr(torch, spec.dtype)
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
        more["device_map"] = {"": torch.cuda.current_device()}
    with unusable(
        f"the model in {folder} cannot be loaded",
        "it must be a causal language model that transformers knows by itself",
    ):
        refuse_named_weights(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **more,
        )
    if report["missing_keys"]:  # transformers fills them with random numbers and goes on
        raise UserError(
            f"the weights in {folder} lack {len(report['missing_keys'])} tensor(s), e.g. {min(report['missing_keys'])}",
            "copy the model again, or save it with `save_pretrained`",
        )
    loaded: PreTrainedModel = model
    return loaded


def context_length(folder: Path) -> int:
    """Tokens that the model's positions allow; a large number where its configuration names no limit.

    Raises:
        UserError: If the configuration is damaged.
    """
    config = read_object(folder / "config.json")
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return 1 << 20


def quiet() -> None:
    """Keep the libraries' progress bars and advice off the user's screen; errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL's trainers report to the hub when they are made
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries to each other
    logging.set_verbosity_error()
    logging.disable_progress_bar()
