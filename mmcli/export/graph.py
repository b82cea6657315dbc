"""An ONNX graph under construction: nodes, weights, and the two ways a matrix is stored (fp32, int8).

Tensors are named by strings; every method returns the name of what it computes.

Shapes: I features in, O features out, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcli import __version__
from mmcli.export.quantize import quantize_columns

OPSET = 21  # with IR 10, what ONNX Runtime, its web build and onnxruntime-genai all load
IR_VERSION = 10
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


class Graph:
    """Collects a graph; `int8` stores matrices as uint8 with a scale and a zero point for every output feature."""

    def __init__(self, *, int8: bool = False) -> None:
        self.int8 = int8
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._quantized: dict[str, tuple[str, str, str]] = {}  # activations in uint8, made once for all who need them

    def op(self, kind: str, *inputs: str, name: str, contrib: bool = False, **attributes: Any) -> str:
        """One node with one output, which has the node's name."""
        return self.ops(kind, inputs, (name,), name=name, contrib=contrib, **attributes)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        name: str,
        contrib: bool = False,
        **attributes: Any,
    ) -> Sequence[str]:
        """One node with several outputs; "" leaves an input or an output out."""
        domain = CONTRIB if contrib else ""
        self._nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name, domain=domain, **attributes))
        return outputs

    def weight(self, name: str, values: np.ndarray) -> str:
        """A tensor stored in the file; the same name again is the same tensor."""
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(values, name)
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.weight("ints." + "_".join(str(value) for value in values), np.array(values, dtype=np.int64))

    def scalar(self, value: int) -> str:
        """A constant int64 scalar."""
        return self.weight(f"scalar.{value}", np.array(value, dtype=np.int64))

    def linear(self, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        """x [..., I] times the matrix transposed, plus the bias: [..., O]."""
        if self.int8:
            return self._int8_linear(x, matrix_OI.T, bias_O, name=name)
        weight = self.weight(f"{name}.weight", np.ascontiguousarray(matrix_OI.T))
        if bias_O is None:
            return self.op("MatMul", x, weight, name=name)
        product = self.op("MatMul", x, weight, name=f"{name}.product")
        return self.op("Add", product, self.weight(f"{name}.bias", bias_O), name=name)

    def embed(self, ids: str, table_VD: np.ndarray, *, name: str) -> str:
        """Rows of the table: [..., D] for ids [...] of two dimensions.

        In int8 the table lies as [D, V], the form in which a tied output head multiplies it.
        """
        if not self.int8:
            return self.op("Gather", self.weight(f"{name}.weight", table_VD), ids, name=name)
        values, scale_V, zero_V = self._store_int8(name, table_VD.T)
        columns = self.op("Gather", values, ids, name=f"{name}.columns", axis=1)
        rows = self.op("Transpose", columns, name=f"{name}.rows", perm=[1, 2, 0])
        last = self.ints(-1)
        scale, zero = (
            self.op("Unsqueeze", self.op("Gather", each, ids, name=f"{each}.of_ids"), last, name=f"{each}.column")
            for each in (scale_V, zero_V)
        )
        numbers, zeros = (self.op("Cast", each, name=f"{each}.float", to=TensorProto.FLOAT) for each in (rows, zero))
        return self.op("Mul", self.op("Sub", numbers, zeros, name=f"{name}.centred"), scale, name=name)

    def head(self, x_BD: str, matrix_VD: np.ndarray, bias_V: np.ndarray | None, *, weight: str, name: str) -> str:
        """Logits [B, V]; `weight` names the stored matrix, the embedding's name where the two are one."""
        if self.int8:
            return self._int8_linear(x_BD, matrix_VD.T, bias_V, name=name, weight=weight)
        inputs = [x_BD, self.weight(f"{weight}.weight", matrix_VD)]
        if bias_V is not None:
            inputs.append(self.weight(f"{name}.bias", bias_V))
        return self.op("Gemm", *inputs, name=name, transB=1)

    def _int8_linear(
        self, x: str, matrix_IO: np.ndarray, bias_O: np.ndarray | None, *, name: str, weight: str | None = None
    ) -> str:
        """Activations to uint8 as they come (one scale for the tensor), integers multiplied, back to float."""
        if x not in self._quantized:
            outputs = (f"{x}.uint8", f"{x}.scale", f"{x}.zero")
            self.ops("DynamicQuantizeLinear", (x,), outputs, name=f"{x}.quantize")
            self._quantized[x] = outputs
        x_values, x_scale, x_zero = self._quantized[x]
        values, scale_O, zero_O = self._store_int8(weight or name, matrix_IO)
        inputs = [x_values, values, x_scale, scale_O, x_zero, zero_O]
        if bias_O is not None:
            inputs.append(self.weight(f"{name}.bias", bias_O))
        return self.op("MatMulIntegerToFloat", *inputs, name=name, contrib=True)

    def _store_int8(self, name: str, matrix_IO: np.ndarray) -> tuple[str, str, str]:
        names = (f"{name}.weight", f"{name}.weight_scale", f"{name}.weight_zero")
        if names[0] not in self._weights:
            for each, values in zip(names, quantize_columns(matrix_IO), strict=True):
                self.weight(each, values)
        return names

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The whole model."""
        graph = helper.make_graph(self._nodes, "decoder", inputs, outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mmcli", producer_version=__version__
        )
        helper.set_model_props(model, metadata)
        return model
