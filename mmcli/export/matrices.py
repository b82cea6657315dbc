"""Matrix formats of an ONNX graph: storage and multiplication. To add one: a class here, and a line in `FORMATS`.

Shapes: I features in, O features out, V vocabulary, D width, B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mmcli.errors import UserError
from mmcli.export.graph import Graph
from mmcli.export.locate import Dtype
from mmcli.export.quantize import Blocks, quantize_blocks


@dataclass(frozen=True)
class Limits:
    """What the proof demands of a format; None: it is not held to that. Differences are shares of `Proof.scale`."""

    perplexity: float  # greatest rise, as a share
    batch_error: float  # root mean square of differences between a sequence decoded with others and alone
    logits: float | None = None  # greatest difference of a logit; greedy tokens must then be equal, but for ties
    logits_error: float | None = None  # root mean square of the differences, as a share of the logits' deviation


class MatrixFormat(Protocol):
    """How matrices are stored. Vectors, norms, rotary frequencies and routers are fp32 in every format."""

    limits: Limits

    def linear(self, graph: Graph, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        """x [..., I] times the matrix transposed, plus the bias: [..., O]. An expert's matrices go this way too."""
        ...

    def experts(
        self,
        graph: Graph,
        inputs: Sequence[str],
        matrices_EOI: Mapping[str, np.ndarray],
        count: int,
        normalised: bool,
        *,
        name: str,
    ) -> str | None:
        """The sum over the chosen experts of w_i down_i(silu(gate_i x) * up_i x) as one operator; None: it has none.

        Args:
            inputs: x [N, D], scores [N, E] of which the `count` highest are chosen, and the weights [N, E], without
                which they are the softmax of the chosen scores.
            matrices_EOI: `gate_proj`, `up_proj` and `down_proj` of all experts; those of expert 3 are named
                `NAME.3.gate_proj` and so on.
            normalised: the weights of the chosen are divided by their sum.
        """
        ...

    def embed(self, graph: Graph, ids: str, table_VD: np.ndarray, *, name: str) -> str:
        """Rows of the table: [..., D] for ids [...] of two dimensions."""
        ...

    def head(
        self, graph: Graph, x_BD: str, matrix_VD: np.ndarray, bias_V: np.ndarray | None, *, weight: str, name: str
    ) -> str:
        """Logits [B, V]; `weight` names the stored matrix, the embedding's name where the two are one."""
        ...


def _multiply(graph: Graph, x: str, matrix_IO: str, bias_O: np.ndarray | None, *, name: str) -> str:
    """x [..., I] times a tensor of the graph, plus the bias."""
    if bias_O is None:
        return graph.op("MatMul", x, matrix_IO, name=name)
    product = graph.op("MatMul", x, matrix_IO, name=f"{name}.product")
    return graph.op("Add", product, graph.weight(f"{name}.bias", bias_O), name=name)


class Floats:
    """As trained, or rounded to fp16 and multiplied in fp32: ONNX Runtime widens the matrices once, as it loads them.

    fp16 halves the file, not the memory nor the time of a token: CPUs have no fp16 products to gain from.
    """

    def __init__(self, limits: Limits, *, half: bool = False) -> None:
        self.limits, self._half = limits, half

    def linear(self, graph: Graph, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        weight = self._store(graph, f"{name}.weight", np.ascontiguousarray(matrix_OI.T))
        return _multiply(graph, x, weight, bias_O, name=name)

    def experts(self, *args: Any, **kwargs: Any) -> None:
        return None

    def embed(self, graph: Graph, ids: str, table_VD: np.ndarray, *, name: str) -> str:
        return graph.op("Gather", self._store(graph, f"{name}.weight", table_VD), ids, name=name)

    def head(
        self, graph: Graph, x_BD: str, matrix_VD: np.ndarray, bias_V: np.ndarray | None, *, weight: str, name: str
    ) -> str:
        inputs = [x_BD, self._store(graph, f"{weight}.weight", matrix_VD)]
        if bias_V is not None:
            inputs.append(graph.weight(f"{name}.bias", bias_V))
        return graph.op("Gemm", *inputs, name=name, transB=1)

    def _store(self, graph: Graph, name: str, matrix: np.ndarray) -> str:
        if not self._half:
            return graph.weight(name, matrix)
        largest = float(np.abs(matrix).max(initial=0.0))
        if not largest <= float(np.finfo(np.float16).max):
            raise UserError(f"{name} has values up to {largest:g}, fp16 ends at 65504", "export with --dtype fp32")
        return graph.widened(name, matrix.astype(np.float16))


class NBits:
    """Integers of a few bits in blocks, each with its scale, multiplied by activations in 8 bits (`MatMulNBits`).

    The embedding and the output head take 8 bits in every such format, and are stored once where they are tied.
    In the operators of the standard it is a `DequantizeLinear` before a `MatMul`, which ONNX Runtime makes one again.
    """

    def __init__(self, limits: Limits, *, bits: int, block: int) -> None:
        self.limits, self.bits, self._block = limits, bits, block
        self.kept: tuple[str, ...] = ()
        self._powers: Mapping[str, np.ndarray] = {}
        self._made: dict[tuple[str, int], Blocks] | None = None

    def fitted(
        self, powers: Mapping[str, np.ndarray], kept: tuple[str, ...], made: dict[tuple[str, int], Blocks]
    ) -> NBits:
        """The same, fitted to a model (see `calibrate`).

        Args:
            powers: mean square [I] of what each matrix multiplies; errors of its weights are weighed by it.
            kept: parts of the names of the matrices that stay in 8 bits.
            made: matrices of this model by name and bits, taken from there and put there.
        """
        other = NBits(self.limits, bits=self.bits, block=self._block)
        other.kept, other._powers, other._made = kept, powers, made
        return other

    def linear(self, graph: Graph, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        return self._multiply(graph, x, matrix_OI, bias_O, bits=self._bits_of(name), weight=name, name=name)

    def experts(
        self,
        graph: Graph,
        inputs: Sequence[str],
        matrices_EOI: Mapping[str, np.ndarray],
        count: int,
        normalised: bool,
        *,
        name: str,
    ) -> str | None:
        """`QMoE`, with the blocks of `MatMulNBits`; the rows of gate and up take turns in its first matrix."""
        n_experts = len(matrices_EOI["down_proj"])
        all_bits = {self._bits_of(f"{name}.{n}.{kind}") for n in range(n_experts) for kind in matrices_EOI}
        if len(all_bits) > 1 or any(matrix.shape[-1] % self._block for matrix in matrices_EOI.values()):
            return None
        bits = all_bits.pop()
        first = self._store_experts(graph, matrices_EOI, ("gate_proj", "up_proj"), bits, name=name)
        second = self._store_experts(graph, matrices_EOI, ("down_proj",), bits, name=name)
        stored = [*inputs[:2], *first, "", *second]
        if len(inputs) > 2:  # the fifteenth of the operator, after the biases, a third matrix and the zero points
            stored += [""] * (14 - len(stored)) + [inputs[2]]
        attributes: dict[str, Any] = {"k": count, "normalize_routing_weights": int(normalised)}
        attributes |= {"expert_weight_bits": bits, "block_size": self._block, "accuracy_level": 4}
        attributes |= {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
        return graph.op("QMoE", *stored, name=name, contrib=True, **attributes)

    def embed(self, graph: Graph, ids: str, table_VD: np.ndarray, *, name: str) -> str:
        """The table is stored as the output head multiplies it; a row is its blocks side by side."""
        width = table_VD.shape[1]
        values, scales = self._store(graph, name, table_VD, TABLE_BITS)
        if graph.standard:
            chosen = [graph.op("Gather", each, ids, name=f"{each}.chosen", axis=1) for each in (values, scales)]
            columns = self._widen(graph, *chosen, name=f"{name}.columns")
            return graph.op("Transpose", columns, name=name, perm=[1, 2, 0])
        scales_VN1 = graph.op("Unsqueeze", scales, graph.ints(-1), name=f"{name}.scales_VN1")
        attributes: dict[str, Any] = {"bits": TABLE_BITS, "block_size": self._block, "gather_axis": 0}
        attributes |= {"quantize_axis": 2}
        blocks = graph.op(
            "GatherBlockQuantized", values, ids, scales_VN1, name=f"{name}.blocks", contrib=True, **attributes
        )
        if width % self._block == 0:
            return graph.op("Reshape", blocks, graph.ints(0, 0, width), name=name)
        filled = graph.op("Reshape", blocks, graph.ints(0, 0, -1), name=f"{name}.filled")
        return graph.op("Slice", filled, graph.ints(0), graph.ints(width), graph.ints(-1), name=name)

    def head(
        self, graph: Graph, x_BD: str, matrix_VD: np.ndarray, bias_V: np.ndarray | None, *, weight: str, name: str
    ) -> str:
        return self._multiply(graph, x_BD, matrix_VD, bias_V, bits=TABLE_BITS, weight=weight, name=name)

    def _multiply(
        self,
        graph: Graph,
        x: str,
        matrix_OI: np.ndarray,
        bias_O: np.ndarray | None,
        *,
        bits: int,
        weight: str,
        name: str,
    ) -> str:
        n_out, n_in = matrix_OI.shape
        inputs = [x, *self._store(graph, weight, matrix_OI, bits)]
        if graph.standard:
            return _multiply(graph, x, self._widen(graph, *inputs[1:], name=f"{name}.wide"), bias_O, name=name)
        if bias_O is not None:
            inputs += ["", "", graph.weight(f"{name}.bias", bias_O)]
        attributes = {"N": n_out, "K": n_in, "bits": bits, "block_size": self._block}
        attributes["accuracy_level"] = 4  # activations in int8 too: two to five times as fast as the default
        return graph.op("MatMulNBits", *inputs, name=name, contrib=True, **attributes)

    def _widen(self, graph: Graph, values: str, scales: str, *, name: str) -> str:
        """The matrix that was stored, its first axis in blocks."""
        return graph.op("DequantizeLinear", values, scales, name=name, axis=0, block_size=self._block)

    def _store(self, graph: Graph, name: str, matrix_OI: np.ndarray, bits: int) -> tuple[str, str]:
        """The names of values and scales; for the standard's operators, of those of the matrix transposed."""
        values, scales = f"{name}.weight", f"{name}.weight_scales"
        if not graph.has_weight(values):
            blocks = self._quantized(name, matrix_OI, bits)
            if graph.standard:
                graph.signed(values, np.ascontiguousarray(blocks.signed_OI(bits)[:, : matrix_OI.shape[1]].T), bits)
                graph.weight(scales, np.ascontiguousarray(blocks.scales_ON.T, dtype=np.float32))
                return values, scales
            graph.weight(values, blocks.values_ONb)
            _store_scales(graph, scales, blocks.scales_ON)
        return values, scales

    def _store_experts(
        self, graph: Graph, matrices_EOI: Mapping[str, np.ndarray], kinds: Sequence[str], bits: int, *, name: str
    ) -> tuple[str, str]:
        """Names of values and scales of the matrices of some kinds, all experts in one tensor, the kinds' rows taking
        turns.
        """
        blocks = [
            [self._quantized(f"{name}.{n}.{kind}", matrices_EOI[kind][n], bits) for kind in kinds]
            for n in range(len(matrices_EOI[kinds[0]]))
        ]
        values_EOKNb = np.stack([np.stack([each.values_ONb for each in row], axis=1) for row in blocks])
        scales_EOKN = np.stack([np.stack([each.scales_ON for each in row], axis=1) for row in blocks])
        rows = (len(blocks), values_EOKNb.shape[1] * len(kinds), -1)
        values, scales = f"{name}.{'_'.join(kinds)}.weight", f"{name}.{'_'.join(kinds)}.weight_scales"
        graph.weight(values, values_EOKNb.reshape(rows))
        _store_scales(graph, scales, scales_EOKN.reshape(rows))
        return values, scales

    def _bits_of(self, name: str) -> int:
        return TABLE_BITS if any(part in name for part in self.kept) else self.bits

    def _quantized(self, name: str, matrix_OI: np.ndarray, bits: int) -> Blocks:
        made = {} if self._made is None else self._made
        if (name, bits) not in made:
            power_I = self._powers.get(name)
            made[name, bits] = quantize_blocks(matrix_OI, bits=bits, block=self._block, power_I=power_I)
        return made[name, bits]


def _store_scales(graph: Graph, name: str, scales: np.ndarray) -> None:
    """Scales as they are, in fp16 or fp32; the operators take them in fp32."""
    (graph.widened if scales.dtype == np.float16 else graph.weight)(name, scales)


TABLE_BITS = 8  # of the embedding and the output head
FORMATS: Mapping[Dtype, MatrixFormat] = {
    "fp32": Floats(Limits(perplexity=0.001, batch_error=1e-4, logits=1e-4)),
    "fp16": Floats(Limits(perplexity=0.005, batch_error=1e-4, logits_error=0.01), half=True),
    "int8": NBits(Limits(perplexity=0.01, batch_error=0.1, logits_error=0.2), bits=8, block=32),
    "int4": NBits(Limits(perplexity=0.05, batch_error=0.1, logits_error=0.75), bits=4, block=32),
}
