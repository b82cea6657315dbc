"""Attention in the operators of the ONNX standard alone (opset 23), for other runtimes than ONNX Runtime.

The cache grows: past [B, K, P, d] goes in, present [B, K, P + T, d] comes out. The mask covers both, and rows are
filled up on the left: a token's position is the number of real tokens before it.

Shapes: B rows, T new tokens, P tokens in the cache, N = P + T, H query heads, K key/value heads, d features of a head.
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from mmcli.export.attention import Attention


class StandardAttention(Attention):
    """`Attention` and `RotaryEmbedding` of opset 23, with the mask written out."""

    def _measure(self) -> None:
        self._allowed_B1TN = self._mask()

    def _mask(self) -> str:
        """[B, 1, T, N] which of all tokens each new one sees: itself, and the real ones before it, in the window."""
        graph = self.graph
        total = self._length("attention_mask", "total")
        start = graph.op("Sub", total, self._length("input_ids", "new"), name="start")
        all_N = graph.op("Range", graph.scalar(0), total, graph.scalar(1), name="all_N")
        new_T = graph.op("Range", start, total, graph.scalar(1), name="new_T")
        new_T1 = graph.op("Unsqueeze", new_T, graph.ints(1), name="new_T1")
        seen_TN = graph.op("GreaterOrEqual", new_T1, all_N, name="seen_TN")
        if self.config.sliding_window is not None:
            distance_TN = graph.op("Sub", new_T1, all_N, name="distance_TN")
            near_TN = graph.op("Less", distance_TN, graph.scalar(self.config.sliding_window), name="near_TN")
            seen_TN = graph.op("And", seen_TN, near_TN, name="seen_near_TN")
        real_BN = graph.op("Cast", "attention_mask", name="real_BN", to=TensorProto.BOOL)
        real_B11N = graph.op("Unsqueeze", real_BN, graph.ints(1, 2), name="real_B11N")
        # What only fills a row up sees itself, so that it computes numbers: a NaN times a weight of 0 is a NaN.
        self_TN = graph.op("Equal", new_T1, all_N, name="self_TN")
        visible_B1TN = graph.op("Or", real_B11N, self_TN, name="visible_B1TN")
        return graph.op("And", visible_B1TN, seen_TN, name="allowed_B1TN")

    def _length(self, ids: str, name: str) -> str:
        """How many tokens a row of [B, ...] has: a scalar."""
        length = self.graph.op("Shape", ids, name=f"{name}_1", start=1, end=2)
        return self.graph.op("Squeeze", length, self.graph.ints(0), name=name)

    def positions(self) -> str:
        if self._positions is None:
            graph = self.graph
            counted_BN = graph.op("CumSum", "attention_mask", graph.scalar(1), name="counted_BN")
            place_BN = graph.op("Sub", counted_BN, graph.scalar(1), name="place_BN")
            place_BN = graph.op("Max", place_BN, graph.scalar(0), name="position_BN")  # of what fills a row up
            start_1 = graph.op("Unsqueeze", "start", graph.ints(0), name="start_1")
            self._positions = graph.op("Slice", place_BN, start_1, "total_1", graph.ints(1), name="positions_BT")
        return self._positions

    def layer(self, x_BTD: str, layer: int) -> str:
        config, name = self.config, f"layers.{layer}.self_attn"
        packed = self._project(x_BTD, layer, "q_proj", "k_proj", "v_proj")
        qkv = self._apart(packed, layer, rotate=self._tables is not None)
        inputs = [*qkv, self._allowed_B1TN, *(f"past_key_values.{layer}.{kind}" for kind in ("key", "value"))]
        outputs = (f"{name}.heads", f"present.{layer}.key", f"present.{layer}.value")
        heads: dict[str, Any] = {"q_num_heads": config.n_heads, "kv_num_heads": config.n_kv_heads}
        self.graph.ops("Attention", inputs, outputs, name=f"{name}.attention", **heads)
        return self._project(f"{name}.heads", layer, "o_proj")

    def _rotate(self, x: str, layer: int, kind: str, heads: int) -> str:
        assert self._tables is not None
        attributes: dict[str, Any] = {"interleaved": 0, "num_heads": heads}
        if self.config.rotary_dim != self.config.d_head:
            attributes["rotary_embedding_dim"] = self.config.rotary_dim
        name = f"layers.{layer}.self_attn.{kind}_rotated"
        return self.graph.op("RotaryEmbedding", x, *self._tables, self.positions(), name=name, **attributes)
