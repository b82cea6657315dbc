"""The engine that runs an exported model with ONNX Runtime. No torch here, nor in anything it imports.

Keys and values of a layer are one numpy buffer [S, K, M, d] that ONNX Runtime reads and writes in place: the same
memory is bound as past and as present. A pass over neighbouring slots binds a slice of it, once, and after that a token
costs a few numbers written into bound arrays. The length of a slot is how many ones its row of the mask has.

Shapes: S slots, K key/value heads, M most tokens of a slot, d features of a head, B slots of one pass, T new tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mmcli.generate.engine import check_copy, check_decode, check_prefill, check_truncate, check_verify
from mmcli.generate.onnx_session import GRAPH_FILE, LAST_LOGITS, PREFILL_CHUNK, SessionEngine, open_session
from mmcli.manifest import refuse_damaged
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_config import read_model_config

IDLE_SLOTS = 2  # so many idle slots between busy ones are computed along rather than run in another pass


class OnnxEngine(SessionEngine):
    """An `Engine` over an exported folder."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: ModelConfig,
        *,
        slots: int = 1,
        max_len: int | None = None,
    ) -> None:
        """Room for `slots` sequences of `max_len` tokens; see `SessionEngine`."""
        super().__init__(session, config, slots=slots, max_len=max_len)
        self._mask_SM = np.zeros((slots, self.max_len), dtype=np.int64)
        self._passes: dict[tuple[int, int, int], _Pass] = {}

    @classmethod
    def load(
        cls, folder: Path, *, slots: int = 1, max_len: int | None = None, threads: int | None = None
    ) -> OnnxEngine:
        """An engine over the export in `folder`.

        Args:
            threads: of ONNX Runtime; None: OMP_NUM_THREADS if that is set, else one for each core.

        Raises:
            UserError: no export there, a damaged one, or one that ONNX Runtime does not take.
        """
        refuse_damaged(folder, remake="mmcli export onnx")
        config = read_model_config(folder)
        return cls(open_session(folder / GRAPH_FILE, threads=threads), config, slots=slots, max_len=max_len)

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Engine.prefill`; long prompts run in chunks, an interrupt keeps the finished ones."""
        check_prefill(self, slot, ids)
        if len(ids) == 1:
            return self.decode([slot], ids)[0]
        for start in range(0, len(ids), PREFILL_CHUNK):
            ids_1T = np.array([ids[start : start + PREFILL_CHUNK]], dtype=np.int64)
            logits_V = self._run(self._pass(slot, 1), ids_1T, [slot])[0, -1]
        return logits_V

    def verify(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Engine.verify`."""
        check_verify(self, slot, ids)
        one_pass = self._pass(slot, 1, len(ids))
        one_pass.ids_BT[0] = ids
        logits_TV: np.ndarray = self._run(one_pass, one_pass.ids_BT, [slot])[0]
        return logits_TV

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """See `Engine.decode`. Slots that lie near each other run in one pass."""
        if len(slots) == 1 == len(ids) and self._can_take(slots[0], ids[0]):
            return self._decode_one(slots[0], ids[0])
        check_decode(self, slots, ids)
        id_of = dict(zip(slots, ids, strict=True))
        logits_of: dict[int, np.ndarray] = {}
        for first, count in self._stretches(sorted(slots)):
            one_pass = self._pass(first, count)
            inside = range(first, first + count)
            one_pass.ids_BT[:, 0] = [id_of.get(slot, 0) for slot in inside]
            rows = self._run(one_pass, one_pass.ids_BT, [slot for slot in inside if slot in id_of])[:, -1]
            logits_of.update(zip(inside, rows, strict=True))
        return np.stack([logits_of[slot] for slot in slots])

    def _can_take(self, slot: int, id: int) -> bool:
        """What `check_decode` asks of one id, in a fraction of its time."""
        return 0 <= slot < self.slots and self._lengths[slot] < self.max_len and 0 <= id < self.vocab_size

    def _decode_one(self, slot: int, id: int) -> np.ndarray:
        """`decode` of one slot, short: between two passes Python's own memory has left the processor's caches."""
        one_pass, n = self._pass(slot, 1), self._lengths[slot]
        one_pass.ids_BT[0, 0] = id
        self._mask_SM[slot, n] = 1
        try:
            one_pass.run(one_pass.ids_BT)
        except BaseException:  # also after an interrupt the mask says what the slot holds
            self._mask_SM[slot, n] = 0
            raise
        self._lengths[slot] = n + 1
        logits_1V: np.ndarray = one_pass.logits_BTV[:, -1].copy()
        return logits_1V

    def truncate(self, slot: int, n: int) -> None:
        """Keep the first `n` tokens of the slot."""
        check_truncate(self, slot, n)
        self._mask_SM[slot, n:] = 0
        self._lengths[slot] = n

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""
        check_copy(self, source, target)
        n = self._lengths[source]
        for buffer in self._buffers.values():
            buffer[target, :, :n] = buffer[source, :, :n]
        self._mask_SM[target] = self._mask_SM[source]
        self._lengths[target] = n

    def _stretches(self, slots: list[int]) -> list[tuple[int, int]]:
        """(first slot, how many) of passes that cover `slots` (ascending), a few idle ones between them included.

        An idle slot computes a token too, behind what it holds, which never counts; so it must not be full.
        """
        stretches: list[tuple[int, int]] = []
        for slot in slots:
            if stretches:
                first, count = stretches[-1]
                idle = range(first + count, slot)
                if len(idle) <= IDLE_SLOTS and all(self._lengths[each] < self.max_len for each in idle):
                    stretches[-1] = (first, slot - first + 1)
                    continue
            stretches.append((slot, 1))
        return stretches

    def _pass(self, first: int, count: int, n_tokens: int = 1) -> _Pass:
        """The bindings of a pass that returns the logits of `n_tokens` tokens of each slot."""
        key = (first, count, n_tokens)
        if key not in self._passes:
            self._passes[key] = _Pass(self, *key)
        return self._passes[key]

    def _run(self, one_pass: _Pass, ids_BT: np.ndarray, counted: list[int]) -> np.ndarray:
        """Append the ids to the slots of a pass; those `counted` are longer after it. Returns logits_BTV, a copy."""
        n_tokens = ids_BT.shape[1]
        lengths, mask_SM = self._lengths, self._mask_SM
        for slot in one_pass.slots:
            mask_SM[slot, lengths[slot] : lengths[slot] + n_tokens] = 1
        done: list[int] = []
        try:
            one_pass.run(ids_BT)
            done = counted
        finally:  # also after an interrupt the mask says what the slots hold
            for slot in one_pass.slots:
                if slot in done:
                    lengths[slot] += n_tokens
                else:
                    mask_SM[slot, lengths[slot] : lengths[slot] + n_tokens] = 0
        return one_pass.logits_BTV.copy()


class _Pass:
    """The bindings of one pass over neighbouring slots: slices of the buffers, the ids, the logits."""

    def __init__(self, engine: OnnxEngine, first: int, count: int, n_tokens: int) -> None:
        self.slots = range(first, first + count)
        part = slice(first, first + count)
        self.ids_BT = np.zeros((count, n_tokens), dtype=np.int64)
        self.logits_BTV = np.zeros((count, n_tokens, engine.vocab_size), dtype=np.float32)
        self._session = engine._session
        self._binding = binding = engine._session.io_binding()
        self._bound_ids: np.ndarray | None = None
        # An OrtValue over a numpy array shares its memory and must not outlive it: both are kept.
        self._ids = _share(self.ids_BT)
        self._kept: list[Any] = [_share(engine._mask_SM[part]), _share(self.logits_BTV)]
        binding.bind_ortvalue_input("attention_mask", self._kept[0])
        binding.bind_ortvalue_output("logits" if n_tokens == 1 else LAST_LOGITS, self._kept[1])
        for name, buffer in engine._buffers.items():
            value = _share(buffer[part])
            self._kept.append(value)
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)

    def run(self, ids_BT: np.ndarray) -> None:
        if ids_BT is not self._bound_ids:
            self._binding.bind_ortvalue_input("input_ids", self._ids if ids_BT is self.ids_BT else _share(ids_BT))
            self._bound_ids = ids_BT
        self._session.run_with_iobinding(self._binding)


def _share(array: np.ndarray) -> Any:
    """The array as ONNX Runtime sees it, in the same memory."""
    assert array.flags.c_contiguous
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
