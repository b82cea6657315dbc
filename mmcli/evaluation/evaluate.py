"""The score of a model on a suite of questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmcli.errors import UserError
from mmcli.evaluation.engines import check_vocabulary, choose_backend, load_engine
from mmcli.evaluation.questions import MAX_NEW_TOKENS, Reply, answer_questions, encode_questions, shuffled_questions
from mmcli.evaluation.scores import Score, family_scores, language_scores, scores, total_score
from mmcli.evaluation.suites import SuiteItem, choose_items, find_suite
from mmcli.generate.conversation import is_chat_model
from mmcli.model.formats.hf_config import read_model_config
from mmcli.run import ModelRef
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

SLOTS = 64  # questions answered at a time

Which = Literal["wrong", "right", "all"]


@dataclass(frozen=True)
class SuiteResult:
    """The judged replies of a model to a suite."""

    suite: str
    mode: Literal["chat", "continue"]  # asked through the chat template, or as a text to continue
    max_new_tokens: int
    replies: list[Reply]
    too_long: int = 0  # questions that do not fit into the context: wrong, without a reply
    version: str = ""  # of the suite
    digest: str = ""  # of the questions that were asked
    limit: int | None = None  # of questions in a family
    backend: str = "torch"
    shuffled: bool = False  # a control: each judged by the answers of another question

    @property
    def families(self) -> dict[str, dict[str, Score]]:
        """Family -> language -> score."""
        return scores((each.question.family, each.question.language, each.correct) for each in self.replies)

    @property
    def total(self) -> Score:
        """The score over all questions."""
        return total_score(self.families)

    @property
    def unfinished(self) -> int:
        """Replies that did not end within `max_new_tokens`: wrong."""
        return sum(not reply.ended for reply in self.replies) - self.too_long

    def examples(self, count: int | None = None, which: Which = "all") -> list[Reply]:
        """Up to `count` wrong replies, then up to `count` right ones, evenly spread over the questions.

        Args:
            count: None: all of them.
            which: only the wrong or the right ones.
        """
        chosen = []
        for correct in [each for each, name in ((False, "wrong"), (True, "right")) if which in (name, "all")]:
            group = [reply for reply in self.replies if reply.correct == correct]
            some = len(group) if count is None else min(count, len(group))
            chosen += [group[i * len(group) // some] for i in range(some)]
        return chosen

    def to_json(self) -> dict[str, Any]:
        """All but the replies, as `mmcli eval --json` prints it."""
        families, total = self.families, self.total
        return {
            "suite": self.suite,
            "version": self.version,
            "digest": self.digest,
            "backend": self.backend,
            "mode": self.mode,
            "max_new_tokens": self.max_new_tokens,
            "limit": self.limit,
            **({"shuffled": True} if self.shuffled else {}),
            "score": total.share,
            "interval": list(total.interval),
            "correct": total.correct,
            "questions": total.total,
            "unfinished": self.unfinished,
            "too_long": self.too_long,
            "families": {name: _to_json(languages) for name, languages in families.items()},
            "family_scores": _to_json(family_scores(families)),
            "language_scores": _to_json(language_scores(families)),
        }


def _to_json(named: dict[str, Score]) -> dict[str, Any]:
    return {name: score.to_json() for name, score in named.items()}


def evaluate(
    ref: ModelRef,
    suite: str = "demo",
    *,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    shuffle_answers: bool = False,
    backend: str = "torch",
    device: str = "auto",
    report: Reporter | None = None,
) -> SuiteResult:
    """Ask a model every question of a suite, greedily, and judge the replies.

    Args:
        suite: the name of a built-in suite or of an installed plugin's.
        limit: questions of each family, at most; None for all.
        max_new_tokens: a reply that does not end within them is wrong.
        shuffle_answers: judge each reply by the answers of another question of its family and language. As a control:
            the score is then that of replies which know nothing of their question.
        backend: see `load_engine`.

    Raises:
        UserError: no such suite, backend or device; a limit below 1; a tokenizer of another model.
        MmcliError: the model's logits are not finite, or a plugin's suite is broken.
    """
    report = report or Silent()
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens = {max_new_tokens} leaves nothing to write", "give 1 or more")
    found = find_suite(suite)
    if found.measure:
        raise UserError(f"the suite {found.name} is measured, not asked", "call measure_suite of mmcli.api")
    items, judge = found.load_items(), found.load_judge()
    questions = items if limit is None else choose_items(items, limit)
    tokenizer = Tokenizer.load(ref.path)
    chat = is_chat_model(ref.path, tokenizer, stage=ref.stage)
    how = "as messages" if chat else 'as completion prompts "Question: ... Answer:" (base model)'
    report.note(f"{ref.label}: {len(questions):,} questions, {how}")
    prompts = encode_questions(tokenizer, questions, chat=chat)
    config = read_model_config(ref.path)
    check_vocabulary(ref, tokenizer, config.vocab_size)
    max_len = min(max(map(len, prompts)) + max_new_tokens, config.max_seq_len)
    engine = load_engine(ref, backend, slots=SLOTS, max_len=max_len, device=device, report=report)
    too_long = sum(len(prompt) >= engine.max_len for prompt in prompts)
    if too_long:
        what = f"{too_long:,} questions do not fit into the context of {engine.max_len:,} tokens"
        report.warn(f"{what}: counted as wrong")
    replies = answer_questions(
        engine,
        tokenizer,
        questions,
        prompts,
        chat=chat,
        judge=judge,
        judged_as=shuffled_questions(questions) if shuffle_answers else None,
        max_new_tokens=max_new_tokens,
        report=report,
    )
    return SuiteResult(
        suite,
        "chat" if chat else "continue",
        max_new_tokens,
        replies,
        too_long,
        version=found.version,
        digest=_digest(questions),
        limit=limit,
        backend=choose_backend(ref, backend),
        shuffled=shuffle_answers,
    )


def _digest(questions: Sequence[SuiteItem]) -> str:
    """Twelve hex digits: the same for the same questions, answers and tools."""
    asked = [(each.id, each.messages, each.answers, each.family, each.language, each.tools) for each in questions]
    text = json.dumps(asked, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
