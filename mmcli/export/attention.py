"""Attention as ONNX Runtime's GroupQueryAttention, which also rotates and keeps the keys and values.

Shapes: B rows, T new tokens, H query heads, K key/value heads, d features of a head, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from mmcli.export.graph import Graph
from mmcli.export.matrices import MatrixFormat
from mmcli.model.rotary import Rotary
from mmcli.model.transformer import Transformer


def rms_norm(graph: Graph) -> str:
    """The operator, which has another name in ONNX Runtime than in the standard."""
    return "RMSNormalization" if graph.standard else "SimplifiedLayerNormalization"


class Attention:
    """The attention of every layer, and what they share: lengths, positions, rotary tables."""

    def __init__(
        self, graph: Graph, matrices: MatrixFormat, model: Transformer, weights: Mapping[str, np.ndarray], context: int
    ) -> None:
        self.graph, self.matrices, self.config, self.weights = graph, matrices, model.config, weights
        self._positions: str | None = None
        self._tables = None if model.rotary is None else self._rotary_tables(model.rotary, context)
        self._measure()

    def _measure(self) -> None:
        """The lengths that every layer needs."""
        graph = self.graph
        self._total_B1 = graph.op("ReduceSum", "attention_mask", graph.ints(1), name="total_B1", keepdims=1)
        total_B = graph.op("Squeeze", self._total_B1, graph.ints(1), name="total_B")
        last_B = graph.op("Sub", total_B, graph.ints(1), name="last_B")
        self._last_place = graph.op("Cast", last_B, name="seqlens_k", to=TensorProto.INT32)
        length = graph.op("Shape", "attention_mask", name="mask_length_1", start=1, end=2)
        length = graph.op("Squeeze", length, graph.ints(0), name="mask_length")
        self._longest = graph.op("Cast", length, name="total_seq_len", to=TensorProto.INT32)

    def _rotary_tables(self, rotary: Rotary, context: int) -> tuple[str, str]:
        """cos and sin [P, rotary_dim / 2], computed once when the graph is loaded: the file holds the frequencies."""
        graph = self.graph
        frequencies = graph.weight("rotary.frequencies", rotary.frequencies.cpu().numpy())
        places = graph.op("Range", graph.scalar(0), graph.scalar(context), graph.scalar(1), name="rotary.places")
        places = graph.op("Cast", places, name="rotary.places_P", to=TensorProto.FLOAT)
        places = graph.op("Unsqueeze", places, graph.ints(1), name="rotary.places_P1")
        angles = graph.op("Mul", places, frequencies, name="rotary.angles")
        tables = [graph.op(kind, angles, name=f"rotary.{kind.lower()}") for kind in ("Cos", "Sin")]
        if rotary.factor != 1.0:
            factor = graph.weight("rotary.factor", np.array(rotary.factor, dtype=np.float32))
            tables = [graph.op("Mul", table, factor, name=f"{table}_scaled") for table in tables]
        return tables[0], tables[1]

    @property
    def rotates_itself(self) -> bool:
        """GroupQueryAttention rotates only multiples of 16 features, in heads of such; else a node before it does."""
        return self._tables is not None and self.config.d_head % 16 == 0 and self.config.rotary_dim % 16 == 0

    def positions(self) -> str:
        """[B, T] the place of each new token in its sequence."""
        if self._positions is None:
            graph = self.graph
            length = graph.op("Shape", "input_ids", name="new_1", start=1, end=2)
            start_B1 = graph.op("Sub", self._total_B1, length, name="start_B1")
            count = graph.op("Squeeze", length, graph.ints(0), name="new")
            steps_T = graph.op("Range", graph.scalar(0), count, graph.scalar(1), name="steps_T")
            self._positions = graph.op("Add", start_B1, steps_T, name="positions_BT")
        return self._positions

    def layer(self, x_BTD: str, layer: int) -> str:
        """The attention of one layer, output projection included."""
        config, name = self.config, f"layers.{layer}.self_attn"
        rotated_outside = self._tables is not None and not self.rotates_itself
        packed = self._project(x_BTD, layer, "q_proj", "k_proj", "v_proj")
        apart = config.qk_norm or rotated_outside
        qkv = self._apart(packed, layer, rotated_outside) if apart else [packed, "", ""]
        attributes: dict[str, Any] = {"num_heads": config.n_heads, "kv_num_heads": config.n_kv_heads}
        inputs = [*qkv, *(f"past_key_values.{layer}.{kind}" for kind in ("key", "value"))]
        inputs += [self._last_place, self._longest]
        if self.rotates_itself and self._tables is not None:
            inputs += self._tables
            attributes |= {"do_rotary": 1, "rotary_interleaved": 0}
        if config.sliding_window is not None:
            attributes["local_window_size"] = config.sliding_window
        outputs = (f"{name}.heads", f"present.{layer}.key", f"present.{layer}.value")
        self.graph.ops("GroupQueryAttention", inputs, outputs, name=f"{name}.attention", contrib=True, **attributes)
        return self._project(f"{name}.heads", layer, "o_proj")

    def _project(self, x: str, layer: int, *projections: str) -> str:
        """One linear map, or several side by side as one."""
        inside = f"model.layers.{layer}.self_attn"
        matrix = np.concatenate([self.weights[f"{inside}.{each}.weight"] for each in projections])
        biases = [self.weights[f"{inside}.{each}.bias"] for each in projections] if self.config.bias else []
        name = "qkv_proj" if len(projections) > 1 else projections[0]
        bias = np.concatenate(biases) if biases else None
        return self.matrices.linear(self.graph, x, matrix, bias, name=f"layers.{layer}.self_attn.{name}")

    def _apart(self, packed: str, layer: int, rotate: bool) -> list[str]:
        """Queries [B, T, H*d], keys and values [B, T, K*d]; the first two normalised and rotated as the model asks."""
        config, name = self.config, f"layers.{layer}.self_attn"
        heads = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
        widths = self.graph.ints(*(count * config.d_head for count in heads.values()))
        outputs = [f"{name}.{kind}" for kind in heads]
        qkv = list(self.graph.ops("Split", (packed, widths), outputs, name=f"{name}.split", axis=-1))
        for number, kind in enumerate("qk"):
            if config.qk_norm:
                qkv[number] = self._norm_heads(qkv[number], layer, kind, heads[kind])
            if rotate:
                qkv[number] = self._rotate(qkv[number], layer, kind, heads[kind])
        return qkv

    def _norm_heads(self, x: str, layer: int, kind: str, heads: int) -> str:
        graph, config, name = self.graph, self.config, f"layers.{layer}.self_attn.{kind}_norm"
        weight = graph.weight(f"{name}.weight", self.weights[f"model.{name}.weight"])
        x_BTHd = graph.op("Reshape", x, graph.ints(0, 0, heads, config.d_head), name=f"{name}.split")
        normed = graph.op(rms_norm(graph), x_BTHd, weight, name=f"{name}.heads", axis=-1, epsilon=config.norm_eps)
        return graph.op("Reshape", normed, graph.ints(0, 0, heads * config.d_head), name=name)

    def _rotate(self, x: str, layer: int, kind: str, heads: int) -> str:
        assert self._tables is not None
        attributes = {"interleaved": 0, "num_heads": heads}
        if self.config.rotary_dim != self.config.d_head:
            attributes["rotary_embedding_dim"] = self.config.rotary_dim
        name = f"layers.{layer}.self_attn.{kind}_rotated"
        return self.graph.op(
            "RotaryEmbedding", x, self.positions(), *self._tables, name=name, contrib=True, **attributes
        )
