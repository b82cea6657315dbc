"""The engine for graphs whose cache grows, such as those of the ONNX standard's operators alone. No torch here.

Past [B, K, P, d] goes in and present [B, K, P + T, d] comes out, so every pass copies what the slots hold. Rows of
different length are filled up on the left, where the mask is 0.

Shapes: S slots, K key/value heads, M most tokens of a slot, d features of a head, B slots of one pass, P tokens in the
longest of them, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmcli.generate.engine import check_copy, check_decode, check_prefill, check_truncate, check_verify
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.generate.onnx_session import GRAPH_FILE, LAST_LOGITS, PREFILL_CHUNK, SessionEngine, open_session
from mmcli.manifest import refuse_damaged
from mmcli.model.formats.hf_config import read_model_config

OPS_KEY, STANDARD = "mmcli.ops", "standard"  # of the metadata of a graph whose cache grows


class GrowingOnnxEngine(SessionEngine):
    """An `Engine` over a graph whose cache grows."""

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Engine.prefill`; long prompts run in chunks, an interrupt keeps the finished ones."""
        check_prefill(self, slot, ids)
        for start in range(0, len(ids), PREFILL_CHUNK):
            logits_V = self._run([slot], [ids[start : start + PREFILL_CHUNK]], "logits")[0, -1]
        return logits_V

    def verify(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Engine.verify`."""
        check_verify(self, slot, ids)
        return self._run([slot], [ids], LAST_LOGITS)[0]

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """See `Engine.decode`."""
        check_decode(self, slots, ids)
        return self._run(slots, [[each] for each in ids], "logits")[:, -1]

    def truncate(self, slot: int, n: int) -> None:
        """Keep the first `n` tokens of the slot."""
        check_truncate(self, slot, n)
        self._lengths[slot] = n

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""
        check_copy(self, source, target)
        n = self._lengths[source]
        for cache_SKMd in self._buffers.values():
            cache_SKMd[target, :, :n] = cache_SKMd[source, :, :n]
        self._lengths[target] = n

    def _run(self, slots: Sequence[int], ids: Sequence[Sequence[int]], output: str) -> np.ndarray:
        """Append a row of ids to each of the slots; what comes out under that name."""
        ids_BT = np.array(ids, dtype=np.int64)
        new, held = ids_BT.shape[1], [self._lengths[slot] for slot in slots]
        longest = max(held)
        mask_BN = np.ones((len(slots), longest + new), dtype=np.int64)
        for row, length in enumerate(held):
            mask_BN[row, : longest - length] = 0
        feed = {"input_ids": ids_BT, "attention_mask": mask_BN}
        for kind, cache_SKMd in self._buffers.items():
            past_BKPd = np.zeros((len(slots), cache_SKMd.shape[1], longest, cache_SKMd.shape[3]), dtype=np.float32)
            for row, (slot, length) in enumerate(zip(slots, held, strict=True)):
                past_BKPd[row, :, longest - length :] = cache_SKMd[slot, :, :length]
            feed[f"past_key_values.{kind}"] = past_BKPd
        result, *presents = self._session.run([output, *(f"present.{kind}" for kind in self._buffers)], feed)
        for cache_SKMd, present_BKNd in zip(self._buffers.values(), presents, strict=True):
            for row, (slot, length) in enumerate(zip(slots, held, strict=True)):
                cache_SKMd[slot, :, length : length + new] = present_BKNd[row, :, longest:]
        for slot in slots:
            self._lengths[slot] += new
        logits: np.ndarray = result
        return logits


def load_onnx_engine(
    folder: Path,
    *,
    graph: Path | None = None,
    slots: int = 1,
    max_len: int | None = None,
    threads: int | None = None,
    profile: Path | None = None,
) -> SessionEngine:
    """The engine that fits the graph of the export in `folder`; the rest is as with `OnnxEngine.load`.

    Args:
        graph: a graph of the folder; None: `model.onnx`.
        profile: start of the name of the file that `end_profile` leaves, which slows the engine; None: no profile.
    """
    refuse_damaged(folder, remake="mmcli export onnx")
    config = read_model_config(folder)
    session = open_session(graph or folder / GRAPH_FILE, threads=threads, profile=profile)
    kind = GrowingOnnxEngine if session.get_modelmeta().custom_metadata_map.get(OPS_KEY) == STANDARD else OnnxEngine
    return kind(session, config, slots=slots, max_len=max_len)
