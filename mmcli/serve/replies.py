"""The replies to one request: queued with the model's scheduler, awaited in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from mmcli.errors import MmcliError
from mmcli.generate.grammar import Grammar
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.sequence import TokenSequence
from mmcli.serve.errors import ApiError, of_library
from mmcli.serve.models import ServedModel
from mmcli.serve.reader import Delta, Reader
from mmcli.serve.requests import Sampling
from mmcli.serve.scheduler import Event, Finished, Job


@dataclass(frozen=True)
class Prompt:
    """The ids of one prompt, and a new reader for each reply to it."""

    ids: Sequence[int]
    reader: Callable[[], Reader]
    param: str  # the parameter that it came from
    grammar: Grammar | None = None  # what the replies may be


@dataclass(frozen=True)
class Wanted:
    """How many replies to each prompt, how long, and how they are drawn."""

    sampling: SamplingConfig
    max_new_tokens: int | None  # None: to the end of the context
    n: int = 1
    top_logprobs: int | None = None  # None: no log probabilities


class Replies:
    """Replies under way: `n` to each prompt, in the order of the prompts.

    Iterated, it gives (index of the reply, event) as they come, `Finished` last for each. To close the iteration, or
    `cancel`, gives the slots back.
    """

    def __init__(self, model: ServedModel, prompts: Sequence[Prompt], wanted: Wanted) -> None:
        """Queue them.

        Raises:
            ApiError: a prompt that does not fit into the context, a full queue, a server that is stopping.
        """
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._scheduler = model.scheduler
        self._jobs: list[Job] = []
        for prompt in prompts:
            first: Job | None = None
            for number in range(wanted.n):
                job = Job(
                    _sequence(model, prompt, wanted, number),
                    prompt.reader(),
                    _emitter(self._events, len(self._jobs)),
                    top_logprobs=wanted.top_logprobs,
                    twin=first,
                )
                first = first or job
                self._jobs.append(job)
        self._scheduler.submit(self._jobs)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta | Finished]]:
        left = len(self._jobs)
        try:
            while left:
                index, event = await self._events.get()
                if isinstance(event, ApiError):
                    raise event
                left -= isinstance(event, Finished)
                yield index, event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits for them any more."""
        self._scheduler.cancel(self._jobs)


def _emitter(events: asyncio.Queue[tuple[int, Event]], index: int) -> Callable[[Event], None]:
    """What a job calls in the scheduler's thread; it does not know `Replies`, which with their jobs end together."""
    loop = asyncio.get_running_loop()

    def emit(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

    return emit


def _sequence(model: ServedModel, prompt: Prompt, wanted: Wanted, number: int) -> TokenSequence:
    sampling = dataclasses.replace(wanted.sampling, seed=(wanted.sampling.seed + number) % 2**64)
    room = max(1, model.engine.max_len - len(prompt.ids))
    try:
        return TokenSequence(
            prompt.ids,
            sampling,
            max_new_tokens=room if wanted.max_new_tokens is None else wanted.max_new_tokens,
            max_len=model.engine.max_len,
            stop_ids=model.stops,
            grammar=prompt.grammar,
        )
    except MmcliError as error:
        raise of_library(error, prompt.param) from None


def sampling_of(body: Sampling) -> SamplingConfig:
    """How a body wants ids to be drawn; what it does not say is as in `mmcli chat`, and the seed random."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    values = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed % 2**64
    return SamplingConfig(seed=seed, **values)


def usage(finished: Sequence[Finished], n: int) -> dict[str, object]:
    """The token counts of a request with `n` replies to each prompt, which counts once."""
    prompts = finished[::n]
    prompt_tokens = sum(each.prompt_tokens for each in prompts)
    completion_tokens = sum(each.completion_tokens for each in finished)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(each.reasoning_tokens for each in finished)},
    }
