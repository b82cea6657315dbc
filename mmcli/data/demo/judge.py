"""What a held-out question is, and the rule that says whether a reply is right."""

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmcli.data.demo.talker import Message
from mmcli.data.demo.world import Language

LONGEST_REPLY = 200
"""Characters of a normalised reply that may still be right."""

_EDGES = " \t\n.,;:!?。、·…\"'“”‘’()[]<>*_-"
_HEDGES = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|probably|might)\b|或|还是|也许|可能|大概")
_DENIALS = re.compile(r"\b(?:not|no|never|nor|cannot|unknown)\b|n['’]t\b|不|没|别|无法")

_CALL = re.compile(r"<tool_call>\s*(\{.*\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One held-out question.

    `messages` end in a user turn. `answers` are the accepted exact answers, normalised. `rivals` are other candidates:
    a reply that names one of them is wrong. `subject` is what the question is about, which a reply may repeat. With
    `exact` the reply has to be the answer and nothing else. `tools` are those that the chat template shows; with a
    `call` (`name` and `arguments`) the reply has to be this tool call and nothing else.
    """

    id: str
    language: Language
    family: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    rivals: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    exact: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    call: dict[str, Any] | None = None


def normalise(text: str) -> str:
    """NFKC, casefold, single spaces, no punctuation at either end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


@lru_cache(maxsize=4096)
def _candidates(names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the names, the longest first; Latin ones as whole words only."""
    longest_first = sorted(dict.fromkeys(names), key=lambda name: (-len(name), name))
    return re.compile("|".join(_bounded(name) for name in longest_first))


def _bounded(name: str) -> str:
    before = r"(?<![a-z0-9])" if name[0].isascii() else ""
    after = r"(?![a-z0-9])" if name[-1].isascii() else ""
    return before + re.escape(name) + after


def is_correct(question: Question, reply: str) -> bool:
    """Whether the reply answers the question.

    Where the question wants a tool call, the reply is one `<tool_call>` of this name with these arguments, as the chat
    template writes it, spaces in the arguments aside. Else both sides are normalised: NFKC, casefold, single
    spaces, no punctuation at the ends. A reply is right if

    1. it equals one of the accepted answers; or
    2. the question does not ask for the bare answer (`exact`), and the reply is a sentence of at most 200 characters
       that names an accepted answer (a whole word in Latin script or digits, a sub-string in Chinese) and no other
       candidate, and neither hedges ("or", "maybe", "或", "可能") nor denies ("not", "no", "不", "没"), unless to deny
       is the answer.

    Other candidates are the question's `rivals`: the other values of the same kind in both languages, and, where the
    question is about a person, all other people. Where the answer is a number, every number that is not in the question
    is another candidate, and so is the other number of a comparison. So a reply that lists candidates, or that gives
    the right value for the wrong person, is wrong. Candidates are found longest first: 十一月 does not name 一月.
    """
    if question.call is not None:
        return _called(reply) == _plain_call(question.call)
    text = normalise(reply)
    if text in question.answers:
        return True
    denial_wanted = any(_DENIALS.search(answer) for answer in question.answers)
    if question.exact or len(text) > LONGEST_REPLY or _HEDGES.search(text):
        return False
    if _DENIALS.search(text) and not denial_wanted:
        return False
    if question.answers[0].isdigit():
        names = tuple(name for name in question.rivals if not name.isdigit())
        if names and _candidates(names).search(text):
            return False
        asked = set(re.findall(r"\d+", question.messages[-1]["content"])) - {*question.answers, *question.rivals}
        return set(re.findall(r"\d+", text)) - asked == {question.answers[0]}
    named = set(_candidates(question.answers + question.rivals + question.subject).findall(text))
    return bool(named & set(question.answers)) and named <= {*question.answers, *question.subject}


def _called(reply: str) -> tuple[str, dict[str, str]] | None:
    found = _CALL.fullmatch(reply.strip())
    try:
        call = json.loads(found[1]) if found else None
        return _plain_call(call) if call is not None else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _plain_call(call: dict[str, Any]) -> tuple[str, dict[str, str]]:
    arguments = {name: re.sub(r"\s", "", str(value)) for name, value in call["arguments"].items()}
    return call["name"], arguments
