"""Replies written by an engine, tool calls run in between. No torch here.

A reply is the model's turns with the results of its calls between them. It is a function of the weights, the prompt
and its seed: each token is drawn from (seed, position).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mmcli.api import (
    Attempt,
    Engine,
    SamplingConfig,
    Tokenizer,
    TokenSequence,
    UserError,
    encode_chat,
    read_reply,
    run_sequences,
    stop_ids,
)
from mmcli_grpo.prompts import Message, Prompt
from mmcli_grpo.tools import Tool, answer, find_calls


@dataclass(frozen=True)
class Limits:
    """What a reply may be.

    Attributes:
        max_new_tokens: tokens that the model writes, in all its turns.
        tool_rounds: times that it may call tools and go on.
    """

    max_new_tokens: int
    tool_rounds: int


@dataclass
class Reply:
    """A reply while it is written, and when it is done.

    Attributes:
        prompt: what is answered.
        ids: prompt and reply, the results of tools and the tokens that end a turn included.
        written: for each of `ids`, whether the model wrote it.
        turns: the messages after the prompt.
        ended: the model ended its last turn itself.
        calls: tool calls that were run.
    """

    prompt: Prompt
    ids: list[int]
    written: list[bool]
    turns: list[Message] = field(default_factory=list)
    ended: bool = False
    rounds: int = 0
    calls: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(self.written)

    def attempt(self, max_new_tokens: int) -> Attempt:
        """The reply as rewards get it."""
        last = next(turn for turn in reversed(self.turns) if turn["role"] == "assistant")
        return Attempt(
            prompt=self.prompt.messages,
            answer=self.prompt.answer,
            reply=str(last["content"]).strip(),
            reasoning=str(last.get("reasoning_content", "")),
            turns=tuple(self.turns),
            ended=self.ended,
            tokens=self.tokens,
            max_new_tokens=max_new_tokens,
            record=self.prompt.record,
        )


def sample_seed(seed: int, step: int, sample: int) -> int:
    """The seed of one reply: 64 bits of (seed of the training, step, number of the reply in the step)."""
    return int.from_bytes(hashlib.sha256(f"grpo:{seed}:{step}:{sample}".encode()).digest()[:8], "big")


class Writer:
    """Writes replies with one tokenizer and the same tools."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits, tools: Mapping[str, Tool]) -> None:
        self._tokenizer, self._limits, self._tools = tokenizer, limits, tools
        self._stops = stop_ids(tokenizer)
        self._call_id = tokenizer.control_id("<tool_call>")

    def write(
        self, engine: Engine, prompts: Sequence[Prompt], sampling: Callable[[int], SamplingConfig]
    ) -> list[Reply]:
        """A reply to each prompt, as many at a time as the engine has slots.

        Equal prompts beside each other share their prefill.

        Args:
            sampling: of the reply number n.

        Raises:
            UserError: a tool that raises one.
            MmcliError: the model's logits are not finite.
        """
        replies = [Reply(prompt, list(prompt.ids), [False] * len(prompt.ids)) for prompt in prompts]
        pending = list(range(len(replies)))
        while pending:
            sequences = ((n, self._sequence(replies[n], sampling(n), engine.max_len)) for n in pending)
            going_on = []
            for n, sequence in run_sequences(engine, sequences):
                drawn = self._take(replies[n], sequence)
                if self._continue(replies[n], drawn, engine.max_len):
                    going_on.append(n)
            pending = sorted(going_on)
        return replies

    def _sequence(self, reply: Reply, sampling: SamplingConfig, max_len: int) -> TokenSequence:
        room = self._limits.max_new_tokens - reply.tokens
        return TokenSequence(reply.ids, sampling, max_new_tokens=room, max_len=max_len, stop_ids=self._stops)

    def _take(self, reply: Reply, sequence: TokenSequence) -> list[int]:
        """Add the turn that a sequence has written; its ids."""
        drawn = sequence.ids[len(reply.ids) :]
        reply.ids += drawn
        reply.written += [True] * len(drawn)
        reply.ended = sequence.finish_reason == "stop"
        reply.turns.append(read_reply(self._tokenizer, sequence.new_ids))
        return drawn

    def _continue(self, reply: Reply, drawn: Sequence[int], max_len: int) -> bool:
        """Run the calls of the newest turn, of the ids `drawn`, and add their results; False where all is said."""
        is_marked = self._call_id is None or self._call_id in drawn  # text that spells a call is none
        if not (reply.ended and is_marked and reply.rounds < self._limits.tool_rounds and reply.prompt.tools):
            return False
        turn = reply.turns[-1]
        calls = find_calls(str(turn["content"]))
        if not calls:
            return False
        results: list[Message] = [{"role": "tool", "content": answer(call, self._tools)} for call in calls]
        between = self._between(reply, calls_of(turn), results)
        if between is None or len(reply.ids) + len(between) >= max_len or reply.tokens >= self._limits.max_new_tokens:
            return False
        reply.ids += between
        reply.written += [False] * len(between)
        reply.turns += results
        reply.rounds += 1
        reply.calls += len(calls)
        reply.ended = False
        return True

    def _between(self, reply: Reply, turn: Message, results: Sequence[Message]) -> list[int] | None:
        """What the chat template writes from the end of a turn with calls to where the next turn begins.

        None where the template writes the turn otherwise once results follow.
        """
        before = [*reply.prompt.messages, *reply.turns[:-1], turn]
        try:
            called = encode_chat(self._tokenizer, before, tools=reply.prompt.tools)
            whole = encode_chat(
                self._tokenizer, [*before, *results], tools=reply.prompt.tools, add_generation_prompt=True
            ).ids
        except UserError:
            return None
        end = max((place for place, trained in enumerate(called.trained, 1) if trained), default=0)
        if whole[:end] != called.ids[:end]:
            return None
        return whole[end:]


def calls_of(turn: Message) -> Message:
    """A turn with its calls as messages have them (`tool_calls`), apart from its text."""
    text = str(turn["content"])
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in find_calls(text)
    ]
    return {**turn, "content": text.partition("<tool_call>")[0].strip(), "tool_calls": calls}
