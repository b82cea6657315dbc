"""One thread a model: it keeps the engine's slots busy with whatever replies are asked for (continuous batching).

A step of the engine reads a new prompt, or gives every reply under way its next token. Prompts go first, so that a
first token waits for nothing but what is being computed as its request comes; but between two tokens of the others only
so much is read as they can wait for. So a long prompt delays the others by little, and a reply is the same alone and
among others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from mmcli.errors import MmcliError
from mmcli.generate.engine import Engine
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.step import step
from mmcli.serve.errors import ApiError, of_library, stopping
from mmcli.serve.metrics import ModelMetrics
from mmcli.serve.reader import Delta, Reader, TokenLogprob, token_logprob
from mmcli.serve.slots import Slots

READ_SECONDS = 0.2  # of reading between two tokens of the other replies, about
FIRST_BUDGET, LEAST_BUDGET, MOST_BUDGET = 128, 32, 2048  # tokens of prompts in this time
TOGETHER = 0.25  # of the budget: prompts that are shorter together are read in one pass, others one after the other


@dataclass(frozen=True)
class Finished:
    """The end of a reply. Tokens are those of the model, a stop id left out."""

    reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    cached_tokens: int  # of the prompt, taken from what a slot held
    completion_tokens: int
    reasoning_tokens: int


Event = Delta | Finished | ApiError


@dataclass(eq=False)
class Job:
    """One reply that is asked for.

    Attributes:
        emit: called in the scheduler's thread with each event; the last one is `Finished` or an `ApiError`.
        top_logprobs: likeliest ids to tell with each log probability; None for no log probabilities.
        twin: an earlier job of the same prompt, which is read once for both.
    """

    sequence: TokenSequence
    reader: Reader
    emit: Callable[[Event], None]
    top_logprobs: int | None = None
    twin: Job | None = None
    cancelled: bool = False
    slot: int | None = None
    cached_tokens: int = 0
    taken: int = 0  # ids that were handed on
    begun: float = field(default_factory=time.perf_counter)
    untold: list[TokenLogprob] = field(default_factory=list)  # of ids whose text is held back


class ReadBudget:
    """Tokens of prompts that are read in about READ_SECONDS, learned from the steps before."""

    def __init__(self) -> None:
        self.tokens = FIRST_BUDGET
        self._rate: float | None = None  # tokens a second

    def learn(self, tokens: int, seconds: float) -> None:
        """A step took so long in which so many were read. Few say nothing: the weights take their time for one too."""
        if tokens < LEAST_BUDGET:
            return
        rate = tokens / seconds
        self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate
        self.tokens = max(LEAST_BUDGET, min(MOST_BUDGET, int(self._rate * READ_SECONDS)))


class Scheduler:
    """The queue of a model's engine and the thread that works on it."""

    def __init__(self, engine: Engine, *, queue: int, metrics: ModelMetrics) -> None:
        """`queue`: how many jobs may wait beyond those that have a slot."""
        self.metrics = metrics
        self._queue = queue
        self._slots = Slots(engine)
        self._engine = engine
        self._waiting: deque[Job] = deque()
        self._held: dict[int, Job] = {}  # those with a slot; whose prompt is read first, comes first
        self._budget = ReadBudget()
        self._left = 0  # tokens of prompts that may be read before the other replies have their turn
        self._changed = threading.Condition()
        self._draining = False
        self._closed = False
        self._seconds = 1.0  # that a reply takes, lately
        self._thread = threading.Thread(target=self._run, name="mmcli-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._held)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request.

        Raises:
            ApiError: 429, the queue is full; 503, the scheduler is stopping.
        """
        with self._changed:
            if self._draining:
                raise stopping()
            if self.waiting + self.busy >= self._engine.slots + self._queue:
                seconds = min(60, max(1, round(self._seconds / self._engine.slots)))
                raise ApiError(
                    429,
                    f"the server is busy: {self.waiting + self.busy} replies are being written or wait; try again",
                    code="queue_full",
                    headers={"Retry-After": str(seconds)},
                )
            self._waiting += jobs
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody wants these any more: those that are not over give their slots back before the next token."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def drain(self, seconds: float) -> None:
        """Take no more jobs, wait until the present ones are over, and end those that are not after `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            self._draining = True
            while (self._waiting or self.busy) and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self.busy or self._closed):
                    self._changed.wait()
                self._drop_cancelled()
                if self._closed:
                    for job in [*self._waiting, *self._held.values()]:
                        self._end(job, stopping())
                    return
                self._admit()
            self._advance()
            if self._draining:
                with self._changed:
                    self._changed.notify_all()

    def _drop_cancelled(self) -> None:
        for job in [*self._waiting, *self._held.values()]:
            if job.cancelled:
                self.metrics.cancelled += 1
                self._remove(job)

    def _admit(self) -> None:
        """Give free slots to the jobs that waited the longest."""
        while self._waiting and self._slots.free:
            job = self._waiting[0]
            twin = job.twin
            if twin is not None and twin.sequence.is_new and twin in self._held.values():
                return  # soon its prompt can be copied
            self._waiting.popleft()
            job.slot = self._slots.take(job.sequence)
            job.cached_tokens = job.sequence.reused_tokens
            if twin is not None and self._engine.length(job.slot) >= job.sequence.prompt_tokens:
                job.sequence.prompt_logits_V = twin.sequence.prompt_logits_V
            self._held[job.slot] = job

    def _advance(self) -> None:
        """A step: the next part of prompts, whose readers draw their first id at the end; or every reply's next id."""
        if not self._held:
            return
        self.metrics.steps += 1
        jobs = {slot: self._held[slot] for slot in self._turn()}
        unread, start = sum(map(_unread, jobs.values())), time.perf_counter()
        self._step(jobs)
        read = unread - sum(map(_unread, jobs.values()))
        self._budget.learn(read, time.perf_counter() - start)
        self._left -= read
        slot, job = next(iter(jobs.items()))
        if self._held.get(slot) is job and job.sequence.is_new:
            self._held[slot] = self._held.pop(slot)  # it had all of the budget: now the others

    def _turn(self) -> list[int]:
        """The slots of the next step: those whose prompts are read, or those whose replies are written."""
        reading = [slot for slot, job in self._held.items() if job.sequence.is_new]
        writing = sorted(self._held.keys() - set(reading))  # neighbours need no copy of their caches
        budget = self._budget.tokens
        if not reading or (writing and self._left < min(budget, _unread(self._held[reading[0]]))):
            self._left = budget
            return writing
        if not writing:
            self._left = budget
        tokens = 0
        for number, slot in enumerate(reading):
            tokens += _unread(self._held[slot])
            if number and tokens > TOGETHER * budget:
                return reading[:number]
        return reading

    def _step(self, jobs: Mapping[int, Job]) -> None:
        held = {slot: job.sequence for slot, job in jobs.items()}
        wanted = any(job.top_logprobs is not None for job in jobs.values())
        watch = (lambda slot, id, logits_V: _watch(jobs[slot], id, logits_V)) if wanted else None
        failure: Exception | None = None
        try:
            step(self._engine, held, budget=self._budget.tokens, watch=watch)
        except Exception as error:
            failure = error
        late = {slot: job for slot, job in jobs.items() if not self._take(job)}
        if failure is None:
            return
        if len(jobs) > 1:  # one of them is to blame; the others can take the step again
            for slot, job in late.items():
                self._step({slot: job})
        else:
            for job in late.values():
                self._end(job, _as_api_error(failure))

    def _take(self, job: Job) -> bool:
        """Hand on what a newly drawn id completes, and end the job if it was the last one; False if there is none."""
        sequence = job.sequence
        if len(sequence.ids) == job.taken + sequence.prompt_tokens:
            return False
        job.taken += 1
        if job.taken == 1:
            self.metrics.first_token.observe(time.perf_counter() - job.begun)
        reason = sequence.finish_reason
        try:
            if reason != "stop":
                self.metrics.completion_tokens += 1
                self._tell(job, job.reader.push(sequence.ids[-1]))
            if job.reader.ended:
                reason = "stop"
            if reason is not None:
                self._tell(job, job.reader.finish(), last=True)
                self._end(job, _finished(job, "length" if reason == "context" else reason))
        except Exception as error:
            self._end(job, _as_api_error(error))
        return True

    @staticmethod
    def _tell(job: Job, delta: Delta, *, last: bool = False) -> None:
        if delta or (last and job.untold):
            told, job.untold = tuple(job.untold), []
            job.emit(replace(delta, logprobs=told))

    def _end(self, job: Job, event: Finished | ApiError) -> None:
        if isinstance(event, Finished):
            seconds = time.perf_counter() - job.begun
            self._seconds = 0.9 * self._seconds + 0.1 * seconds
            self.metrics.reply.observe(seconds)
            self.metrics.prompt_tokens += event.prompt_tokens
            self.metrics.cached_tokens += event.cached_tokens
        self._remove(job)
        job.emit(event)

    def _remove(self, job: Job) -> None:
        if job.slot is None:
            self._waiting.remove(job)
            return
        del self._held[job.slot]
        self._slots.release(job.slot)


def _unread(job: Job) -> int:
    """Tokens of the prompt that are still to be read."""
    sequence = job.sequence
    return sequence.prompt_tokens - sequence.reused_tokens if sequence.is_new else 0


def _watch(job: Job, id: int, logits_V: np.ndarray) -> None:
    if job.top_logprobs is not None and job.sequence.finish_reason != "stop":
        job.untold.append(token_logprob(id, logits_V, job.top_logprobs))


def _finished(job: Job, reason: Literal["stop", "length"]) -> Finished:
    sequence = job.sequence
    called = job.reader.called and reason == "stop"
    return Finished(
        reason="tool_calls" if called else reason,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=job.cached_tokens,
        completion_tokens=sequence.tokens,
        reasoning_tokens=job.reader.reasoning_tokens,
    )


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, MmcliError):
        return of_library(error)
    return ApiError(500, f"{type(error).__name__}: {error}")
