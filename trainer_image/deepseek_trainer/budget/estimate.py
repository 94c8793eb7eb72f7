"""Memory of one rank, part by part, before anything is loaded.  Pure; without torch.

What is counted follows model.py, cross_entropy.py, loop.py, optimizer.py and saver.py;
`benchmarks/trainer/bench_memory.py` holds it against what processes take.  Not counted: CUDA's context and kernels,
about 0.5 to 1 GB, and what an allocator keeps.

Shapes: B rows in a micro-batch, T tokens in a row, D width, V vocabulary.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from deepseek_trainer.budget.dimensions import ATTENDED, Dimensions, Kind, Linear
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.method import NF4_BLOCK, LoraSpec, MethodSpec, MethodType
from deepseek_trainer.contract.optimization import OptimizationSpec, Optimizer, Recompute, Strategy

_INDEX: Final = 8  # [bytes] of a position
FP32: Final = 4  # [bytes]: weights, gradients, moments, and what the loss is computed in
BF16: Final = 2
OF_PAIRS: Final = 3 * FP32  # [bytes] of a logit of pairs: log-softmax, its gradient, and that of the logit
ZERO_BUCKET: Final = 1 << 23  # gradients that DeepSpeed sends at once, in fp32
PROGRAM: Final = 520 << 20  # [bytes]: private pages of Python, torch and transformers before a model, as measured


@dataclass(frozen=True, slots=True)
class Setup:
    """What of a job, besides the model's dimensions, the memory of a rank depends on."""

    rows: int  # B
    length: int  # T
    lora: LoraSpec | None
    is_bf16: bool
    is_cuda: bool
    ranks: int
    is_asynchronous: bool
    method: MethodSpec = field(default_factory=MethodSpec)
    optimization: OptimizationSpec = field(default_factory=OptimizationSpec)
    has_pairs: bool = False  # Preference data
    has_reference: bool = False  # whose loss asks the model before training

    @classmethod
    def of(cls, config: TrainingConfig, *, is_bf16: bool, is_cuda: bool) -> "Setup":
        """Of a job whose method is settled.  `is_bf16`: it computes in two bytes."""
        optimization, ranks = config.optimization, config.world_size
        return cls(
            rows=min(optimization.micro_batch_size, -(-optimization.global_batch_size // ranks)),
            length=config.data.sequence_length,
            lora=config.method.adapters,
            is_bf16=is_bf16,
            is_cuda=is_cuda,
            ranks=ranks,
            is_asynchronous=config.checkpoint.asynchronous,
            method=config.method,
            optimization=optimization,
            has_pairs=config.preference is not None,
            has_reference=config.has_reference,
        )

    @property
    def strategy(self) -> Strategy:
        return self.optimization.strategy

    @property
    def stage(self) -> int:
        """What is sharded, as ZeRO counts: 0 nothing, 1 moments, 2 gradients, too, 3 weights, too, as by FSDP."""
        return 3 if self.strategy is Strategy.FSDP else self.strategy.zero_stage

    def shards(self, stage: int) -> int:
        """Ranks over which is spread what is sharded from `stage` on."""
        return self.ranks if self.stage >= stage else 1


@dataclass(frozen=True, slots=True)
class Memory:
    """[bytes] of one rank."""

    weights: int
    gradients: int
    moments: int
    buckets: int  # DDP's and DeepSpeed's copies of gradients, and what FSDP and ZeRO-3 have gathered
    activations: int  # kept for the backward pass of one micro-batch
    logits: int
    host_copy: int  # of what a save writes; in the host's memory
    is_offloaded: bool = False  # weights, gradients and moments are in the host's memory, too

    @property
    def certain(self) -> int:
        """What neither the micro-batch nor recomputation changes."""
        return self.weights + self.gradients + self.moments

    @property
    def device(self) -> int:
        """The sum of all that is not in the host's memory: a peak that a rank does not pass."""
        return (0 if self.is_offloaded else self.certain) + self.buckets + self.activations + self.logits

    @property
    def host(self) -> int:
        return (self.certain if self.is_offloaded else 0) + self.host_copy


def memory(dimensions: Dimensions, setup: Setup) -> Memory:
    """Of one rank, all `setup.rows` x T positions learned: of Instruction data fewer are, and logits take less."""
    count, averages = trainable(dimensions, setup), setup.optimization.ema_decay is not None
    moments = _moments(dimensions, setup, count)
    saved = FP32 * count * (2 if averages else 1) + moments
    by_zero = setup.strategy.zero_stage > 0
    # DeepSpeed gives AdamW a copy of the weights that a rank changes, and collects on the host what a save writes.
    changed, copies = FP32 * count // setup.ranks if by_zero else 0, by_zero + setup.is_asynchronous
    return Memory(
        weights=(_weights(dimensions, setup) + (FP32 * count if averages else 0)) // setup.shards(3) + changed,
        gradients=FP32 * count // setup.shards(2),
        moments=moments // setup.shards(1),
        buckets=_buckets(dimensions, setup, count),
        activations=_activations(dimensions, setup),
        logits=_logits(dimensions, setup),
        host_copy=copies * saved // setup.ranks,  # each rank writes its share
        is_offloaded=setup.optimization.offload,
    )


def trainable(d: Dimensions, setup: Setup) -> int:
    """Parameters with a gradient."""
    if setup.lora:
        return d.adapters(setup.lora)
    frozen_layers = setup.method.frozen_layers
    return d.parameters - (d.frozen(frozen_layers) if frozen_layers else 0)


def _weights(d: Dimensions, setup: Setup) -> int:
    """[bytes]; of QLoRA the blocks' linear layers in NF4: half a byte each, and a byte of scale for `NF4_BLOCK`.

    A reference is the weights again, unless the adapters, which are all that is trained, can be left out.
    """
    copies = 2 if setup.has_reference and setup.lora is None else 1
    whole = FP32 * (copies * d.parameters + d.adapters(setup.lora))
    if setup.method.type is not MethodType.QLORA:
        return whole
    stacks = (FP32 - BF16) * d.in_experts if setup.is_bf16 else 0  # of frozen experts
    return whole - stacks - FP32 * d.in_linear + d.in_linear // 2 + d.in_linear // NF4_BLOCK


def _moments(d: Dimensions, setup: Setup, count: int) -> int:
    """[bytes]; Muon keeps one for the blocks' matrices, AdamW two of each; in eight bits with a scale for 256."""
    match setup.optimization.optimizer:
        case Optimizer.ADAMW:
            return 2 * FP32 * count
        case Optimizer.ADAMW_8BIT:
            return 2 * count + 2 * FP32 * count // 256
        case Optimizer.MUON:
            return 2 * FP32 * count - FP32 * min(count, d.in_blocks)


def _buckets(d: Dimensions, setup: Setup, count: int) -> int:
    """[bytes]; DeepSpeed's: what it sends at once, and for its step a second copy of a rank's part of the gradients."""
    if setup.strategy is Strategy.DDP:
        return FP32 * count
    gathered = _gathered(d) if setup.stage == 3 else 0
    return gathered + (FP32 * (ZERO_BUCKET + count // setup.ranks) if setup.strategy.zero_stage else 0)


def _gathered(d: Dimensions) -> int:
    """[bytes] of what is whole at a time of sharded weights: embeddings, and two blocks, of which one comes early."""
    embeddings = (1 if d.tied else 2) * d.vocab * d.hidden
    return FP32 * (d.in_blocks if d.is_repeated else 2 * d.largest_block) + FP32 * embeddings


def largest_rows(dimensions: Dimensions, setup: Setup, limit: int) -> int:
    """The largest micro-batch, up to `setup.rows`, that stays within `limit` [bytes]; 0: not even one row does."""
    return bisect_right(range(1, setup.rows + 1), limit, key=lambda rows: needed(dimensions, replace(setup, rows=rows)))


def needed(dimensions: Dimensions, setup: Setup) -> int:
    """[bytes] that a rank takes of the memory that it computes in: on the CPU also the program's and the host's."""
    found = memory(dimensions, setup)
    return found.device + (0 if setup.is_cuda else PROGRAM + found.host)


def shortage(found: Memory, ranks: int, gpu: int | None, container: int | None) -> str | None:
    """How weights, gradients and moments alone exceed a rank's GPU, or the container's memory for all of its `ranks`.

    [bytes]; None of the GPU: it computes on the CPU, of the container: no limit.  None where they do not.
    """
    certain, limit, what = ranks * found.certain, container, "the container"
    if gpu is not None and not found.is_offloaded:
        certain, limit, what = found.certain, gpu, "the GPU"
    if limit is None or certain <= limit:
        return None
    return f"weights, gradients and moments take {_gib(certain)}, {what} has {_gib(limit)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _activations(d: Dimensions, setup: Setup) -> int:
    tokens, width = setup.rows * setup.length, BF16 if setup.is_bf16 else FP32
    attention = _attention(d, setup, width)
    of_kinds = [(kind.count, tokens * (attention + _block(d, kind, setup, width))) for kind in d.kinds]
    if setup.optimization.recompute is Recompute.FULL:
        made_again = max(of_block for _, of_block in of_kinds)
        of_blocks = d.layers * tokens * d.hidden * FP32 + made_again  # what each begins with, and one made again
    else:
        of_blocks = sum(count * of_block for count, of_block in of_kinds)  # with Selective less, which is not counted
    # Autocast keeps each weight that it has cast until the backward pass has used it.
    cast = d.multiplied - (d.in_blocks if setup.method.type is MethodType.QLORA else 0) + d.adapters(setup.lora)
    casts = BF16 * cast if setup.is_bf16 else 0
    ends = _norm(d, setup) + _mask(d, setup)  # of the embeddings, and the last norm
    return of_blocks + casts + tokens * (ends + setup.length * d.mask_bytes)


def _attention(d: Dimensions, setup: Setup, width: int) -> int:
    """[bytes] a token that scaled_dot_product_attention keeps in one block.

    Queries, keys and values (keys and values are repeated for each head), the result and its log-sum-exp, and the
    mask, which it turns from bool into numbers, T of them a token.  Where it is not computed in one go, also the scores
    of each head, their softmax in FP32 and that in the width of values.
    """
    scores = d.heads * setup.length * (2 * width + FP32) if d.keeps_scores else width * setup.length
    return width * 4 * d.attention + scores + FP32 * d.heads


def _block(d: Dimensions, kind: Kind, setup: Setup, width: int) -> int:
    """[bytes] a token that the rest of one block keeps.

    Norms and dropout, two of each; gate, its SiLU and up; inputs of linear layers.
    """
    normed = (d.heads + d.key_value_heads) * d.head_dim if d.head_norms else 0
    head_norms = normed * (FP32 if setup.lora else FP32 + width)
    added = 2 * (_norm(d, setup) + _mask(d, setup))
    norms = head_norms + sum(FP32 * (1 if setup.lora else 2) * width_ for _, width_ in d.latent_norms)
    of_layers = width * 3 * kind.intermediate + _inputs(d, kind, setup, width)
    return added + norms + of_layers + _dispatched(d, kind, width)


def _dispatched(d: Dimensions, kind: Kind, width: int) -> int:
    """[bytes] a token of what experts made of it, each by itself, and of the router's scores and choice."""
    if not kind.routed:
        return 0
    routers = sum(layer.outputs for layer in kind.linear if layer.is_gate)
    return kind.routed * (width * d.hidden + 4 * _INDEX) + 2 * FP32 * routers


def _mask(d: Dimensions, setup: Setup) -> int:
    """[bytes] a token that optimization.dropout keeps of what it let pass: a bool for each element."""
    return d.hidden if setup.optimization.dropout else 0


def _norm(d: Dimensions, setup: Setup) -> int:
    """[bytes] a token: its input, and for the gradient of its weight the normalised one; both FP32 under autocast."""
    return FP32 * d.hidden * (1 if setup.lora else 2)


def _inputs(d: Dimensions, kind: Kind, setup: Setup, width: int) -> int:
    """[bytes] a token kept for the gradients of weights of linear layers.

    Layers that read the same tensor share it, unless autocast or dropout makes each a copy of its own.
    """
    if setup.lora is None:
        return width * _read(kind.linear, is_shared=not setup.is_bf16)
    targets, rank = d.targets(setup.lora, kind.linear), setup.lora.rank
    if not setup.is_bf16 and not setup.lora.dropout:
        return width * (_read(targets, is_shared=True) + rank * len(targets))
    mask = 1 if setup.lora.dropout else 0
    return sum((width + mask) * layer.inputs + width * rank for layer in targets)


def _read(layers: Sequence[Linear], *, is_shared: bool) -> int:
    """Widths of the tensors that `layers` read, of a shared one once; without the result of attention."""
    read = [layer for layer in layers if layer.reads != ATTENDED]
    widths = {layer.reads if is_shared else layer.path: layer.used * layer.inputs for layer in read}
    return sum(widths.values())


def _logits(d: Dimensions, setup: Setup) -> int:
    """Logits of one part, and what the forward pass makes of them: gradients of the positions and the head's weight."""
    tokens = setup.rows * setup.length
    at_once = min(tokens, max(1, setup.optimization.logits_bytes // (FP32 * d.vocab)))
    if setup.has_pairs:
        return at_once * OF_PAIRS * d.vocab + tokens * (0 if setup.lora else FP32 * d.hidden)
    of_head = FP32 * d.vocab * d.hidden if _trains_head(d, setup) else 0
    return at_once * of_logit(is_bf16=setup.is_bf16) * d.vocab + tokens * FP32 * d.hidden + of_head


def of_logit(*, is_bf16: bool) -> int:
    """[bytes] of a logit, which its gradient replaces, and its log-softmax in FP32, of a copy that is, too."""
    return BF16 + 2 * FP32 if is_bf16 else 2 * FP32


def _trains_head(d: Dimensions, setup: Setup) -> bool:
    return setup.lora is None and not (d.tied and setup.method.frozen_layers)
