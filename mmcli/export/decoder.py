"""A model as an ONNX graph, layer by layer as in `mmcli.model.transformer`, in ONNX Runtime's fused operators or in
those of the ONNX standard alone.

Inputs and outputs have the names that plain Python, onnxruntime-genai and transformers.js agree on: `input_ids`,
`attention_mask`, `past_key_values.0.key`, `past_key_values.0.value`, ... -> `logits` (of the last token),
`present.0.key`, `present.0.value`, ... One output more, `last_logits`, has those of the last few tokens: drafted tokens
are verified with it in one pass. To keep the head from the tokens of a whole prompt is worth a tenth of reading it.

Shapes: B rows, T new tokens, D width, H query heads, K key/value heads, d features of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmcli.errors import UserError
from mmcli.export.attention import Attention, rms_norm
from mmcli.export.attention_standard import StandardAttention
from mmcli.export.experts import expert_mixture
from mmcli.export.graph import Graph
from mmcli.export.locate import Ops
from mmcli.export.matrices import MatrixFormat
from mmcli.export.mlp import feed_forward
from mmcli.generate.engine import VERIFIED_TOKENS
from mmcli.generate.onnx_session import LAST_LOGITS
from mmcli.model.config import ModelConfig
from mmcli.model.formats.fields import ROTARY, ROUTING, TRAINING, FieldTable, Irrelevant, Silent, described
from mmcli.model.transformer import Transformer

Weights = Mapping[str, np.ndarray]
EMBEDDING = "embed_tokens"
FINAL_NORM = "norm"  # the tensor after it
LAST_TOKENS = "last_tokens"  # the node that takes the last few tokens of it


class Built(Silent):
    """Fields that the graph computes with, whatever their value."""

    def __init__(self, *fields: str) -> None:
        self._fields = fields

    @property
    def fields(self) -> tuple[str, ...]:
        return self._fields


class HeadDim(Built):
    """head_dim, where the width of a head is a multiple of 8."""

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        return ("head_dim",) if config.d_head % 8 else ()


# What the graph does with each field of ModelConfig; one that is missing here is refused.
TABLE: FieldTable[None] = FieldTable((
    Built("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim", "norm_eps", "max_seq_len"),
    HeadDim("head_dim"),
    Built("qk_norm", "tie_embeddings", "norm", "position", *ROTARY, "sliding_window", "mlp", "bias", "head_bias"),
    Built("parallel_block", "use_moe", *ROUTING),
    Irrelevant("multiple_of", *TRAINING),
))  # fmt: skip


def refuse_unsupported(config: ModelConfig) -> None:
    """Raise UserError, naming the field, for a model that the graph cannot compute."""
    fields = TABLE.unsupported(config)
    if fields == ["head_dim"]:
        what = f"model.head_dim = {config.d_head} is not a multiple of 8, which ONNX Runtime's attention needs"
        raise UserError(what, "train a model with another head_dim or n_heads (dim / n_heads is the width of a head)")
    if fields:
        raise UserError(f"ONNX export does not support {described(config, fields)}", "run the model with torch")


def embedding_name(config: ModelConfig) -> str:
    """The tensor that enters the first layer."""
    return "embedding" if config.position == "learned" else EMBEDDING


def residual_name(layer: int, part: str) -> str:
    """The residual stream after a part of a layer: "attention" or "ffn"; "block" where the two stand side by side."""
    return f"layers.{layer}.after_{part}"


def build_model(
    model: Transformer,
    matrices: MatrixFormat,
    context: int | None = None,
    *,
    ops: Ops = "fused",
    portable: bool = False,
) -> onnx.ModelProto:
    """The graph of `model` with its weights inside, its matrices stored as `matrices` does.

    Args:
        context: the most tokens of a sequence; None: what the model was made for.
        portable: it has to run on phones and in browsers too.

    Raises:
        UserError: a field of the configuration that is not supported, by name.
    """
    config = model.config
    refuse_unsupported(config)
    context = context or config.max_seq_len
    weights = {name: value.detach().float().cpu().numpy() for name, value in model.state_dict().items()}
    graph = Graph(ops, portable=portable)
    attend = StandardAttention if graph.standard else Attention
    attention = attend(graph, matrices, model, weights, context)
    x = matrices.embed(graph, "input_ids", weights["model.embed_tokens.weight"], name=EMBEDDING)
    if config.position == "learned":
        table = graph.weight("embed_positions.weight", weights["model.embed_positions.weight"][:context])
        at = graph.op("Gather", table, attention.positions(), name="embed_positions")
        x = graph.op("Add", x, at, name=embedding_name(config))
    normed = _norm(graph, config, weights, x, "model.layers.0.input_layernorm")
    for layer in range(config.n_layers):
        x, normed = _block(graph, matrices, config, weights, attention, x, normed, layer)
    _last_logits(graph, matrices, config, weights, normed)
    inputs, outputs = _signature(config)
    return graph.model(inputs, outputs, {"context_length": str(context)})


def _last_logits(graph: Graph, matrices: MatrixFormat, config: ModelConfig, weights: Weights, normed_BTD: str) -> None:
    """`last_logits` [B, W, V] of the last W tokens, at most VERIFIED_TOKENS; and `logits` [B, 1, V], their last."""
    end = graph.ints(np.iinfo(np.int64).max)
    last_BWD = graph.op("Slice", normed_BTD, graph.ints(-VERIFIED_TOKENS), end, graph.ints(1), name=LAST_TOKENS)
    rows_ND = graph.op("Reshape", last_BWD, graph.ints(-1, config.dim), name="last_rows")
    logits_NV = _head(graph, matrices, config, weights, rows_ND)
    counts = graph.op("Shape", last_BWD, name="last_counts", start=0, end=2)
    shape = graph.op("Concat", counts, graph.ints(config.vocab_size), name="last_shape", axis=0)
    last_BWV = graph.op("Reshape", logits_NV, shape, name=LAST_LOGITS)
    graph.op("Slice", last_BWV, graph.ints(-1), end, graph.ints(1), name="logits")


def _block(
    graph: Graph,
    matrices: MatrixFormat,
    config: ModelConfig,
    weights: Weights,
    attention: Attention,
    x: str,
    normed: str,
    layer: int,
) -> tuple[str, str]:
    """(the residual stream after the layer, the same through the norm that comes next)."""
    prefix = f"model.layers.{layer}"
    last = layer == config.n_layers - 1
    next_norm = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
    mixed = attention.layer(normed, layer)
    if config.parallel_block:
        fed = _ffn(graph, matrices, config, weights, normed, layer)
        both = graph.op("Add", mixed, fed, name=f"layers.{layer}.both")
        return _add_norm(graph, config, weights, x, both, next_norm, residual_name(layer, "block"))
    x, normed = _add_norm(
        graph, config, weights, x, mixed, f"{prefix}.post_attention_layernorm", residual_name(layer, "attention")
    )
    fed = _ffn(graph, matrices, config, weights, normed, layer)
    return _add_norm(graph, config, weights, x, fed, next_norm, residual_name(layer, "ffn"))


def _ffn(graph: Graph, matrices: MatrixFormat, config: ModelConfig, weights: Weights, x: str, layer: int) -> str:
    inside = f"model.layers.{layer}.mlp."
    own = {name.removeprefix(inside): value for name, value in weights.items() if name.startswith(inside)}
    make = expert_mixture if config.use_moe else feed_forward
    return make(graph, matrices, config, own, x, name=f"layers.{layer}.mlp")


def _norm(graph: Graph, config: ModelConfig, weights: Weights, x: str, norm: str) -> str:
    inputs, name = _norm_weights(graph, weights, norm), norm.removeprefix("model.")
    kind = "LayerNormalization" if config.norm == "layernorm" else rms_norm(graph)
    return graph.op(kind, x, *inputs, name=name, axis=-1, epsilon=config.norm_eps)


def _add_norm(
    graph: Graph, config: ModelConfig, weights: Weights, x: str, delta: str, norm: str, residual: str
) -> tuple[str, str]:
    """(x + delta, the norm of it), in one operator where there is one."""
    if graph.standard:
        graph.op("Add", x, delta, name=residual)
        return residual, _norm(graph, config, weights, residual, norm)
    name = norm.removeprefix("model.")
    kind = "SkipLayerNormalization" if config.norm == "layernorm" else "SkipSimplifiedLayerNormalization"
    inputs = (x, delta, *_norm_weights(graph, weights, norm))
    graph.ops(kind, inputs, (name, "", "", residual), name=name, contrib=True, epsilon=config.norm_eps)
    return residual, name


def _norm_weights(graph: Graph, weights: Weights, norm: str) -> list[str]:
    kinds = ("weight", "bias")
    name = norm.removeprefix("model.")
    return [graph.weight(f"{name}.{kind}", weights[f"{norm}.{kind}"]) for kind in kinds if f"{norm}.{kind}" in weights]


def _head(graph: Graph, matrices: MatrixFormat, config: ModelConfig, weights: Weights, last_BD: str) -> str:
    tied = config.tie_embeddings
    matrix_VD = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    stored = EMBEDDING if tied else "lm_head"
    return matrices.head(graph, last_BD, matrix_VD, weights.get("lm_head.bias"), weight=stored, name="lm_head")


def _signature(config: ModelConfig) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    ints, floats = TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("input_ids", ints, ["batch_size", "sequence"]),
        helper.make_tensor_value_info("attention_mask", ints, ["batch_size", "total"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", floats, ["batch_size", 1, config.vocab_size])]
    for layer in range(config.n_layers):
        for kind in ("key", "value"):
            held, now = (["batch_size", config.n_kv_heads, length, config.d_head] for length in ("past", "present"))
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{kind}", floats, held))
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{kind}", floats, now))
    outputs.append(helper.make_tensor_value_info(LAST_LOGITS, floats, ["batch_size", "last", config.vocab_size]))
    return inputs, outputs
