"""A model with its tokenizer, ready to write text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.generate.engine import Engine
from mmcli.generate.generate import generate
from mmcli.generate.reply import ReplyStream, read_reply
from mmcli.generate.sampler import SamplingConfig
from mmcli.text.chat import encode_chat, stop_ids
from mmcli.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]  # role and content, the oldest first


@dataclass(frozen=True)
class LoadedModel:
    """A model in an engine of one slot, with its tokenizer.

    Attributes:
        label: the run's name or the folder.
        chat: it was trained to answer messages; else it continues text.
    """

    label: str
    engine: Engine
    tokenizer: Tokenizer
    chat: bool

    def generate(
        self, prompt: str | Messages, *, max_new_tokens: int = 256, sampling: SamplingConfig | None = None
    ) -> str:
        """The reply to a prompt, or its continuation if the model does not chat.

        Args:
            prompt: text (for a chat model the user's message), or messages with role and content.
            sampling: None for the defaults of `SamplingConfig`.

        Raises:
            PromptTooLong: the prompt leaves no place in the context.
            UserError: an empty prompt, or messages that the chat template does not take.
        """
        prompt_ids = self._encode(prompt)
        ids = list(self._ids(prompt_ids, max_new_tokens, sampling))
        if self._answers(prompt):
            return str(read_reply(self.tokenizer, ids)["content"])
        return "".join(self._decode(ids))

    def stream(
        self, prompt: str | Messages, *, max_new_tokens: int = 256, sampling: SamplingConfig | None = None
    ) -> Iterator[str]:
        """The same in pieces of whole characters as they are written, reasoning included (see `generate`)."""
        yield from self._decode(self._ids(self._encode(prompt), max_new_tokens, sampling))

    def _answers(self, prompt: str | Messages) -> bool:
        return self.chat or not isinstance(prompt, str)

    def _encode(self, prompt: str | Messages) -> list[int]:
        if not self._answers(prompt):
            assert isinstance(prompt, str)
            bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
            return [*bos, *self.tokenizer.encode_text(prompt)]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(each) for each in prompt]
        return encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids

    def _ids(self, prompt_ids: Sequence[int], max_new_tokens: int, sampling: SamplingConfig | None) -> Iterator[int]:
        room = max(1, min(max_new_tokens, self.engine.max_len - len(prompt_ids)))
        stops = stop_ids(self.tokenizer)
        return generate(self.engine, 0, prompt_ids, sampling or SamplingConfig(), max_new_tokens=room, stop_ids=stops)

    def _decode(self, ids: Iterator[int] | Sequence[int]) -> Iterator[str]:
        stream = ReplyStream(self.tokenizer)
        for id in ids:
            if piece := stream.push(id):
                yield piece
        if rest := stream.flush():
            yield rest
