"""Questions with known answers, asked through any engine and judged.

A chat model is asked through its chat template, exactly as in a conversation. A base model (only pretrained) gets the
lines `Question: ...` and `Answer:` to continue (in Chinese `问：` and `答：`); its answer is the rest of that line.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mmcli.evaluation.suites import Judge, SuiteItem
from mmcli.generate.engine import Engine
from mmcli.generate.generate import Completion, generate_batch
from mmcli.generate.reply import read_reply, reply_text
from mmcli.generate.sampler import SamplingConfig
from mmcli.stage import Reporter, Silent
from mmcli.text.chat import stop_ids
from mmcli.text.prompt import encode_prompt
from mmcli.text.tokenizer import Tokenizer

GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)
MAX_NEW_TOKENS = 64  # the built-in answers have fewer than 40
ENGLISH = ("Question: ", "Answer:", " ")  # question, answer, and what follows the latter
LABELS = {"en": ENGLISH, "zh": ("问：", "答：", "")}


@dataclass(frozen=True)
class Reply:
    """A question and the reply of a model. A reply that was cut off (not `ended`) is not correct."""

    question: SuiteItem
    text: str
    ended: bool
    correct: bool


def encode_questions(tokenizer: Tokenizer, questions: Sequence[SuiteItem], *, chat: bool) -> list[list[int]]:
    """The prompt of each question: through the chat template, or (`chat` False) as text to continue.

    Raises:
        UserError: the chat template cannot be used.
    """
    if chat:
        return [encode_prompt(tokenizer, each.messages, tools=each.tools) for each in questions]
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [[*bos, *tokenizer.encode_text(_as_text(each))] for each in questions]


def _as_text(question: SuiteItem) -> str:
    """The messages as lines, up to where the answer begins; tools are left out."""
    ask, answer, space = LABELS.get(question.language, ENGLISH)
    before = {"user": ask, "assistant": answer + space}
    lines = [before.get(message["role"], "") + (message.get("content") or "") for message in question.messages]
    return "\n".join([*lines, answer])


def shuffled_questions(questions: Sequence[SuiteItem]) -> list[SuiteItem]:
    """For each question another one of its family and language, by whose answers it is judged as a control.

    One that is alone in both is judged by another of its family, and one that is alone in that by itself. The choice
    is the same every time.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault((question.family, question.language), []).append(number)
    draw = random.Random(0)
    judges = list(range(len(questions)))
    for (family, language), group in groups.items():
        order = draw.sample(group, len(group))
        for number, other in zip(order, [*order[1:], order[0]], strict=True):
            judges[number] = other
        others = [n for (name, spoken), each in groups.items() if name == family and spoken != language for n in each]
        if len(group) == 1 and others:
            judges[group[0]] = draw.choice(others)
    return [questions[number] for number in judges]


def answer_questions(
    engine: Engine,
    tokenizer: Tokenizer,
    questions: Sequence[SuiteItem],
    prompts: Sequence[Sequence[int]],
    *,
    chat: bool,
    judge: Judge,
    judged_as: Sequence[SuiteItem] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    report: Reporter | None = None,
) -> list[Reply]:
    """Ask every question greedily (temperature 0, no penalty) and judge the replies.

    A reply must end by itself within `max_new_tokens`; one that is cut off, or whose prompt leaves no place in the
    engine's context, is wrong.

    Args:
        prompts: of `encode_questions`, with the same `chat`.
        judge: whether a reply that ended answers its question.
        judged_as: the questions by whose answers the replies are judged (see `shuffled_questions`); None: their own.

    Raises:
        UserError: `max_new_tokens` is below 1; a token that the model does not have.
        MmcliError: the model's logits are not finite.
    """
    stops = stop_ids(tokenizer)
    if not chat:
        stops |= {id for id in range(tokenizer.vocab_size) if b"\n" in tokenizer.token_bytes(id)}
    report, keys = report or Silent(), judged_as or questions
    replies: dict[int, Reply] = {}
    for completion in generate_batch(engine, prompts, GREEDY, max_new_tokens=max_new_tokens, stop_ids=stops):
        question, text = questions[completion.prompt], _read(tokenizer, completion, chat)
        ended = completion.stop_id is not None
        replies[completion.prompt] = Reply(question, text, ended, ended and judge(keys[completion.prompt], text))
        report.progress("questions", len(replies), len(prompts), "answered")
    return [replies[number] for number in range(len(questions))]


def _read(tokenizer: Tokenizer, completion: Completion, chat: bool) -> str:
    """The answer in a completion; of a text, its first line (a token may hold a line end and text before it)."""
    if chat:
        return str(read_reply(tokenizer, completion.ids)["content"]).strip()
    last = [] if completion.stop_id is None else [completion.stop_id]
    return reply_text(tokenizer, [*completion.ids, *last]).split("\n", 1)[0].strip()
