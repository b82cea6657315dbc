"""What the engines that run an exported model share: the session of ONNX Runtime, the keys and values, the lengths.

No torch here, nor in anything it imports.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from mmcli.errors import MmcliError, UserError
from mmcli.generate.engine import Engine, extend_in_turn
from mmcli.generate.huge_pages import huge_pages
from mmcli.model.config import ModelConfig
from mmcli.run import ONNX_GRAPH

GRAPH_FILE = ONNX_GRAPH
LAST_LOGITS = "last_logits"  # the output with the logits of several tokens; older exports lack it
# Of `--ops standard`: products of int8 and int4 matrices that ONNX Runtime fuses take activations in 8 bits too.
INTEGER_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "4")
PREFILL_CHUNK = 256  # tokens of a prompt that run at once: bounds the memory of their activations


class SessionEngine(Engine):
    """The part of an `Engine` over a session that does not depend on how its graph takes the keys and values."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: ModelConfig,
        *,
        slots: int = 1,
        max_len: int | None = None,
    ) -> None:
        """Room for `slots` sequences of `max_len` tokens (None: the exported context).

        Raises:
            UserError: no slot, no token, or more tokens than the exported context has positions.
        """
        if slots < 1:
            raise UserError(f"slots = {slots} holds no sequence", "give 1 or more")
        if max_len is not None and not 1 <= max_len <= config.max_seq_len:
            what = f"max_len = {max_len} does not fit the exported context of {config.max_seq_len:,} tokens"
            raise UserError(what, f"give 1 up to {config.max_seq_len}")
        self.vocab_size = config.vocab_size
        self.max_len = max_len or config.max_seq_len
        self.slots = slots
        self.can_verify = any(each.name == LAST_LOGITS for each in session.get_outputs())
        self._session = session
        self._lengths = [0] * slots
        shape = (slots, config.n_kv_heads, self.max_len, config.d_head)
        kinds = [f"{layer}.{kind}" for layer in range(config.n_layers) for kind in ("key", "value")]
        self._buffers = {kind: np.zeros(shape, dtype=np.float32) for kind in kinds}

    def end_profile(self) -> Path:
        """The file with ONNX Runtime's profile of all runs so far; its session was opened with `profile`."""
        return Path(self._session.end_profiling())

    def extend(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Engine.extend`: rows of one id in one pass, the graphs take no others of different length together."""
        return extend_in_turn(self, slots, ids)

    def length(self, slot: int) -> int:
        """Tokens in the slot's cache."""
        return self._lengths[slot]


def open_session(
    path: Path, *, threads: int | None = None, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session over a graph file on the CPU.

    Raises:
        UserError: there is no such file, or `threads` is not positive.
        MmcliError: ONNX Runtime does not take it.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}", "make it: mmcli export onnx")
    if threads is not None and threads < 1:
        raise UserError(f"threads = {threads} can do no work", "give 1 or more")
    asked = os.environ.get("OMP_NUM_THREADS", "")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or (int(asked) if asked.isdigit() else 0)
    options.log_severity_level = 4  # failures come as exceptions
    options.add_session_config_entry(*INTEGER_PRODUCTS)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        with huge_pages():
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes share no parent but Exception
        reason = str(error).splitlines()[0]
        what = f"ONNX Runtime {onnxruntime.__version__} does not take {path}: {reason}"
        raise MmcliError(what, "export it again: mmcli export onnx; or update onnxruntime") from None
