"""An exported graph run once more, with more to see of it than the logits of a last token.

Shapes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcli.export.decoder import FINAL_NORM, LAST_TOKENS
from mmcli.export.onnx_folder import write_graph
from mmcli.generate.onnx_session import GRAPH_FILE, LAST_LOGITS, open_session
from mmcli.model.config import ModelConfig


class Rerun:
    """A graph with inner tensors made outputs, or with the logits of every token; `graph` is changed to that."""

    def __init__(
        self, graph: onnx.ModelProto, config: ModelConfig, *, inner: Sequence[str] = (), every_token: bool = False
    ) -> None:
        graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner)
        if every_token:
            _keep_every_token(graph, config.dim)
        with tempfile.TemporaryDirectory() as place:
            write_graph(Path(place), graph)
            self._session = open_session(Path(place) / GRAPH_FILE)
        self._names = [*inner, "logits"]
        empty = np.zeros((1, config.n_kv_heads, 0, config.d_head), dtype=np.float32)
        kinds = [f"{layer}.{kind}" for layer in range(config.n_layers) for kind in ("key", "value")]
        self._empty = {f"past_key_values.{kind}": empty for kind in kinds}

    def run(self, pieces: Sequence[Sequence[int]]) -> Iterator[dict[str, np.ndarray]]:
        """What each piece of a text gives, the pieces before it being in the cache.

        "logits" are [1, V], of the last token, or [T, V] of every one; an inner tensor is [T, D] (of an expert, its
        tokens alone).
        """
        outputs = [each.name for each in self._session.get_outputs()]
        feed, length = dict(self._empty), 0
        for piece in pieces:
            length += len(piece)
            feed["input_ids"] = np.array([piece], dtype=np.int64)
            feed["attention_mask"] = np.ones((1, length), dtype=np.int64)
            found = dict(zip(outputs, self._session.run(outputs, feed), strict=True))
            feed |= {past: found[past.replace("past_key_values", "present")] for past in self._empty}
            yield {name: _without_batch(name, found[name]) for name in self._names}


def _without_batch(name: str, values: np.ndarray) -> np.ndarray:
    if name == "logits":
        return values[:, 0]
    return values[0] if values.ndim == 3 else values


def _keep_every_token(graph: onnx.ModelProto, width: int) -> None:
    """The output head gets all tokens, where it gets the last few; the logits are [T, 1, V]."""
    nodes = {each.name: each for each in graph.graph.node}
    if LAST_TOKENS in nodes:
        every = helper.make_node("Identity", [FINAL_NORM], [LAST_TOKENS], name=LAST_TOKENS)
        nodes[LAST_TOKENS].CopyFrom(every)
        rows = helper.make_node("Transpose", [LAST_LOGITS], ["logits"], name="logits", perm=[1, 0, 2])
        nodes["logits"].CopyFrom(rows)
    else:  # an export from before `last_logits`
        shape = numpy_helper.from_array(np.array([-1, width], dtype=np.int64), "every_token.shape")
        graph.graph.initializer.append(shape)
        last = nodes["last_token"]
        last.CopyFrom(helper.make_node("Reshape", [FINAL_NORM, shape.name], list(last.output), name=last.name))
    next(each for each in graph.graph.output if each.name == "logits").type.tensor_type.ClearField("shape")
