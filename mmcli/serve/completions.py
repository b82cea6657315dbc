"""`POST /v1/completions`: a text in, its continuation out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from mmcli.errors import MmcliError
from mmcli.serve.chat import Head, collect, spelled
from mmcli.serve.errors import invalid, of_library
from mmcli.serve.models import ServedModel
from mmcli.serve.reader import TextReader, TokenLogprob
from mmcli.serve.replies import Prompt, Replies, Wanted, sampling_of, usage
from mmcli.serve.requests import MAX_N, CompletionRequest
from mmcli.serve.scheduler import Finished
from mmcli.text.tokenizer import Tokenizer


def encode(model: ServedModel, body: CompletionRequest) -> list[list[int]]:
    """The ids of each prompt: of a text behind bos, where the tokenizer has one; ids as they are given.

    Raises:
        ApiError: no prompt, too many, an empty one, or an id that the model does not have.
    """
    prompts = _prompts(body)
    if not 1 <= len(prompts) * (body.n or 1) <= MAX_N:
        raise invalid(f"{len(prompts)} prompts times n = {body.n or 1} are not 1 to {MAX_N} replies", "prompt")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise invalid("best_of is not supported here unless it is n; leave it out", "best_of")
    if body.echo and body.logprobs is not None:
        raise invalid("echo is not supported here with logprobs; leave one of them out", "echo")
    found = []
    for prompt in prompts:
        ids = prompt if isinstance(prompt, list) else _encode_text(model.tokenizer, prompt)
        if not ids:
            raise invalid("the prompt has no tokens", "prompt")
        if (largest := max(ids)) >= model.engine.vocab_size:
            raise invalid(f"token id {largest} is outside the vocabulary of {model.engine.vocab_size:,}", "prompt")
        found.append(ids)
    return found


def _prompts(body: CompletionRequest) -> Sequence[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(isinstance(each, int) for each in prompt):
        return [[each for each in prompt if isinstance(each, int)]]
    return [each for each in prompt if isinstance(each, str | list)]


def _encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *tokenizer.encode_text(text)]
    except MmcliError as error:
        raise of_library(error, "prompt") from None


def start(model: ServedModel, body: CompletionRequest, ids: Sequence[Sequence[int]]) -> Replies:
    """Queue the continuations.

    Raises:
        ApiError: they do not fit, or the queue is full.
    """
    wanted = Wanted(
        sampling_of(body),
        16 if body.max_tokens is None else body.max_tokens,  # the default of OpenAI's reference
        n=body.n or 1,
        top_logprobs=body.logprobs,
    )
    return Replies(model, [_prompt(model, body, each) for each in ids], wanted)


def _prompt(model: ServedModel, body: CompletionRequest, ids: Sequence[int]) -> Prompt:
    echo = model.tokenizer.decode(ids) if body.echo else ""
    return Prompt(ids, lambda: TextReader(model.tokenizer, body.stops, echo=echo), "prompt")


async def answer(model: ServedModel, body: CompletionRequest, replies: Replies, prompts: int) -> dict[str, Any]:
    """The document of `text_completion`."""
    count = body.n or 1
    turns = await collect(replies, prompts * count)
    choices = []
    for index, turn in enumerate(turns):
        assert turn.finished is not None
        logprobs = None if body.logprobs is None else _logprobs(model.tokenizer, turn.logprobs, 0)
        choices.append(_choice(index, turn.content, logprobs, turn.finished.reason))
    ends = [turn.finished for turn in turns if turn.finished is not None]
    return Head("text_completion", model.name, "cmpl-").document(choices=choices, usage=usage(ends, count))


async def stream(
    model: ServedModel, body: CompletionRequest, replies: Replies, prompts: int
) -> AsyncIterator[dict[str, Any]]:
    """The documents of a stream, each with a piece of one continuation."""
    head = Head("text_completion", model.name, "cmpl-")
    empty: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    ends: dict[int, Finished] = {}
    shown = dict.fromkeys(range(prompts * (body.n or 1)), 0)  # characters of each
    async for index, event in replies:
        if isinstance(event, Finished):
            ends[index] = event
            yield head.document(choices=[_choice(index, "", None, event.reason)], **empty)
            continue
        logprobs = None if body.logprobs is None else _logprobs(model.tokenizer, event.logprobs, shown[index])
        shown[index] += len(event.content)
        yield head.document(choices=[_choice(index, event.content, logprobs, None)], **empty)
    if body.wants_usage:
        yield head.document(choices=[], usage=usage([ends[index] for index in sorted(ends)], body.n or 1))


def _choice(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(tokenizer: Tokenizer, each: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The older form of log probabilities; `offset` is where the first token stands in the text."""
    tokens = [_text(tokenizer, token.id) for token in each]
    offsets = [offset + sum(map(len, tokens[:number])) for number in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in each],
        "top_logprobs": [{_text(tokenizer, id): logprob for id, logprob in token.top} for token in each],
        "text_offset": offsets,
    }


def _text(tokenizer: Tokenizer, id: int) -> str:
    """An id as text; one that is part of a character as `bytes:\\xe4`, as OpenAI writes it."""
    content = spelled(tokenizer, id)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
