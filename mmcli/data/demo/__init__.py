"""The built-in corpus: a small closed world in English and Chinese, written by our own code from a seed.

`documents` is for pretraining, `conversations` for supervised fine-tuning, `preferences` for preference training, and
`questions` with `is_correct` for measuring: they are in no training text, for what they ask or for how they put it. The
text is the same on every machine for the same seed, and needs no network and nothing but the standard library.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from mmcli.data.demo.conversations import KINDS, conversations
from mmcli.data.demo.documents import documents
from mmcli.data.demo.judge import Question, is_correct
from mmcli.data.demo.preferences import preferences
from mmcli.data.demo.questions import questions
from mmcli.errors import UserError

__all__ = [
    "CORPUS_VERSION",
    "Question",
    "conversations",
    "documents",
    "fingerprint",
    "is_correct",
    "is_topic",
    "preferences",
    "questions",
    "records",
]

CORPUS_VERSION = "8"
"""Changes whenever the generated text does."""


def fingerprint(seed: int = 0) -> str:
    """A key for caches of the corpus: 16 hex digits from version and seed, without generating any text."""
    return hashlib.sha256(f"mmcli-demo:{CORPUS_VERSION}:{seed}".encode()).hexdigest()[:16]


def is_topic(name: str) -> bool:
    """True for what some of the conversations are about, such as `arithmetic` or `tools`."""
    return name in KINDS


def records(kind: str, seed: int = 0, topic: str | None = None) -> Iterator[dict[str, Any]]:
    """The values of the corpus's records of a kind: `text`, `chat` (of one topic, or of all) or `preference`.

    Raises:
        UserError: another kind.
    """
    if kind == "text":
        return ({"text": text} for text in documents(seed))
    if kind == "chat":
        return conversations(seed, topic)
    if kind == "preference":
        return preferences(seed)
    raise UserError(f"the built-in corpus has no {kind} records", "give --data a file that has them")
