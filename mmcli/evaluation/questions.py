"""Questions with known answers, asked through any engine and judged.

A chat model is asked through its chat template, exactly as in a conversation. A base model (only pretrained) gets the
lines `Question: ...` and `Answer:` to continue (in Chinese `问：` and `答：`); its answer is the rest of that line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from mmcli.data.demo import Question, is_correct
from mmcli.errors import UserError
from mmcli.generate.engine import Engine
from mmcli.generate.generate import Completion, generate_batch
from mmcli.generate.reply import read_reply, reply_text
from mmcli.generate.sampler import SamplingConfig
from mmcli.stage import Reporter, Silent
from mmcli.text.chat import encode_chat, stop_ids
from mmcli.text.tokenizer import Tokenizer

GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)
MAX_NEW_TOKENS = 64  # the built-in answers have fewer than 40
LABELS = {
    "en": ("Question: ", "Answer:", " "),
    "zh": ("问：", "答：", ""),
}  # question, answer, and what follows the latter


@dataclass(frozen=True)
class Reply:
    """A question and the reply of a model. A reply that was cut off (not `ended`) is not correct."""

    question: Question
    text: str
    ended: bool
    correct: bool


@dataclass(frozen=True)
class Score:
    """Correct replies out of `total` questions."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.correct / self.total if self.total else 0.0


def choose_questions(questions: Sequence[Question], per_family: int) -> list[Question]:
    """At most `per_family` questions of each family, its languages in equal parts, evenly spread, in their order.

    Raises:
        UserError: `per_family` is below 1.
    """
    if per_family < 1:
        raise UserError(f"--limit {per_family} leaves no question", "give 1 or more")
    groups: dict[str, dict[str, list[int]]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.family, {}).setdefault(question.language, []).append(number)
    chosen: list[int] = []
    for languages in groups.values():
        left = per_family
        # The smallest group first: what it cannot fill goes to the others.
        for rest, group in zip(range(len(languages), 0, -1), sorted(languages.values(), key=len), strict=True):
            count = min(-(-left // rest), len(group))
            chosen += [group[i * len(group) // count] for i in range(count)]
            left -= count
    return [questions[number] for number in sorted(chosen)]


def encode_questions(tokenizer: Tokenizer, questions: Sequence[Question], *, chat: bool) -> list[list[int]]:
    """The prompt of each question: through the chat template, or (`chat` False) as text to continue.

    Raises:
        UserError: the chat template cannot be used.
    """
    if chat:
        return [
            encode_chat(tokenizer, each.messages, tools=list(each.tools) or None, add_generation_prompt=True).ids
            for each in questions
        ]
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [[*bos, *tokenizer.encode_text(_as_text(each))] for each in questions]


def _as_text(question: Question) -> str:
    """The messages as lines, up to where the answer begins."""
    ask, answer, space = LABELS[question.language]
    before = {"system": "", "user": ask, "assistant": answer + space}
    lines = [before[message["role"]] + message["content"] for message in question.messages]
    return "\n".join([*lines, answer])


def answer_questions(
    engine: Engine,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    *,
    chat: bool,
    is_correct: Callable[[Question, str], bool] = is_correct,
    max_new_tokens: int = MAX_NEW_TOKENS,
    report: Reporter | None = None,
) -> list[Reply]:
    """Ask every question greedily (temperature 0, no penalty) and judge the replies.

    A reply must end by itself within `max_new_tokens`; one that is cut off, or whose prompt leaves no place in the
    engine's context, is wrong.

    Args:
        prompts: of `encode_questions`, with the same `chat`.
        is_correct: whether a reply that ended answers its question.

    Raises:
        UserError: `max_new_tokens` is below 1; a token that the model does not have.
        MmcliError: the model's logits are not finite.
    """
    stops = stop_ids(tokenizer)
    if not chat:
        stops |= {id for id in range(tokenizer.vocab_size) if b"\n" in tokenizer.token_bytes(id)}
    report = report or Silent()
    replies: dict[int, Reply] = {}
    for completion in generate_batch(engine, prompts, GREEDY, max_new_tokens=max_new_tokens, stop_ids=stops):
        question, text = questions[completion.prompt], _read(tokenizer, completion, chat)
        ended = completion.stop_id is not None
        replies[completion.prompt] = Reply(question, text, ended, ended and is_correct(question, text))
        report.progress("questions", len(replies), len(prompts), "answered")
    return [replies[number] for number in range(len(questions))]


def _read(tokenizer: Tokenizer, completion: Completion, chat: bool) -> str:
    """The answer in a completion; of a text, its first line (a token may hold a line end and text before it)."""
    if chat:
        return str(read_reply(tokenizer, completion.ids)["content"]).strip()
    last = [] if completion.stop_id is None else [completion.stop_id]
    return reply_text(tokenizer, [*completion.ids, *last]).split("\n", 1)[0].strip()


def scores(replies: Sequence[Reply]) -> dict[str, dict[str, Score]]:
    """Family -> language -> score, in the order of the replies."""
    found: dict[str, dict[str, Score]] = {}
    for reply in replies:
        family = found.setdefault(reply.question.family, {})
        so_far = family.get(reply.question.language, Score(0, 0))
        family[reply.question.language] = Score(so_far.correct + reply.correct, so_far.total + 1)
    return found


def add_scores(parts: Collection[Score]) -> Score:
    """All of `parts` together: every question counts the same."""
    return Score(sum(part.correct for part in parts), sum(part.total for part in parts))


def total_score(families: Mapping[str, Mapping[str, Score]]) -> Score:
    """The score over all families and languages."""
    return add_scores([score for family in families.values() for score in family.values()])
