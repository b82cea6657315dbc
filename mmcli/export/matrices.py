"""Matrix formats of an ONNX graph: storage and multiplication. To add one: a class here, and a line in `FORMATS`.

Shapes: I features in, O features out, V vocabulary, D width, B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import TensorProto

from mmcli.export.graph import Graph
from mmcli.export.locate import Dtype
from mmcli.export.quantize import quantize_columns


@dataclass(frozen=True)
class Limits:
    """What the proof demands of a format; None: it is not held to that."""

    perplexity: float  # greatest rise, as a share
    # Greatest difference of a logit, times their deviation where that is above 1; greedy tokens must then be equal,
    # but for ties.
    logits: float | None = None
    logits_error: float | None = None  # root mean square of the differences, as a share of the logits' deviation


class MatrixFormat(Protocol):
    """How matrices are stored. Vectors, norms, rotary tables and routers are fp32 in every format."""

    limits: Limits
    rows_independent: bool  # the logits of a row do not depend on the other rows of the batch

    def linear(self, graph: Graph, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        """x [..., I] times the matrix transposed, plus the bias: [..., O]. An expert's matrices go this way too."""
        ...

    def embed(self, graph: Graph, ids: str, table_VD: np.ndarray, *, name: str) -> str:
        """Rows of the table: [..., D] for ids [...] of two dimensions."""
        ...

    def head(
        self, graph: Graph, x_BD: str, matrix_VD: np.ndarray, bias_V: np.ndarray | None, *, weight: str, name: str
    ) -> str:
        """Logits [B, V]; `weight` names the stored matrix, the embedding's name where the two are one."""
        ...


class Fp32:
    """As trained."""

    limits = Limits(perplexity=0.001, logits=1e-4)
    rows_independent = True

    def linear(self, graph: Graph, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        weight = graph.weight(f"{name}.weight", np.ascontiguousarray(matrix_OI.T))
        if bias_O is None:
            return graph.op("MatMul", x, weight, name=name)
        product = graph.op("MatMul", x, weight, name=f"{name}.product")
        return graph.op("Add", product, graph.weight(f"{name}.bias", bias_O), name=name)

    def embed(self, graph: Graph, ids: str, table_VD: np.ndarray, *, name: str) -> str:
        return graph.op("Gather", graph.weight(f"{name}.weight", table_VD), ids, name=name)

    def head(
        self, graph: Graph, x_BD: str, matrix_VD: np.ndarray, bias_V: np.ndarray | None, *, weight: str, name: str
    ) -> str:
        inputs = [x_BD, graph.weight(f"{weight}.weight", matrix_VD)]
        if bias_V is not None:
            inputs.append(graph.weight(f"{name}.bias", bias_V))
        return graph.op("Gemm", *inputs, name=name, transB=1)


class Int8:
    """uint8 with a scale and a zero point for every output feature; activations quantized as they come."""

    limits = Limits(perplexity=0.05, logits_error=0.5)
    rows_independent = False  # one scale for a whole tensor of activations

    def linear(self, graph: Graph, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        return self._multiply(graph, x, matrix_OI.T, bias_O, weight=name, name=name)

    def embed(self, graph: Graph, ids: str, table_VD: np.ndarray, *, name: str) -> str:
        """The table is stored as [D, V], the form in which a tied output head multiplies it."""
        values, scale_V, zero_V = self._store(graph, name, table_VD.T)
        columns = graph.op("Gather", values, ids, name=f"{name}.columns", axis=1)
        rows = graph.op("Transpose", columns, name=f"{name}.rows", perm=[1, 2, 0])
        last = graph.ints(-1)
        scale, zero = (
            graph.op("Unsqueeze", graph.op("Gather", each, ids, name=f"{each}.of_ids"), last, name=f"{each}.column")
            for each in (scale_V, zero_V)
        )
        numbers, zeros = (graph.op("Cast", each, name=f"{each}.float", to=TensorProto.FLOAT) for each in (rows, zero))
        return graph.op("Mul", graph.op("Sub", numbers, zeros, name=f"{name}.centred"), scale, name=name)

    def head(
        self, graph: Graph, x_BD: str, matrix_VD: np.ndarray, bias_V: np.ndarray | None, *, weight: str, name: str
    ) -> str:
        return self._multiply(graph, x_BD, matrix_VD.T, bias_V, weight=weight, name=name)

    def _multiply(
        self, graph: Graph, x: str, matrix_IO: np.ndarray, bias_O: np.ndarray | None, *, weight: str, name: str
    ) -> str:
        """Activations to uint8 (once for all who multiply them), integers multiplied, back to float."""
        outputs = (f"{x}.uint8", f"{x}.scale", f"{x}.zero")
        if not graph.has(f"{x}.quantize"):
            graph.ops("DynamicQuantizeLinear", (x,), outputs, name=f"{x}.quantize")
        x_values, x_scale, x_zero = outputs
        values, scale_O, zero_O = self._store(graph, weight, matrix_IO)
        inputs = [x_values, values, x_scale, scale_O, x_zero, zero_O]
        if bias_O is not None:
            inputs.append(graph.weight(f"{name}.bias", bias_O))
        return graph.op("MatMulIntegerToFloat", *inputs, name=name, contrib=True)

    def _store(self, graph: Graph, name: str, matrix_IO: np.ndarray) -> tuple[str, str, str]:
        names = (f"{name}.weight", f"{name}.weight_scale", f"{name}.weight_zero")
        if not graph.has_weight(names[0]):
            for each, values in zip(names, quantize_columns(matrix_IO), strict=True):
                graph.weight(each, values)
        return names


FORMATS: Mapping[Dtype, MatrixFormat] = {"fp32": Fp32(), "int8": Int8()}
