"""The tokenizer: text to ids that never steer the model, ids back to text.

Two kinds of ids: those of text, and those of control tokens (the added tokens of the tokenizer.json that are marked
special or look like a tag). Text is encoded by a tokenizer that does not know the control tokens, so no text can spell
one. Words that were added (`NASA`) are text.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mmcli.errors import UserError
from mmcli.manifest import refuse_damaged
from mmcli.text.bytelevel import is_control, plain_definition, token_table
from mmcli.text.definition import CONFIG_FILE, FILES, MAKE_ONE, TOKENIZER_FILE, Definition, read_definition

if hasattr(os, "register_at_fork"):  # a forked child has none of the encoder's threads: it must not wait for them
    os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))


class Tokenizer:
    """A byte-level BPE tokenizer with its control tokens and chat template. Immutable."""

    def __init__(self, definition: Definition) -> None:
        """Raises UserError if the `tokenizers` library refuses the definition."""
        self._definition = definition
        added = definition.tokenizer["added_tokens"]
        self._controls = {token["content"]: int(token["id"]) for token in added if is_control(token)}
        ids = {**definition.tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in added}}
        self.vocab_size: int = max(ids.values()) + 1
        config = definition.config
        self.bos_id: int | None = ids.get(config.get("bos_token"))
        self.eos_id: int | None = ids.get(config.get("eos_token"))
        pad_id = ids.get(config.get("pad_token"))
        self.pad_id: int = pad_id if pad_id is not None else self.eos_id or 0
        self._plain = _build_plain(definition.tokenizer, self._controls)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer in a folder with tokenizer.json, or in that file.

        Any Hugging Face byte-level BPE is taken (GPT-2, Llama 3, Qwen). bos, eos, pad and the chat template come from
        the files beside it; pad falls back to eos, then to id 0.

        Raises:
            UserError: no such file, a broken one, one that differs from its folder's manifest, not a tokenizer, or one
                that is not byte-level BPE.
        """
        path = Path(path)
        if path.is_dir() or path.name == TOKENIZER_FILE:
            refuse_damaged(path if path.is_dir() else path.parent, FILES)
        return cls(read_definition(path))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template) into `folder`.

        transformers, vLLM and llama.cpp's converter read them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = dict(self._definition.config)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        for name, content in ((TOKENIZER_FILE, self._definition.tokenizer), (CONFIG_FILE, config)):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template; None if there is none and the tokenizer lacks ChatML's tokens."""
        return self._definition.chat_template

    @property
    def control_tokens(self) -> dict[str, int]:
        """Every token that steers the model, and its id. No text is ever encoded to one of these ids."""
        return dict(self._controls)

    @property
    def definition(self) -> Definition:
        """What the files say; not to be changed."""
        return self._definition

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the canonical JSON, bos, eos and pad, and the chat template."""
        ids = [self.bos_id, self.eos_id, self.pad_id]
        content = json.dumps(
            [self._definition.tokenizer, ids, self.chat_template], sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(content.encode()).hexdigest()

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text: never a control id, whatever it spells, and nothing added.

        Half surrogate pairs, which no UTF-8 text can hold, are encoded as U+FFFD.

        Raises:
            UserError: the tokenizer fails on this text, such as by a regular expression that takes too long.
        """
        try:
            try:
                return self._plain.encode(text, add_special_tokens=False).ids
            except TypeError:  # what the library says to a lone surrogate
                return self._plain.encode(whole_characters(text), add_special_tokens=False).ids
        except BaseException as error:
            raise _named(error, "cannot encode a text with this tokenizer.json") from error

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_text` of each, over the machine's cores (TOKENIZERS_PARALLELISM=false: on one)."""
        batch = list(texts)
        try:
            try:
                encoded = self._plain.encode_batch_fast(batch, add_special_tokens=False)
            except TypeError:
                batch = [whole_characters(text) for text in batch]
                encoded = self._plain.encode_batch_fast(batch, add_special_tokens=False)
        except BaseException as error:
            raise _named(error, "cannot encode a text with this tokenizer.json") from error
        return [each.ids for each in encoded]

    def encode_document(self, text: str) -> list[int]:
        """bos, the text's ids, eos; without those of the two that the tokenizer lacks."""
        return self.frame(self.encode_text(text))

    def frame(self, ids: list[int]) -> list[int]:
        """`ids` of a document's text between bos and eos, where the tokenizer has them."""
        start = [] if self.bos_id is None else [self.bos_id]
        end = [] if self.eos_id is None else [self.eos_id]
        return [*start, *ids, *end]

    def control_id(self, token: str) -> int | None:
        """The id of a control token, None if there is no such."""
        return self._controls.get(token)

    @functools.cached_property
    def _text_of(self) -> list[bytes]:
        return token_table(self._definition.tokenizer, self._controls)

    @functools.cached_property
    def _control_of(self) -> dict[int, str]:
        return {id: content for content, id in self._controls.items()}

    def control_token(self, id: int) -> str | None:
        """The control token with this id, None if the id is one of text."""
        return self._control_of.get(id)

    def token_bytes(self, id: int) -> bytes:
        """The bytes of text that `id` stands for.

        b"" for control tokens, and for ids that no token has (models often have rows beyond the vocabulary).

        Raises:
            ValueError: a negative id.
        """
        if id < 0:
            raise ValueError(f"token id {id} is negative")
        return self._text_of[id] if id < len(self._text_of) else b""

    def byte_lengths(self) -> np.ndarray:
        """[V] int64, bytes of text that each id stands for; 0 for control tokens."""
        return np.array([len(text) for text in self._text_of], dtype=np.int64)

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """The text of `ids`, U+FFFD for bytes that are not UTF-8.

        Control tokens are dropped, or spelled out with `keep_special`.
        """
        return b"".join(self._spelled(id, keep_special) for id in ids).decode("utf-8", errors="replace")

    def _spelled(self, id: int, keep_special: bool) -> bytes:
        if keep_special and id in self._control_of:
            return self._control_of[id].encode()
        return self.token_bytes(id)


class TextStream:
    """Ids in one by one, text out in whole characters: what was pushed and flushed adds up to `decode`."""

    def __init__(self, tokenizer: Tokenizer, *, keep_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that `id` completes; "" while a character lacks bytes. Bytes that cannot become one give U+FFFD."""
        return self._decoder.decode(self._tokenizer._spelled(id, self._keep_special))

    def flush(self) -> str:
        """U+FFFD for an incomplete character at the end, else ""; the stream is then as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def whole_characters(text: str) -> str:
    """`text` with surrogate pairs joined and single surrogates replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _build_plain(definition: dict[str, Any], controls: dict[str, int]) -> tokenizers.Tokenizer:
    """The tokenizer of texts, with ids as in `definition`."""
    plain = plain_definition(definition, controls)
    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except BaseException as error:
        raise _named(error, "refuses this tokenizer.json") from error
    for token in plain["added_tokens"]:
        if built.token_to_id(token["content"]) != token["id"]:
            what = f'the tokenizers library gives the added token "{token["content"]}" another id than {token["id"]}'
            raise UserError(what, MAKE_ONE)
    return built


def _named(error: BaseException, what: str) -> BaseException:
    """What to raise for an error of the library: it raises plain `Exception`, and Rust's panics, which are none."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return UserError(f"the tokenizers library {what}: {error}", MAKE_ONE)
    return error
