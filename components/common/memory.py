"""How much memory a phase needs, from the shapes of the model and of its batches; nothing is loaded.

What a worker holds at the worst moment of a step:

    weights + AdamW's two moments + max(forward and the head's backward, the last layer's backward)

- Weights that are trained are float32 whatever the dtype, and so are their gradients and moments: 16 bytes for each
  parameter (Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3.1, where the half-precision copy stands beside them).
  Frozen weights have the spec's dtype; nf4 takes 4.127 bits (Dettmers et al., QLoRA, arXiv 2305.14314, section 3).
- Under bfloat16, autocast casts every weight matrix once in a forward pass and the graph keeps the copies until the
  backward pass has used them: 2 bytes for each parameter of the linear layers.
- Activations are counted tensor by tensor as Korthikanti et al. (arXiv 2205.05198, section 4) do, but for the layers as
  transformers computes them: RMS norms in float32 step by step, SwiGLU, rotary positions. Gradient checkpointing keeps
  each layer's input, and one layer's activations at a time (section 5 there; Chen et al., arXiv 1604.06174).
- TRL's fused head (`trl/kernels/chunked_logprob.py`) never makes all logits: its tiles are 4096 tokens by 32768 words.
- fsdp and ZeRO-3 divide weights, gradients and moments by the workers (ZeRO, section 5), and gather a layer at a time.

docs/memory.md compares the estimate with what was measured, and says what was not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from components.common.model_shape import ModelShape, target_linears
from components.common.spec import ComputeSpec, ModelSpec
from components.common.spec_phases import DpoSettings, GrpoSettings, Settings

TILE_TOKENS, TILE_WORDS = 4096, 32768
"""The tiles of TRL's fused head (`TOKEN_CHUNK_SIZE`, `_CHUNKED_LOGPROB_CHUNK_SIZE`)."""
TILE_WORK = 29
"""Bytes for each number of a tile that its backward pass holds where torch computes it (five float32 tensors, a mask
and two of the step between), on CPUs; the kernel for GPUs works in place."""
TILE_FORWARD = 13
"""The same of its forward pass."""
NF4_BYTES = 4.127 / 8
"""Of a quantized weight, its constants (quantized too) included."""
DEEPSPEED_LIVE, DEEPSPEED_BUCKET = 10**9, 5 * 10**8
"""DeepSpeed's defaults: parameters that are gathered at once, and numbers of the buffer that gradients wait in."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The largest batch of one worker.

    Attributes:
        rows: Rows of one forward pass.
        length: Tokens of a row, padding included.
        passes: Forward passes of an optimizer step.
        masked: Whether attention gets a mask: rows are padded, or packed.
        prompts: Rows that are generated at once (grpo).
        new_tokens: Of these, the tokens that are generated; `length` has them too.
    """

    rows: int
    length: int
    passes: int = 1
    masked: bool = True
    prompts: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one worker at the worst moment.

    Attributes:
        weights: Of the model, and of whole layers that are gathered from shards or cast.
        moments: AdamW's.
        gradients: Alive at that moment.
        activations: Kept for the backward pass, the head's tiles and what a backward step works with included.
        reference: A second model that a phase compares with.
        copies: In the CPU's memory: the copy that a checkpoint is written from.
    """

    weights: int
    moments: int
    gradients: int
    activations: int
    reference: int
    copies: int

    @property
    def device(self) -> int:
        """On the device that trains, the copies aside."""
        return sum(getattr(self, one.name) for one in fields(self) if one.name != "copies")


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a model is trained, as far as the formulas ask."""

    shape: ModelShape
    model: ModelSpec
    compute: ComputeSpec
    batch: Batch

    @property
    def mixed(self) -> bool:
        return self.model.dtype == "bfloat16"

    @property
    def compute_bytes(self) -> int:
        return 2 if self.mixed else 4

    @property
    def gpu(self) -> bool:
        return self.compute.gpus_per_worker > 0

    @property
    def quantized(self) -> bool:
        return self.model.adapter is not None and self.model.adapter.quantize == "nf4"

    @property
    def scores(self) -> bool:
        """Whether attention keeps a weight for each pair of tokens.

        The kernels of GPUs for float32 want as many keys as queries, and transformers repeats the keys only under a
        mask: without one torch falls back to the kernel that keeps the weights.
        """
        grouped = self.shape.kv_heads < self.shape.heads
        fallback = self.gpu and grouped and not self.mixed and not self.batch.masked
        return self.model.attention == "eager" or fallback

    @property
    def shards(self) -> int:
        return 1 if self.compute.strategy == "ddp" else self.compute.least_workers

    @property
    def tokens(self) -> int:
        return self.batch.rows * self.batch.length

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.model.adapter is None:
            return self.shape.parameters
        rank, targets = self.model.adapter.rank, target_linears(self.shape, self.model.adapter.target_modules)
        return sum(rank * sum(linear.size) * linear.count for linear in targets)


def estimate(
    shape: ModelShape,
    model: ModelSpec,
    compute: ComputeSpec,
    settings: Settings,
    batch: Batch,
    references: bool = False,
) -> Memory:
    """What one worker of a phase needs.

    Args:
        shape: Of the model.
        model: Its dtype, attention and adapter.
        compute: Devices, strategy, gradient checkpointing.
        settings: Of the phase.
        batch: The largest batch; of dpo `rows` counts both sides.
        references: Whether a whole second model stays beside the first.
    """
    setting = _Setting(shape, model, compute, batch)
    trained, shards = setting.trained, setting.shards
    weights = _weights(setting) // shards + _gathered(setting)
    gradients = 4 * trained // shards
    # ddp sends gradients in buckets, which are a second copy of them and stay all the time.
    buckets = gradients if compute.strategy == "ddp" and compute.most_workers > 1 else 0
    # The backward pass starts with every activation and the head's gradient, and ends with every gradient and the
    # activations of one layer; between these, one falls as the other grows.
    casts = _casts(setting)
    head, head_gradient = _head(setting)
    kept = _kept(setting)
    one = _layer(setting)
    before = gradients if batch.passes > 1 else 0
    held = kept + _norm(setting)
    last = (gradients, one + casts // shape.layers + _backward_work(setting))
    if compute.gradient_checkpointing:
        # The casts go when the forward pass has ended, as no layer's graph holds them.
        moments = [
            (before, held + casts + _head_forward(setting)),
            (before + head_gradient // shards, held + head),
            (before + head_gradient // shards, kept + one + casts // shape.layers + _backward_work(setting)),
            last,
        ]
    else:
        moments = [(before + head_gradient // shards, held + casts + head), last]
    worst = max(moments, key=sum)
    generating = _generating(setting) if isinstance(settings, GrpoSettings) else 0
    if generating > sum(worst):
        worst = (0, generating)
    selects = settings.select != "last"
    return Memory(
        weights=weights,
        moments=8 * trained // shards,
        gradients=worst[0] + buckets,
        activations=worst[1],
        reference=_weights(setting) // shards if references else 0,
        copies=(3 + selects) * 4 * trained // shards,
    )


def _weights(setting: _Setting) -> int:
    """Bytes of the weights of one whole model, an adapter's included."""
    shape, adapter = setting.shape, setting.model.adapter
    if adapter is None:
        return 4 * shape.parameters
    own = 4 * setting.trained
    if setting.quantized:  # what is not quantized is cast to float32 (`prepare_model_for_kbit_training`)
        return round(NF4_BYTES * shape.matrices) + 4 * (shape.parameters - shape.matrices) + own
    return setting.compute_bytes * shape.parameters + own


def _gathered(setting: _Setting) -> int:
    """Bytes of what a worker gathers from the shards: two layers and what is outside of layers; DeepSpeed's buffers."""
    shape, size = setting.shape, setting.compute_bytes
    if setting.shards == 1:
        return 0
    if setting.compute.strategy == "deepspeed_zero3":
        return size * (min(DEEPSPEED_LIVE, shape.parameters) + min(DEEPSPEED_BUCKET, setting.trained))
    outside = shape.parameters - shape.matrices
    return 2 * size * (2 * shape.matrices // shape.layers + outside)  # weights and their gradients


def _casts(setting: _Setting) -> int:
    """Bytes of the copies that autocast makes of the matrices; frozen ones have its type already."""
    if not setting.mixed or setting.shards > 1:
        return 0
    matrices = setting.shape.matrices if setting.model.adapter is None else setting.trained
    return 2 * matrices


def _kept(setting: _Setting) -> int:
    """Bytes of activations that the forward pass keeps of all layers, and of what they share."""
    shape, tokens = setting.shape, setting.tokens
    shared = 2 * 4 * tokens * shape.head_dim if shape.rms else 0  # rotary positions
    if setting.compute.gradient_checkpointing:
        return shared + shape.layers * tokens * shape.hidden * _residual_bytes(setting)
    return shared + shape.layers * _layer(setting)


def _residual_bytes(setting: _Setting) -> int:
    return 4 if setting.model.adapter is None or setting.quantized else setting.compute_bytes


def _layer(setting: _Setting) -> int:
    """Bytes of activations that one layer keeps for its backward pass."""
    return setting.tokens * (_attention(setting) + _mlp(setting) + _norms_and_inputs(setting)) + _mask(setting)


def _attention(setting: _Setting) -> int:
    """Bytes for each token: queries, keys, values and the output, and the matrix of weights where it is kept."""
    shape, size = setting.shape, setting.compute_bytes
    query = shape.heads * shape.head_dim
    repeated = setting.scores or (setting.batch.masked and shape.kv_heads < shape.heads)
    keys = query if repeated else shape.kv_heads * shape.head_dim
    scores = setting.batch.length * shape.heads * (4 + (2 if setting.mixed else 0)) if setting.scores else 0
    return size * (2 * query + 2 * keys) + scores


def _mlp(setting: _Setting) -> int:
    """Bytes for each token inside the MLP, but for the input of its last layer."""
    # bitsandbytes answers in the type of its input, which the norms before, cast to float32, made.
    size = 4 if setting.quantized else setting.compute_bytes
    return size * setting.shape.mlp * (3 if setting.shape.gated else 4)


def _norms_and_inputs(setting: _Setting) -> int:
    """Bytes for each token: the two norms, and the inputs of the linear layers that a gradient or an adapter needs."""
    shape, size = setting.shape, setting.compute_bytes
    if setting.model.adapter is None:
        norms = 2 * 4 * shape.hidden * (2 if shape.rms else 1)
        reading = sum(linear.count for linear in shape.linears) // shape.layers - 2  # all but those after a non-norm
        inputs = size * shape.hidden * reading if setting.mixed else 2 * size * shape.hidden
        return norms + inputs + size * shape.mlp
    norms = 2 * 4 * shape.hidden
    targets = target_linears(shape, setting.model.adapter.target_modules)
    down = any(shape.mlp in linear.size for linear in targets)
    if not setting.mixed:
        return norms + 2 * size * shape.hidden + (size * shape.mlp if down else 0)
    return norms + sum(size * linear.size[0] * linear.count for linear in targets) // shape.layers


def _mask(setting: _Setting) -> int:
    """Bytes of the attention mask as a layer keeps it: one number for each pair of tokens of a row."""
    if not setting.batch.masked or setting.model.attention == "eager":
        return 0
    return setting.compute_bytes * setting.batch.rows * setting.batch.length**2


def _norm(setting: _Setting) -> int:
    """Bytes of the norm before the head, and of the hidden states that the head reads."""
    return 4 * setting.tokens * setting.shape.hidden * 3


def _head(setting: _Setting) -> tuple[int, int]:
    """Bytes that the fused head's backward pass works with, and of its weight's gradient."""
    shape, tokens, size = setting.shape, setting.tokens, setting.compute_bytes
    rows, words = min(tokens, TILE_TOKENS), min(shape.vocabulary, TILE_WORDS)
    work = size * rows * TILE_WORDS + 4 * tokens * shape.hidden
    if setting.mixed:
        work += size * words * shape.hidden
    if not setting.gpu:
        work += TILE_WORK * rows * words
    return work, 4 * shape.vocabulary * shape.hidden if setting.model.adapter is None else 0


def _head_forward(setting: _Setting) -> int:
    """Bytes that the fused head's forward pass works with."""
    shape, tokens, size = setting.shape, setting.tokens, setting.compute_bytes
    rows, words = min(tokens, TILE_TOKENS), min(shape.vocabulary, TILE_WORDS)
    return size * rows * TILE_WORDS + (0 if setting.gpu else TILE_FORWARD * rows * words)


def _backward_work(setting: _Setting) -> int:
    """Bytes that a layer's backward pass holds beside what was kept: gradients inside the MLP and of its input."""
    shape, size = setting.shape, setting.compute_bytes
    return setting.tokens * (3 * size * shape.mlp + 2 * 4 * shape.hidden)


def _generating(setting: _Setting) -> int:
    """Bytes of the cache of keys and values, and of the scores that one token is drawn from."""
    shape, batch = setting.shape, setting.batch
    cache = 2 * setting.compute_bytes * shape.layers * shape.kv_heads * shape.head_dim * batch.length
    return batch.prompts * (cache + 4 * 4 * shape.vocabulary)


def rows_of(settings: Settings, workers: int) -> int:
    """Rows of one forward pass of one worker, where all its batches are full."""
    share = -(-settings.batch_size // workers)
    if isinstance(settings, GrpoSettings):
        return min(settings.micro_batch_size or share * settings.samples, share * settings.samples)
    return min(settings.micro_batch_size or share, share) * (2 if isinstance(settings, DpoSettings) else 1)
