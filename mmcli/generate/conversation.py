"""A conversation with a model: messages in, streamed text out, on any engine. No torch here.

A chat model answers messages through its template. A base model (only pretrained) continues a text.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmcli.errors import UserError
from mmcli.files import write_atomic
from mmcli.generate.engine import Engine, common_prefix
from mmcli.generate.generate import Generation, generate
from mmcli.generate.reply import Message, ReplyStream, read_reply, reply_text
from mmcli.generate.sampler import SamplingConfig
from mmcli.text.chat import check_switch, encode_chat, stop_ids
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
        messages: every user and assistant message, the oldest first; `system` stands apart.
        stats: of the newest reply; None before the first.
        notice: something the person should know about the newest reply, or None.
        dropped: how many of the oldest messages no longer fit into the context.
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
        slot: int = 0,
    ) -> None:
        """`thinking` asks the model to reason or not to; None leaves that to the chat template.

        Raises:
            UserError: `thinking` or `system` for a model that only continues text, or `thinking` for a chat template
                without a switch for it.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self.sampling = sampling or SamplingConfig()
        self.max_new_tokens = max_new_tokens
        self.chat = chat
        self.thinking = thinking
        self.system: str | None = None
        self.messages: list[Message] = []
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
        return self._answer(text, attempt=0)

    def retry(self) -> Generator[str, None, None]:
        """Write the newest reply anew, with the next seed.

        Raises:
            UserError: there is no reply yet.
        """
        if len(self.messages) < 2:
            raise UserError("there is no reply to write anew", "write a message first")
        return self._answer(self.messages[-2]["content"], attempt=self._attempt + 1)

    def reset(self) -> None:
        """Forget every message; the system message stays."""
        self.messages.clear()
        self.dropped = 0
        self.stats = self.notice = None

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
            rows: list[dict[str, Any]] = [{"messages": self._with_system(self.messages)}]
        else:
            pairs = zip(self.messages[::2], self.messages[1::2], strict=True)
            rows = [{"text": before["content"] + after["content"]} for before, after in pairs]
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self._saved.add(path.resolve())

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return [*([{"role": "system", "content": self.system}] if self.system is not None else []), *messages]

    def _prompt_ids(self, text: str) -> list[int]:
        """The ids that `text` is answered from; the oldest turns are left out where they do not fit."""
        if not self.chat:
            bos = self.tokenizer.bos_id
            return [*([] if bos is None else [bos]), *self.tokenizer.encode_text(text)]
        room = min(self.max_new_tokens, self.engine.max_len // 4)
        while True:
            kept = [*self.messages[self.dropped :], {"role": "user", "content": text}]
            ids = encode_chat(
                self.tokenizer, self._with_system(kept), add_generation_prompt=True, thinking=self.thinking
            ).ids
            if len(ids) + room <= self.engine.max_len or len(kept) == 1:
                return ids
            self.dropped += 2

    def _answer(self, text: str, *, attempt: int) -> Generator[str, None, None]:
        """Stream a reply to `text`; with attempt > 0 in place of the newest turn."""
        start = time.perf_counter()
        self._attempt = attempt
        self.stats = self.notice = None
        before, dropped_before = list(self.messages), self.dropped
        if attempt:
            del self.messages[-2:]
            self.dropped = min(self.dropped, len(self.messages))
        reply_ids: list[int] = []
        finished = False
        try:
            ids = self._prompt_ids(text)
            generation = self._generation(ids)
            encode_seconds = time.perf_counter() - start
            stream = ReplyStream(self.tokenizer)
            try:
                for token in generation:
                    reply_ids.append(token)
                    if piece := stream.push(token):
                        yield piece
                finished = True
                if piece := stream.flush():
                    yield piece
            finally:
                self._cached = generation.sequence.ids[: self.engine.length(self._slot)]
                self.stats = _stats(generation, encode_seconds)
        finally:
            if reply_ids or finished:
                self.messages += [{"role": "user", "content": text}, self._message(reply_ids)]
                self.notice = self._what_to_know(dropped_before)
            else:
                self.messages, self.dropped = before, dropped_before

    def _message(self, reply_ids: list[int]) -> Message:
        if self.chat:
            return read_reply(self.tokenizer, reply_ids)
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
        )
        self.engine.truncate(self._slot, reused)
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
        return None


def _stats(generation: Generation, encode_seconds: float) -> ReplyStats:
    sequence, first = generation.sequence, encode_seconds + generation.prefill_seconds
    return ReplyStats(
        tokens=sequence.tokens,
        seconds=first + generation.decode_seconds,
        tokens_per_second=generation.tokens_per_second,
        time_to_first_token=first if sequence.tokens else None,
        finish_reason=sequence.finish_reason or "interrupted",
        prompt_tokens=sequence.prompt_tokens,
        reused_tokens=sequence.reused_tokens,
    )
