"""A mixture of experts as nodes: each expert gathers its tokens, which may be none, and adds its share to the sum.

Plain operators, so it runs wherever the dense model runs, with any router. ONNX Runtime's own MoE operators on the CPU
take only softmax, two experts a token and renormalised weights; in fp32 they were a tenth quicker, in int8 slower.

Shapes: N tokens, D width, E experts, k chosen for a token, R tokens of one expert.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmcli.export.graph import Graph
from mmcli.export.matrices import MatrixFormat
from mmcli.export.mlp import activate, feed_forward
from mmcli.model.config import ModelConfig


def expert_mixture(
    graph: Graph, matrices: MatrixFormat, config: ModelConfig, weights: Mapping[str, np.ndarray], x: str, *, name: str
) -> str:
    """sum over the chosen experts of w_i E_i(x), plus every shared expert; `weights` by their names inside the FFN."""
    x_ND = graph.op("Reshape", x, graph.ints(-1, config.dim), name=f"{name}.tokens")
    weights_Nk, experts_Nk = _route(graph, config, weights["gate.weight"], x_ND, name=f"{name}.gate")
    shape = graph.op("Shape", x_ND, name=f"{name}.shape")
    out_ND = graph.op("Expand", graph.weight("zero", np.zeros(1, dtype=np.float32)), shape, name=f"{name}.none")
    for expert in range(config.n_routed_experts):
        out_ND = _add_expert(graph, matrices, config, weights, x_ND, weights_Nk, experts_Nk, out_ND, expert, name=name)
    out = graph.op("Reshape", out_ND, graph.op("Shape", x, name=f"{name}.x_shape"), name=f"{name}.routed")
    for number in range(config.n_shared):
        inside = f"shared_experts.{number}."
        own = {key.removeprefix(inside): value for key, value in weights.items() if key.startswith(inside)}
        shared = feed_forward(graph, matrices, config, own, x, name=f"{name}.shared_experts.{number}")
        out = graph.op("Add", out, shared, name=f"{name}.with_shared_{number}")
    return out


def _route(graph: Graph, config: ModelConfig, router_ED: np.ndarray, x_ND: str, *, name: str) -> tuple[str, str]:
    """(weights_Nk, experts_Nk). The router stays fp32 in every format: it is small, and its choice is not smooth."""
    matrix = graph.weight(f"{name}.weight", np.ascontiguousarray(router_ED.T))
    logits_NE = graph.op("MatMul", x_ND, matrix, name=f"{name}.logits")
    if config.scoring_func == "softmax":
        scores_NE = graph.op("Softmax", logits_NE, name=f"{name}.scores", axis=-1)
    else:
        scores_NE = graph.op("Sigmoid", logits_NE, name=f"{name}.scores")
    count = graph.ints(config.num_experts_per_tok)
    best, experts_Nk = graph.ops("TopK", (scores_NE, count), (f"{name}.best", f"{name}.experts"), name=f"{name}.choose")
    if not config.norm_topk_prob:
        return best, experts_Nk
    total = graph.op("ReduceSum", best, graph.ints(-1), name=f"{name}.total", keepdims=1)
    tiny = graph.weight("tiny", np.array(1e-20, dtype=np.float32))
    safe = graph.op("Add", total, tiny, name=f"{name}.safe_total")
    return graph.op("Div", best, safe, name=f"{name}.weights"), experts_Nk


def _add_expert(
    graph: Graph,
    matrices: MatrixFormat,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    x_ND: str,
    weights_Nk: str,
    experts_Nk: str,
    sum_ND: str,
    expert: int,
    *,
    name: str,
) -> str:
    """The sum with the share of one expert in it."""
    here = f"{name}.experts.{expert}"
    is_own_Nk = graph.op("Equal", experts_Nk, graph.scalar(expert), name=f"{here}.is_own")
    places_2R = graph.op("NonZero", is_own_Nk, name=f"{here}.places_2R")
    places_R2 = graph.op("Transpose", places_2R, name=f"{here}.places", perm=[1, 0])
    token_R = graph.op("Gather", places_2R, graph.scalar(0), name=f"{here}.token", axis=0)
    x_RD = graph.op("Gather", x_ND, token_R, name=f"{here}.x", axis=0)

    def project(x: str, which: str) -> str:
        return matrices.linear(graph, x, weights[f"experts.{which}"][expert], None, name=f"{here}.{which}")

    gate = project(x_RD, "gate_proj") if config.gated else None
    y_RD = project(activate(graph, config, gate, project(x_RD, "up_proj"), name=here), "down_proj")
    weight_R = graph.op("GatherND", weights_Nk, places_R2, name=f"{here}.weight_R")
    weight_R1 = graph.op("Unsqueeze", weight_R, graph.ints(1), name=f"{here}.weight_R1")
    share_RD = graph.op("Mul", y_RD, weight_R1, name=f"{here}.share")
    token_R1 = graph.op("Unsqueeze", token_R, graph.ints(1), name=f"{here}.token_R1")
    return graph.op("ScatterND", sum_ND, token_R1, share_RD, name=f"{here}.sum", reduction="add")
