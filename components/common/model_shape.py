"""The shape of a model from its folder: `config.json` and the headers of its safetensors; no weights, no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from components.common.errors import UserError
from components.common.model_files import header_length, read_object
from components.common.objects_json import json_object

_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embed_positions")
_HEADS = ("lm_head", "embed_out", "output_projection")


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear layers of one name and one shape.

    Attributes:
        name: The module's own name, e.g. `q_proj`.
        path: The whole name of the first of them.
        size: The two sides of the matrix, the smaller first.
        count: How many there are.
    """

    name: str
    path: str
    size: tuple[int, int]
    count: int

    @property
    def parameters(self) -> int:
        """Parameters of all of them."""
        return self.count * self.size[0] * self.size[1]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model's memory depends on.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of layers.
        mlp: Inner width of the MLP that one token passes through.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        vocabulary: Tokens that the head scores.
        gated: Whether the MLP has a gate (as Llama's) or is two layers (as GPT-2's).
        rms: Whether the norms are RMS norms, which transformers computes step by step.
        parameters: All parameters; tied ones once.
        embedding: Those of the input embeddings.
        head: Those of the output layer, 0 where it is tied to the embeddings.
        linears: The linear layers but the output layer.
    """

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool
    rms: bool
    parameters: int
    embedding: int
    head: int
    linears: tuple[Linear, ...]

    @property
    def matrices(self) -> int:
        """Parameters of the linear layers but the output layer."""
        return sum(linear.parameters for linear in self.linears)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a folder's tensors by name, from the headers of its safetensors.

    Raises:
        UserError: If a file is not what it says.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                length = header_length(stream.read(8), file.stat().st_size)
                header = json_object(stream.read(length))
            found |= {name: _sides(value) for name, value in header.items() if name != "__metadata__"}
        except ValueError as error:
            raise UserError(f"{file} is not a safetensors file: {error}", "copy the model again") from None
    return found


def _sides(about: object) -> tuple[int, ...]:
    """The shape of a tensor, by what a header says of it.

    Raises:
        ValueError: If it says none.
    """
    sides = about.get("shape") if isinstance(about, dict) else None
    if not isinstance(sides, list) or not all(type(side) is int and side >= 0 for side in sides):  # True is an int too
        raise ValueError("there is a tensor without its shape")
    return tuple(sides)


def target_linears(shape: ModelShape, names: list[str]) -> list[Linear]:
    """The linear layers that get an adapter: those named (as PEFT matches names), or all where none is named."""
    if not names:
        return list(shape.linears)
    return [one for one in shape.linears if any(one.path == n or one.path.endswith(f".{n}") for n in names)]


def model_shape(folder: Path) -> ModelShape | None:
    """The shape of the model in a folder; None where its configuration does not tell (an unusual architecture).

    Raises:
        UserError: If its files are not what they say.
    """
    config = read_object(folder / "config.json")
    within: Any = config.get("text_config")
    config |= within if isinstance(within, dict) else {}
    shapes = tensor_shapes(folder)

    def size(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    hidden, layers = size("hidden_size", "n_embd", "d_model"), size("num_hidden_layers", "n_layer", "num_layers")
    heads = size("num_attention_heads", "n_head", "num_heads")
    if not (hidden and layers and heads and shapes):
        return None
    embedding, head, linears = _matrices(shapes)
    experts = size("num_experts_per_tok", "num_experts_per_token") or 1
    vocabulary = size("vocab_size") or max((shape[0] for shape in shapes.values() if shape), default=0)
    return ModelShape(
        hidden=hidden,
        layers=layers,
        mlp=(size("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden) * experts,
        heads=heads,
        kv_heads=size("num_key_value_heads") or heads,
        head_dim=size("head_dim") or hidden // heads,
        vocabulary=vocabulary,
        gated=any("gate" in linear.name or linear.name == "w3" for linear in linears),
        rms="rms_norm_eps" in config,
        parameters=sum(prod(shape) for shape in shapes.values()),
        embedding=embedding,
        head=head,
        linears=linears,
    )


def _matrices(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int, tuple[Linear, ...]]:
    """Parameters of the embeddings and of the head, and the other linear layers."""
    embedding = head = 0
    counted: Counter[tuple[str, tuple[int, int]]] = Counter()
    paths: dict[tuple[str, tuple[int, int]], str] = {}
    for name, shape in shapes.items():
        path, _, kind = name.rpartition(".")
        own = path.rpartition(".")[2]
        if len(shape) != 2 or kind != "weight":
            continue
        if own in _EMBEDDINGS:
            embedding += prod(shape)
        elif own in _HEADS:
            head += prod(shape)
        else:
            one = (own, (min(shape), max(shape)))
            counted[one] += 1
            paths.setdefault(one, path)
    linears = tuple(Linear(name, paths[name, size], size, count) for (name, size), count in counted.items())
    return embedding, head, linears
