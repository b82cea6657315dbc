"""Grammars: what a reply may be, such as JSON that fits a schema. By the library llguidance; no torch here.

V vocabulary.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcli.errors import UserError
from mmcli.generate.schema import check_schema
from mmcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

# JSON as `json.dumps` and the chat template write it. With free white space a model may write blanks without end.
# What cannot be held to is an error.
JSON_OPTIONS: JsonCompileOptions = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "lenient": False,
    "coerce_one_of": False,
}


class Grammar:
    """A language of texts over one tokenizer. Immutable; each sequence follows it with a state of its own.

    Control tokens stand for no text, so no grammar allows one.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        """Take what the library made; see `from_schema`, `json_object`, `from_regex` and `from_lark`."""
        self._matcher = matcher
        self._vocab_size = vocab_size

    @classmethod
    def from_schema(cls, tokenizer: Tokenizer, schema: Mapping[str, Any]) -> Grammar:
        """JSON that fits a JSON Schema, on one line; keys come in the order of `properties`.

        Raises:
            UserError: llguidance is not installed, or the schema is wrong, fits nothing, or asks for something that
                cannot be held to (such as `not` or `uniqueItems`).
        """
        check_schema(schema)
        _require_library()
        from llguidance import LLMatcher

        try:
            text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)
        except ValueError as error:
            raise UserError(f"the JSON schema does not work: {error}", "fix the schema") from None
        return cls._compile(tokenizer, text, "the JSON schema")

    @classmethod
    def json_object(cls, tokenizer: Tokenizer) -> Grammar:
        """Any JSON object.

        Raises:
            UserError: llguidance is not installed.
        """
        return cls.from_schema(tokenizer, {"type": "object"})

    @classmethod
    def from_regex(cls, tokenizer: Tokenizer, pattern: str) -> Grammar:
        """Texts that a regular expression matches as a whole.

        Raises:
            UserError: llguidance is not installed, or the pattern is wrong or has look-around or back-references.
        """
        _require_library()
        from llguidance import LLMatcher

        return cls._compile(tokenizer, LLMatcher.grammar_from_regex(pattern), "the regular expression")

    @classmethod
    def from_lark(cls, tokenizer: Tokenizer, text: str) -> Grammar:
        """The texts of a context-free grammar in llguidance's form of Lark, from its rule `start`.

        Raises:
            UserError: llguidance is not installed, or the grammar is wrong.
        """
        _require_library()
        from llguidance import LLMatcher

        return cls._compile(tokenizer, LLMatcher.grammar_from_lark(text), "the grammar")

    @classmethod
    def _compile(cls, tokenizer: Tokenizer, text: str, what: str) -> Grammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(_vocabulary(tokenizer), text, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n<state>")[0].strip()
            raise UserError(f"{what} does not work: {reason}", "fix it, or leave out what is not supported")
        return cls(matcher, tokenizer.vocab_size)

    def start(self, stop_ids: Collection[int]) -> GrammarState:
        """The state of a new sequence, which one of `stop_ids` ends where its text is complete.

        Raises:
            UserError: no stop ids, so that nothing could end the text.
        """
        if not stop_ids:
            raise UserError("a reply with a grammar has no id that ends it", "give stop ids")
        return GrammarState(self._matcher.deep_copy(), self._vocab_size, stop_ids)


class GrammarState:
    """How far one sequence is in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, stop_ids: Collection[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)

    @property
    def is_complete(self) -> bool:
        """True if the text so far is one of the grammar; it may still be able to go on."""
        return bool(self._matcher.is_accepting())

    def allowed(self, vocab_size: int) -> np.ndarray:
        """[vocab_size] bool, the ids that may come next; stop ids only where the text is complete.

        Args:
            vocab_size: of the model, which may have rows that the tokenizer has no token for.

        Raises:
            UserError: nothing may come: the vocabulary cannot write what the grammar asks for; or the grammar is too
                complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._refuse_error()
        allowed_V = np.zeros(vocab_size, dtype=bool)
        known = min(self._vocab_size, vocab_size)
        allowed_V[:known] = np.unpackbits(bits, count=known, bitorder="little")
        allowed_V[self._stop_ids] = self.is_complete
        if not allowed_V.any():
            raise UserError(
                "the tokenizer has no token for what the grammar asks for next", "use another schema or tokenizer"
            )
        return allowed_V

    def consume(self, id: int) -> None:
        """Go on by a drawn id, which must be allowed and no stop id.

        Raises:
            UserError: the grammar is too complex to follow.
        """
        self._matcher.consume_token(id)
        self._refuse_error()

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise UserError(f"the grammar cannot be followed: {reason}", "use a simpler schema or grammar")


def _require_library() -> None:
    if importlib.util.find_spec("llguidance") is None:
        raise UserError(
            "replies that fit a schema need the package llguidance", 'install it: pip install "mmcli[schema]"'
        )


class _Tokens:
    """A tokenizer in the form that llguidance takes, with one more id, which stands for the end of the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.vocab_size
        self.bos_token_id = None
        self.tokens = [*map(tokenizer.token_bytes, range(tokenizer.vocab_size)), b"<end>"]
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode_text(text if isinstance(text, str) else text.decode("utf-8", "replace"))


@functools.lru_cache(maxsize=4)  # tokenizers: a large vocabulary takes a while
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Tokens(tokenizer)), n_vocab=tokenizer.vocab_size + 1)
