"""The score of a model on a suite of questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmcli.errors import UserError
from mmcli.evaluation.engines import check_vocabulary, load_engine
from mmcli.evaluation.questions import (
    MAX_NEW_TOKENS,
    Reply,
    Score,
    answer_questions,
    choose_questions,
    encode_questions,
    scores,
    total_score,
)
from mmcli.evaluation.suites import SUITES
from mmcli.generate.conversation import is_chat_model
from mmcli.model.formats.hf_config import read_model_config
from mmcli.plugins import load_function
from mmcli.run import ModelRef
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

SLOTS = 16  # questions answered at a time


@dataclass(frozen=True)
class SuiteResult:
    """The judged replies of a model to a suite."""

    suite: str
    mode: Literal["chat", "continue"]  # asked through the chat template, or as a text to continue
    max_new_tokens: int
    replies: list[Reply]
    too_long: int  # questions that do not fit into the context: wrong, without a reply

    @property
    def families(self) -> dict[str, dict[str, Score]]:
        """Family -> language -> score."""
        return scores(self.replies)

    @property
    def total(self) -> Score:
        """The score over all questions."""
        return total_score(self.families)

    @property
    def unfinished(self) -> int:
        """Replies that did not end within `max_new_tokens`: wrong."""
        return sum(not reply.ended for reply in self.replies) - self.too_long

    def examples(self, count: int) -> list[Reply]:
        """Up to `count` wrong and `count` correct replies, evenly spread over the questions."""
        chosen = []
        for correct in (False, True):
            group = [reply for reply in self.replies if reply.correct == correct]
            some = min(count, len(group))
            chosen += [group[i * len(group) // some] for i in range(some)]
        return chosen


def evaluate(
    ref: ModelRef,
    suite: str = "demo",
    *,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    backend: str = "torch",
    device: str = "auto",
    report: Reporter | None = None,
) -> SuiteResult:
    """Ask a model every question of a suite, greedily, and judge the replies.

    Args:
        suite: a key of `SUITES`.
        limit: questions of each family, at most; None for all.
        max_new_tokens: a reply that does not end within them is wrong.
        backend: see `load_engine`.

    Raises:
        UserError: no such suite, backend or device; a limit below 1; a tokenizer of another model.
        MmcliError: the model's logits are not finite.
    """
    report = report or Silent()
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens = {max_new_tokens} leaves nothing to write", "give 1 or more")
    if suite not in SUITES:
        raise UserError(f'there is no suite "{suite}"', f"give one of: {', '.join(SUITES)}")
    get_questions, is_correct = (
        load_function(path, f'the suite "{suite}"') for path in (SUITES[suite].questions, SUITES[suite].is_correct)
    )
    questions = get_questions() if limit is None else choose_questions(get_questions(), limit)
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
        is_correct=is_correct,
        max_new_tokens=max_new_tokens,
        report=report,
    )
    return SuiteResult(suite, "chat" if chat else "continue", max_new_tokens, replies, too_long)
