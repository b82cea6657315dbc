"""The dense FFN as nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmcli.export.graph import Graph
from mmcli.export.matrices import MatrixFormat
from mmcli.model.config import ModelConfig


def feed_forward(
    graph: Graph, matrices: MatrixFormat, config: ModelConfig, weights: Mapping[str, np.ndarray], x: str, *, name: str
) -> str:
    """down(silu(gate x) * up x), or down(gelu(up x)); `weights` by their names inside the FFN."""

    def project(x: str, which: str) -> str:
        matrix, bias = weights[f"{which}.weight"], weights.get(f"{which}.bias")
        return matrices.linear(graph, x, matrix, bias, name=f"{name}.{which}")

    gate = project(x, "gate_proj") if config.gated else None
    hidden = activate(graph, config, gate, project(x, "up_proj"), name=name)
    return project(hidden, "down_proj")


def activate(graph: Graph, config: ModelConfig, gate: str | None, up: str, *, name: str) -> str:
    """silu(gate) * up, or gelu(up). ONNX Runtime makes one operator of the sigmoid and its product."""
    if gate is None:
        kind = "tanh" if config.mlp == "gelu_tanh" else "none"
        return graph.op("Gelu", up, name=f"{name}.hidden", approximate=kind)
    sigmoid = graph.op("Sigmoid", gate, name=f"{name}.sigmoid")
    silu = graph.op("Mul", gate, sigmoid, name=f"{name}.silu")
    return graph.op("Mul", silu, up, name=f"{name}.hidden")
