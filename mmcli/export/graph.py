"""An ONNX graph under construction: its nodes and its weights.

Tensors are named by strings; every method returns the name of what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcli import __version__
from mmcli.export.locate import Ops
from mmcli.generate.onnx_growing import OPS_KEY

OPSET, IR_VERSION = 21, 10  # what ONNX Runtime, its web build and onnxruntime-genai all load
STANDARD_OPSET, STANDARD_IR_VERSION = 23, 11  # the first with Attention, RotaryEmbedding and RMSNormalization
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


class Graph:
    """Collects a graph, of ONNX Runtime's own operators or of the standard's alone.

    Attributes:
        portable: it leaves out operators that only ONNX Runtime on a computer has, and only lately.
    """

    def __init__(self, ops: Ops = "fused", *, portable: bool = False) -> None:
        self._ops = ops
        self.portable = portable or self.standard
        self._nodes: dict[str, onnx.NodeProto] = {}
        self._weights: dict[str, TensorProto] = {}

    @property
    def standard(self) -> bool:
        """Of the standard's operators alone."""
        return self._ops == "standard"

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
        assert not (contrib and self.standard), f"{kind} is not an operator of the standard"
        domain = CONTRIB if contrib else ""
        node = helper.make_node(kind, list(inputs), list(outputs), name=name, domain=domain, **attributes)
        assert name not in self._nodes, name
        self._nodes[name] = node
        return outputs

    def weight(self, name: str, values: np.ndarray) -> str:
        """A tensor stored in the file; the same name again is the same tensor."""
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(values, name)
        return name

    def signed(self, name: str, values: np.ndarray, bits: int) -> str:
        """A tensor of int8, or of int4 (two of its numbers a byte) from int8 values that fit."""
        if bits == 8:
            return self.weight(name, values)
        flat = np.append(values.ravel(), np.int8(0)) if values.size % 2 else values.ravel()
        packed = (flat[0::2] & 15) | (flat[1::2] << 4)
        self._weights[name] = helper.make_tensor(name, TensorProto.INT4, values.shape, packed.tobytes(), raw=True)
        return name

    def widened(self, name: str, values: np.ndarray) -> str:
        """A tensor stored in fp16 and used in fp32: the cast is done once, when the graph is loaded."""
        if name not in self._nodes:
            self.op("Cast", self.weight(f"{name}_fp16", values), name=name, to=TensorProto.FLOAT)
        return name

    def has_weight(self, name: str) -> bool:
        """Whether a tensor is stored under that name."""
        return name in self._weights

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.weight("ints." + "_".join(str(value) for value in values), np.array(values, dtype=np.int64))

    def scalar(self, value: int) -> str:
        """A constant int64 scalar."""
        return self.weight(f"scalar.{value}", np.array(value, dtype=np.int64))

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The whole model."""
        graph = helper.make_graph(list(self._nodes.values()), "decoder", inputs, outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", STANDARD_OPSET if self.standard else OPSET)]
        if not self.standard:
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        ir_version = STANDARD_IR_VERSION if self.standard else IR_VERSION
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=ir_version, producer_name="mmcli", producer_version=__version__
        )
        helper.set_model_props(model, {**metadata, OPS_KEY: self._ops})
        return model
