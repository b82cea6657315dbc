"""A conversation with a model: messages in, streamed text out, on any engine. No torch here.

A chat model answers messages through its template. A base model (only pretrained) continues a text.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmcli.errors import UserError
from mmcli.files import write_atomic
from mmcli.generate.best_of import BestOf
from mmcli.generate.engine import Engine, common_prefix
from mmcli.generate.generate import Generation, generate
from mmcli.generate.grammar import Grammar
from mmcli.generate.reply import Message, ReplyStream, read_reply, reply_text
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.speculation import Speculation
from mmcli.generate.tool_calls import with_calls
from mmcli.rewards import Attempt
from mmcli.text.chat import check_switch, encode_chat, stop_ids
from mmcli.text.prompt import encode_prompt, fit_tools
from mmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ReplyStats:
    """The tokens and the time of a reply. `interrupted`: the caller closed it before its end."""

    tokens: int  # ids of the reply, without the stop id
    seconds: float  # prompt encoding, prefill and decoding, without the time the caller spent between tokens
    tokens_per_second: float | None  # decoding only; None if nothing was decoded after the first token
    time_to_first_token: float | None  # seconds; None if no token came
    finish_reason: Literal["stop", "length", "context", "interrupted"]
    prompt_tokens: int
    reused_tokens: int  # of the prompt, already in the cache


def is_chat_model(folder: Path, tokenizer: Tokenizer, *, stage: str | None = None) -> bool:
    """True if the model answers messages, False if it only continues text.

    `stage` is that of the run it came from. A plain folder says it itself: `mmcli_stage` in its config.json, else
    it is a chat model if its tokenizer has a chat template.
    """
    if tokenizer.chat_template is None:
        return False
    if stage is None or stage == "import":
        try:
            stage = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("mmcli_stage")
        except (OSError, ValueError, AttributeError):
            stage = None
    return stage != "pretrain"


class Conversation:
    """One conversation in one slot of an engine.

    Attributes:
        messages: every user, assistant and tool message, the oldest first; `system` stands apart.
        stats: of the newest reply; None before the first.
        notice: something the person should know about the newest reply, or None.
        rewards: of the replies among which the newest one is the best; empty where a single one was written.
        dropped: how many of the oldest messages no longer fit into the context.
        reasoning: the newest piece of the reply belongs to its reasoning, or opens it.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int = 512,
        system: str | None = None,
        chat: bool = True,
        thinking: bool | None = None,
        tools: Sequence[dict[str, Any]] = (),
        grammar: Grammar | None = None,
        slot: int = 0,
        speculation: Speculation | None = None,
        best_of: BestOf | None = None,
    ) -> None:
        """A conversation without messages.

        Args:
            thinking: asks the model to reason or not to; None leaves that to the chat template, and asks not to where
                a grammar leaves no place for it.
            tools: functions as JSON schemas, which the model may call.
            grammar: what every reply may be.
            speculation: of this engine; replies come sooner with it and are the same.
            best_of: each reply is the best of several, which take as many slots from 0 on and no speculation.

        Raises:
            UserError: `thinking`, `system` or `tools` for a model that only continues text, `thinking` for a chat
                template without a switch for it, or a grammar beside reasoning or tools.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self.sampling = sampling or SamplingConfig()
        self.max_new_tokens = max_new_tokens
        self.chat = chat
        self.thinking = thinking
        self.speculation = speculation
        self.best_of = best_of
        self.rewards: list[float] = []
        self.system: str | None = None
        self.tools = list(tools)
        self.grammar = grammar
        self.messages: list[Message] = []
        self.reasoning = False
        self.stats: ReplyStats | None = None
        self.notice: str | None = None
        self.dropped = 0
        self._slot = slot
        self._stop_ids = stop_ids(tokenizer)
        self._cached: list[int] = []  # what the slot holds
        self._attempt = 0  # retries of the newest reply
        self._saved: set[Path] = set()
        if thinking is not None:
            if not chat:
                raise UserError(
                    "this model only continues text: it cannot be asked to think", "train it with: mmcli sft"
                )
            check_switch(tokenizer)
        if tools and not chat:
            raise UserError("this model only continues text: it calls no tools", "train it with: mmcli sft")
        if grammar is not None and (tools or thinking):
            what = "calls no tools" if tools else "has no reasoning before it"
            raise UserError(f"a reply that is held to a schema {what}", "leave one of the two out")
        if grammar is not None and chat and thinking is None:
            with suppress(UserError):
                check_switch(tokenizer)
                self.thinking = False
        engine.truncate(slot, 0)
        if system is not None:
            self.set_system(system)

    def reply(self, text: str) -> Generator[str, None, None]:
        """Answer `text` (or continue it), piece by piece; the reply joins `messages` when the iteration ends.

        Closing the iterator, or an interrupt in it, keeps what was written so far. If nothing was written, the
        conversation stays as it was.

        Raises:
            PromptTooLong: the text alone does not fit into the context.
            MmcliError: the model's logits are not finite.
        """
        return self._answer([{"role": "user", "content": text}], attempt=0)

    def answer_calls(self, results: Sequence[str]) -> Generator[str, None, None]:
        """Give the results of the newest reply's tool calls, in their order, and let the model go on (see `reply`)."""
        return self._answer([{"role": "tool", "content": result} for result in results], attempt=self._attempt)

    def retry(self) -> Generator[str, None, None]:
        """Write the newest reply anew, with the next seed.

        Raises:
            UserError: there is no reply yet.
        """
        return self._answer([self._last_question()], attempt=self._attempt + 1, replace=True)

    def edit(self, text: str) -> Generator[str, None, None]:
        """Answer `text` in place of the newest turn.

        Raises:
            UserError: there is no turn yet.
        """
        self._last_question()
        return self._answer([{"role": "user", "content": text}], attempt=0, replace=True)

    @property
    def asked(self) -> str:
        """The newest message of the user.

        Raises:
            UserError: there is none.
        """
        return str(self._last_question()["content"])

    def _last_question(self) -> Message:
        question = next((each for each in reversed(self.messages) if each["role"] == "user"), None)
        if question is None:
            raise UserError("there is no reply to write anew", "write a message first")
        return question

    def reset(self) -> None:
        """Forget every message; the system message stays."""
        self.messages.clear()
        self.dropped = 0
        self.stats = self.notice = None

    def take_over(self, other: Conversation) -> None:
        """Go on with the messages of a conversation with another model.

        Raises:
            UserError: one of the two models answers messages, and the other only continues text.
        """
        if self.chat != other.chat:
            raise UserError(
                "one of the two models only continues text: they cannot share a conversation", "choose two chat models"
            )
        if self is not other:
            self.reset()
            self.messages, self.system = list(other.messages), other.system

    def set_system(self, text: str | None) -> None:
        """Change the system message, or remove it with None.

        Raises:
            UserError: the model only continues text.
        """
        if text is not None and not self.chat:
            raise UserError(
                "a system message has no effect: this model only continues text", "train it with: mmcli sft"
            )
        self.system = text
        self.dropped = 0

    def save(self, path: Path) -> None:
        """Write the conversation as one line of training data: `{"messages": [...]}`, or `{"text": ...}` per text.

        With the tools that the model may call, `{"messages": [...], "tools": [...]}`.

        Raises:
            UserError: there is nothing to save, or the file exists and is not an earlier save of this conversation.
        """
        if not self.messages:
            raise UserError("there is nothing to save yet", "write a message first")
        path = path.expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise UserError(f"{path} exists", "give the name of a new file")
        if not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent}", "make it first, or give another name")
        if self.chat:
            tools = {"tools": self.tools} if self.tools else {}
            rows: list[dict[str, Any]] = [{"messages": self._with_system(self.messages), **tools}]
        else:
            pairs = zip(self.messages[::2], self.messages[1::2], strict=True)
            rows = [{"text": before["content"] + after["content"]} for before, after in pairs]
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self._saved.add(path.resolve())

    def load(self, path: Path) -> None:
        """Go on with a conversation that was saved, in place of this one; `save` may then write that file.

        Raises:
            UserError: no such file, or it is not one conversation that this model's chat template takes.
        """
        if not self.chat:
            raise UserError("this model only continues text: there is no conversation to load", "use a chat model")
        path = path.expanduser()
        messages = _read_messages(path)
        shown, tools = fit_tools(self.tokenizer, messages, self.tools)
        encode_chat(self.tokenizer, shown, tools=tools)
        self.reset()
        self.system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        self.messages = messages
        self._saved.add(path.resolve())

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return [*([{"role": "system", "content": self.system}] if self.system is not None else []), *messages]

    def _prompt_ids(self) -> list[int]:
        """The ids that the messages are answered from; the oldest turns are left out where they do not fit."""
        if not self.chat:
            bos = self.tokenizer.bos_id
            return [*([] if bos is None else [bos]), *self.tokenizer.encode_text(self.messages[-1]["content"])]
        room = min(self.max_new_tokens, self.engine.max_len // 4)
        while True:
            kept = self._with_system(self.messages[self.dropped :])
            ids = encode_prompt(self.tokenizer, kept, tools=self.tools, thinking=self.thinking)
            turns = (at for at in range(self.dropped + 1, len(self.messages)) if self.messages[at]["role"] == "user")
            following = next(turns, None)
            if len(ids) + room <= self.engine.max_len or following is None:
                return ids
            self.dropped = following

    def _answer(self, new: list[Message], *, attempt: int, replace: bool = False) -> Generator[str, None, None]:
        """Stream a reply to the `new` messages; with `replace` in place of the newest turn."""
        start = time.perf_counter()
        self._attempt = attempt
        self.stats = self.notice = None
        self.rewards = []
        before, dropped_before = list(self.messages), self.dropped
        if replace:
            while self.messages.pop()["role"] != "user":
                pass
            self.dropped = min(self.dropped, len(self.messages))
        self.messages += new
        reply_ids: list[int] = []
        finished = False
        try:
            ids = self._prompt_ids()
            generation = self._generation(ids) if self.best_of is None else self._best(self.best_of, ids)
            encode_seconds = time.perf_counter() - start - generation.prefill_seconds
            stream = ReplyStream(self.tokenizer, ids)
            self.reasoning = stream.reasoning
            try:
                for token in generation:
                    reply_ids.append(token)
                    piece = stream.push(token)
                    self.reasoning = stream.reasoning
                    if piece:
                        yield piece
                finished = True
                if piece := stream.flush():
                    yield piece
            finally:
                held = self.engine.length(self._slot) if self.best_of is None else 0  # else of whichever reply
                self._cached = generation.sequence.ids[:held]
                self.stats = _stats(generation, encode_seconds)
        finally:
            if reply_ids or finished:
                self.messages.append(self._message(reply_ids))
                self.notice = self._what_to_know(dropped_before)
            else:
                self.messages, self.dropped = before, dropped_before

    def _message(self, reply_ids: list[int]) -> Message:
        if self.chat:
            message = read_reply(self.tokenizer, reply_ids)
            return with_calls(message) if self.tools else message
        return {"role": "assistant", "content": reply_text(self.tokenizer, reply_ids)}

    def _generation(self, ids: list[int]) -> Generation:
        """Start from `ids`, keeping what the slot already holds of them."""
        seed = (self.sampling.seed + self._attempt) % 2**64
        sampling = dataclasses.replace(self.sampling, seed=seed)
        reused = common_prefix(self._cached, ids)
        generation = generate(
            self.engine,
            self._slot,
            ids,
            sampling,
            max_new_tokens=self.max_new_tokens,
            stop_ids=self._stop_ids,
            cached=reused,
            grammar=self.grammar,
            speculation=self.speculation,
        )
        self.engine.truncate(self._slot, reused)
        return generation

    def _best(self, best_of: BestOf, ids: list[int]) -> Generation:
        """The best of several replies to `ids`, all written when this returns."""

        def attempt(sequence: TokenSequence) -> Attempt:
            message = self._message(sequence.new_ids)
            return Attempt(
                prompt=tuple(self._with_system(self.messages)),
                answer="",
                reply=str(message["content"]).strip(),
                reasoning=str(message.get("reasoning_content", "")),
                turns=(message,),
                ended=sequence.finish_reason == "stop",
                tokens=sequence.tokens,
                max_new_tokens=self.max_new_tokens,
            )

        seed = (self.sampling.seed + best_of.n * self._attempt) % 2**64
        generation, self.rewards = best_of.write(
            self.engine,
            ids,
            dataclasses.replace(self.sampling, seed=seed),
            attempt,
            max_new_tokens=self.max_new_tokens,
            stop_ids=self._stop_ids,
            grammar=self.grammar,
        )
        return generation

    def _what_to_know(self, dropped_before: int) -> str | None:
        if self.dropped > dropped_before:
            return (
                f"the context of {self.engine.max_len:,} tokens is full: the model no longer sees the oldest "
                f"{self.dropped} messages"
            )
        if self._attempt and self.sampling.temperature == 0:
            return "at temperature 0 a retry gives the same reply"
        if self.stats is not None and self.stats.finish_reason == "context":
            return f"the reply ended because the context of {self.engine.max_len:,} tokens is full"
        if self.rewards:
            low, high = min(self.rewards), max(self.rewards)
            return f"best of {len(self.rewards)}: reward {high:.3g}, the lowest {low:.3g}"
        return None


def _read_messages(path: Path) -> list[Message]:
    """The messages of a file that holds one conversation.

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give a file that /save wrote") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSONL: {error}", "give a file that /save wrote") from None
    if len(rows) != 1:
        raise UserError(f"{path} holds {len(rows):,} records, not one conversation", "keep the line to go on with")
    messages = rows[0].get("messages") if isinstance(rows[0], dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise UserError(f"{path} holds no messages", "give a file that /save wrote")
    return messages


def _stats(generation: Generation, encode_seconds: float) -> ReplyStats:
    sequence, first = generation.sequence, encode_seconds + generation.prefill_seconds
    return ReplyStats(
        tokens=generation.tokens,
        seconds=first + generation.decode_seconds,
        tokens_per_second=generation.tokens_per_second,
        time_to_first_token=first if generation.tokens else None,
        finish_reason=generation.finish_reason or "interrupted",
        prompt_tokens=sequence.prompt_tokens,
        reused_tokens=sequence.reused_tokens,
    )
