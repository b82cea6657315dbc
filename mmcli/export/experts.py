"""A mixture of experts: one operator of ONNX Runtime where the format of the matrices has one, else plain nodes.

The plain nodes run wherever the dense model runs: the tokens sorted by expert, each expert over its own, which may be
none, and all added up again.

Shapes: N tokens, D width, E experts, k chosen for a token, R = N*k pairs of a token and an expert.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from mmcli.export.graph import Graph
from mmcli.export.matrices import MatrixFormat
from mmcli.export.mlp import feed_forward
from mmcli.model.config import ModelConfig


def expert_mixture(
    graph: Graph, matrices: MatrixFormat, config: ModelConfig, weights: Mapping[str, np.ndarray], x: str, *, name: str
) -> str:
    """sum over the chosen experts of w_i E_i(x), plus every shared expert; `weights` by their names inside the FFN.

    As one operator where the format has one. Else as plain nodes, each of which costs ONNX Runtime some microseconds,
    as much as a small matrix: so an expert has no more of them than its own FFN, and what picks and adds its tokens is
    done for all experts at once.
    """
    x_ND = graph.op("Reshape", x, graph.ints(-1, config.dim), name=f"{name}.tokens")
    logits_NE, scores_NE = _scores(graph, config, weights["gate.weight"], x_ND, name=f"{name}.gate")
    sum_ND = _shared(graph, matrices, config, weights, x_ND, name=name)
    out_ND = _fused(graph, matrices, config, weights, x_ND, logits_NE, scores_NE, name=name)
    if out_ND is None:
        out_ND = _routed(graph, matrices, config, weights, x_ND, logits_NE, scores_NE, sum_ND, name=name)
    elif sum_ND is not None:
        out_ND = graph.op("Add", out_ND, sum_ND, name=f"{name}.out_ND")
    return graph.op("Reshape", out_ND, graph.op("Shape", x, name=f"{name}.x_shape"), name=f"{name}.out")


def _scores(
    graph: Graph, config: ModelConfig, router_ED: np.ndarray, x_ND: str, *, name: str
) -> tuple[str, str | None]:
    """(logits_NE, scores_NE); no scores where those of the chosen experts are the softmax of their logits alone.

    The router stays fp32 in every format: it is small, and its choice is not smooth.
    """
    matrix = graph.weight(f"{name}.weight", np.ascontiguousarray(router_ED.T))
    logits_NE = graph.op("MatMul", x_ND, matrix, name=f"{name}.logits")
    if config.scoring_func == "sigmoid":
        return logits_NE, graph.op("Sigmoid", logits_NE, name=f"{name}.scores")
    if config.norm_topk_prob:
        return logits_NE, None
    return logits_NE, graph.op("Softmax", logits_NE, name=f"{name}.scores", axis=-1)


def _fused(
    graph: Graph,
    matrices: MatrixFormat,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    x_ND: str,
    logits_NE: str,
    scores_NE: str | None,
    *,
    name: str,
) -> str | None:
    """The sum over the chosen experts as one operator; None where there is none."""
    if graph.portable or not config.gated:
        return None
    experts = {which: weights[f"experts.{which}"] for which in ("gate_proj", "up_proj", "down_proj")}
    inputs = (x_ND, logits_NE) if scores_NE is None else (x_ND, scores_NE, scores_NE)
    count, normalised = config.num_experts_per_tok, config.norm_topk_prob
    return matrices.experts(graph, inputs, experts, count, normalised, name=f"{name}.experts")


def _routed(
    graph: Graph,
    matrices: MatrixFormat,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    x_ND: str,
    logits_NE: str,
    scores_NE: str | None,
    sum_ND: str | None,
    *,
    name: str,
) -> str:
    """The sum over the chosen experts as plain nodes, added to `sum_ND`."""
    weights_Nk, experts_Nk = _choose(graph, config, logits_NE, scores_NE, name=f"{name}.gate")
    pair_R, counts_E = _sort(graph, config, experts_Nk, name=name)
    token_R = graph.op("Div", pair_R, graph.scalar(config.num_experts_per_tok), name=f"{name}.token_R")
    x_RD = graph.op("Gather", x_ND, token_R, name=f"{name}.x_RD", axis=0)
    names = [f"{name}.experts.{expert}" for expert in range(config.n_routed_experts)]
    parts = graph.ops("Split", (x_RD, counts_E), [f"{each}.x" for each in names], name=f"{name}.parts", axis=0)
    done = [
        _expert(graph, matrices, config, weights, part, expert, name=each)
        for expert, (part, each) in enumerate(zip(parts, names, strict=True))
    ]
    y_RD = graph.op("Concat", *done, name=f"{name}.y_RD", axis=0)
    weights_R1 = graph.op("Reshape", weights_Nk, graph.ints(-1, 1), name=f"{name}.weights_R1")
    weights_R1 = graph.op("Gather", weights_R1, pair_R, name=f"{name}.sorted_weights_R1", axis=0)
    shares_RD = graph.op("Mul", y_RD, weights_R1, name=f"{name}.shares_RD")
    token_R1 = graph.op("Unsqueeze", token_R, graph.ints(1), name=f"{name}.token_R1")
    if sum_ND is None:
        shape = graph.op("Shape", x_ND, name=f"{name}.shape")
        zero = graph.weight("zero", np.zeros(1, dtype=np.float32))
        sum_ND = graph.op("Expand", zero, shape, name=f"{name}.none")
    return graph.op("ScatterND", sum_ND, token_R1, shares_RD, name=f"{name}.out_ND", reduction="add")


def _choose(graph: Graph, config: ModelConfig, logits_NE: str, scores_NE: str | None, *, name: str) -> tuple[str, str]:
    """(weights_Nk, experts_Nk)."""
    count = graph.ints(config.num_experts_per_tok)
    outputs = (f"{name}.best", f"{name}.experts")
    best, experts_Nk = graph.ops("TopK", (scores_NE or logits_NE, count), outputs, name=f"{name}.choose")
    if scores_NE is None:
        return graph.op("Softmax", best, name=f"{name}.weights", axis=-1), experts_Nk
    if not config.norm_topk_prob:
        return best, experts_Nk
    total = graph.op("ReduceSum", best, graph.ints(-1), name=f"{name}.total", keepdims=1)
    tiny = graph.weight("tiny", np.array(1e-20, dtype=np.float32))
    safe = graph.op("Add", total, tiny, name=f"{name}.safe_total")
    return graph.op("Div", best, safe, name=f"{name}.weights"), experts_Nk


def _sort(graph: Graph, config: ModelConfig, experts_Nk: str, *, name: str) -> tuple[str, str]:
    """(pair_R, counts_E): the places of the pairs in experts_Nk, sorted by expert, and how many are of each."""
    experts_1R = graph.op("Reshape", experts_Nk, graph.ints(1, -1), name=f"{name}.experts_1R")
    all_E1 = graph.weight("experts_E1", np.arange(config.n_routed_experts, dtype=np.int64)[:, None])
    is_of_ER = graph.op("Equal", all_E1, experts_1R, name=f"{name}.is_of_ER")
    places_2R = graph.op("NonZero", is_of_ER, name=f"{name}.places_2R")
    pair_R = graph.op("Gather", places_2R, graph.scalar(1), name=f"{name}.pair_R", axis=0)
    ones_ER = graph.op("Cast", is_of_ER, name=f"{name}.ones_ER", to=TensorProto.INT64)
    return pair_R, graph.op("ReduceSum", ones_ER, graph.ints(1), name=f"{name}.counts_E", keepdims=0)


def _expert(
    graph: Graph,
    matrices: MatrixFormat,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    x: str,
    expert: int,
    *,
    name: str,
) -> str:
    """The FFN of one expert, of its rows alone."""
    own = {
        f"{which}.weight": weights[f"experts.{which}"][expert]
        for which in ("gate_proj", "up_proj", "down_proj")
        if f"experts.{which}" in weights
    }
    return feed_forward(graph, matrices, config, own, x, name=name)


def _shared(
    graph: Graph,
    matrices: MatrixFormat,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    x_ND: str,
    *,
    name: str,
) -> str | None:
    """The sum of the shared experts; None if there is none."""
    sums: list[str] = []
    for number in range(config.n_shared):
        inside = f"shared_experts.{number}."
        own = {key.removeprefix(inside): value for key, value in weights.items() if key.startswith(inside)}
        here = f"{name}.shared_experts.{number}"
        shared = feed_forward(graph, matrices, config, own, x_ND, name=here)
        sums.append(graph.op("Add", sums[-1], shared, name=f"{here}.sum") if sums else shared)
    return sums[-1] if sums else None
