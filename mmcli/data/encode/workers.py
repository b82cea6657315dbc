"""Encoding in processes of their own: one a core, since chat templates, and texts in part, hold Python's lock.

A worker is `serve` in a fresh interpreter. It reads pickles from its stdin and answers on its stdout: first what to do,
then one batch of records after the other. It ends with its stdin, so it never outlives the process that started it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, cast

from mmcli.data.record import EncodedRecord, Record, RecordError
from mmcli.data.records.kinds import find_kind, register_kind
from mmcli.errors import MmcliError, UserError
from mmcli.text.tokenizer import Tokenizer

MOST_WORKERS = 16
Results = list[EncodedRecord | RecordError]


class EncoderPool:
    """Workers that encode batches at once. Close it, or use it in a `with`."""

    def __init__(
        self, kind: str, kinds: bytes, tokenizer: Tokenizer, options: Mapping[str, Any], *, workers: int
    ) -> None:
        """
        Args:
            kind: the record kind whose encoder is run.
            kinds: every kind that this process knows (see `dump_kinds`).
            options: what the encoder is given.
        """
        self.workers = min(workers, MOST_WORKERS)
        # Each worker has a core, and no use for the threads that the library would start in it.
        path = os.pathsep.join(each or os.getcwd() for each in sys.path)
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
        command = [sys.executable, "-P", "-c", "from mmcli.data.encode.workers import serve; serve()"]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self.workers, "encode")  # each waits at the pipes of one worker
        for _ in range(self.workers):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, **_apart()
            )
            self._processes.append(process)
            _send(process, (kind, kinds, tokenizer.definition, dict(options)))
            self._idle.put(process)

    def __enter__(self) -> EncoderPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, records: Sequence[Record]) -> Future[Results]:
        """The results of a batch, one a record, in order.

        The future raises UserError as the encoder does, and MmcliError where a worker ended or failed.
        """
        return self._threads.submit(self._encode, records)

    def _encode(self, records: Sequence[Record]) -> Results:
        process = self._idle.get()
        try:
            _send(process, records)
            assert process.stdout is not None
            answer = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            code = process.wait()
            what = f"a process that encodes the data ended early (exit code {code})"
            raise MmcliError(
                what, "there may be too little memory: close other programs, or see the lines above"
            ) from None
        finally:
            self._idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        return cast(Results, answer)

    def close(self) -> None:
        """End the workers, whatever they are at."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):  # what was still to be sent has no reader any more
                    pipe.close()


def _apart() -> dict[str, Any]:
    """Options of a process that Ctrl-C in the terminal does not reach, only the one that started it."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _send(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin is not None
    pickle.dump(value, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()


def serve() -> None:
    """A worker's life: encode batches from stdin until it ends."""
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints must not come between the answers
    try:
        kind, kinds, definition, options = pickle.load(inbox)
        for each in pickle.loads(kinds):
            register_kind(each)
        tokenizer, encode = Tokenizer(definition), find_kind(kind).encoder
        while True:
            records = pickle.load(inbox)
            try:
                answer: Any = [_packed(each) for each in encode(tokenizer, records, options)]
            except UserError as error:
                answer = _Refusal(error.what, error.fix)
            except Exception:
                answer = RuntimeError(traceback.format_exc())
            pickle.dump(answer, outbox, protocol=pickle.HIGHEST_PROTOCOL)
            outbox.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # nobody is there to read what is still buffered


class _Refusal(UserError):
    """A UserError that can be pickled."""

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        return UserError, (self.what, self.fix)


def _packed(result: EncodedRecord | RecordError) -> EncodedRecord | RecordError:
    """The same with arrays in place of lists, which travel in a fraction of the time."""
    if not isinstance(result, EncodedRecord):
        return result
    trained = None if result.trained is None else [array("B", flags) for flags in result.trained]
    ids = [array("I", each) for each in result.ids]
    return EncodedRecord(ids, cast(Any, trained), result.text_bytes, result.label)
