"""Addition, subtraction and comparison of whole numbers from 0 to 99, with whole operand pairs held out.

A pair is held out whatever the operation, the order of its numbers and the language: its expression is in no training
text. Single digits are tokens of their own, so the digits of a held-out task are seen in other tasks: those of 8 + 6 in
28 + 6, for what a small sum comes to is to be worked out like any other, not remembered.
"""

from functools import cache
from typing import Literal

from mmcli.data.demo.ask import Ask
from mmcli.data.demo.draw import Draw, stable_number
from mmcli.data.demo.world import Language

Task = tuple[int, str, int]
"""(first operand, '+', '-' or '>', second operand); '>' asks for the larger one."""

Size = Literal["small", "digits", "carry", "tens"]
"""Of a task: numbers to 10 and their sums; to 99, digit by digit; a number of two digits and one of one that carry; a
difference of numbers with the same tens."""

_WORDS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "+": (
            "What is {a} + {b}?",
            "How much is {a} plus {b}?",
            "Calculate {a} + {b}.",
            "{a} + {b} = ?",
            "What is {a} plus {b}?",
            "How much is {a} + {b}?",
        ),
        "-": (
            "What is {a} - {b}?",
            "How much is {a} minus {b}?",
            "Calculate {a} - {b}.",
            "{a} - {b} = ?",
            "What is {a} minus {b}?",
            "How much is {a} - {b}?",
        ),
        ">": (
            "Which is larger, {a} or {b}?",
            "Which number is bigger, {a} or {b}?",
            "What is the larger number, {a} or {b}?",
            "Which is greater, {a} or {b}?",
            "{a} or {b}: which one is larger?",
        ),
    },
    "zh": {
        "+": (
            "{a} + {b} 等于多少？",
            "{a} 加 {b} 等于几？",
            "计算 {a} + {b}。",
            "{a} + {b} = ？",
            "{a} 加 {b} 是多少？",
            "算一算 {a} + {b}。",
        ),
        "-": (
            "{a} - {b} 等于多少？",
            "{a} 减 {b} 等于几？",
            "计算 {a} - {b}。",
            "{a} - {b} = ？",
            "{a} 减 {b} 是多少？",
            "算一算 {a} - {b}。",
        ),
        ">": (
            "{a} 和 {b} 哪个大？",
            "{a} 与 {b} 相比，哪个更大？",
            "{a} 和 {b}，哪个数更大？",
            "{a} 和 {b} 中较大的是哪个？",
            "哪个更大，{a} 还是 {b}？",
        ),
    },
}
HELD_OUT_WORDS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "+": ("Can you work out {a} + {b}?", "What do you get for {a} plus {b}?"),
        "-": ("Can you work out {a} - {b}?", "What do you get for {a} minus {b}?"),
        ">": ("Which of the two is larger, {a} or {b}?", "Which number is greater, {a} or {b}?"),
    },
    "zh": {
        "+": ("{a} + {b} 得几？", "请算出 {a} 加 {b}。"),
        "-": ("{a} - {b} 得几？", "请算出 {a} 减 {b}。"),
        ">": ("{a} 和 {b} 谁更大？", "比一比 {a} 和 {b}，哪个大？"),
    },
}
_LARGER: dict[Language, str] = {"en": "{} is larger.", "zh": "{} 更大。"}


def pair_is_held_out(a: int, b: int) -> bool:
    """Whether the two numbers never stand together in an expression of the training text.

    A fifth of all pairs. Of numbers to 10 at most every fifth pair of one sum or difference, and none of a sum that few
    pairs have: each sum is seen, of other numbers.
    """
    if max(a, b) <= 10:
        return 4 <= a + b <= 16 and (min(a, b) + 3 * max(a, b)) % 5 == 0
    return stable_number(f"pair:{min(a, b)}:{max(a, b)}") % 100 < 20


def result(task: Task) -> int:
    """The right answer."""
    a, operation, b = task
    return a + b if operation == "+" else a - b if operation == "-" else max(a, b)


@cache
def tasks(operation: str, size: Size, held_out: bool = False) -> tuple[Task, ...]:
    """All tasks of a kind."""
    found = []
    highest = 20 if size == "small" else 99
    for a in range(highest + 1):
        for b in range(highest + 1):
            if _fits(a, operation, b, size) and pair_is_held_out(a, b) == held_out:
                found.append((a, operation, b))
    return tuple(found)


def _fits(a: int, operation: str, b: int, size: Size) -> bool:
    if size == "small":
        return {"+": max(a, b) <= 10, "-": 0 <= a - b <= 10 and b <= 10, ">": a != b}[operation]
    if operation == ">":
        return size == "digits" and a != b and min(a, b) >= 10
    (p, x), (q, y) = divmod(a, 10), divmod(b, 10)
    if size == "tens":
        return operation == "-" and p == q >= 1 and x >= y
    if size == "digits":
        within = max(p + q, x + y) <= 9 if operation == "+" else p > q and x >= y
        return max(a, b) > 10 and within
    one_digit = (p == 0) != (q == 0) if operation == "+" else q == 0
    return one_digit and (x + y > 9 and a + b < 100 if operation == "+" else x < y and p >= 2)


def pick_task(draw: Draw) -> Task:
    """A task that is not held out: more often a sum than anything else."""
    operation = draw.pick("++++---->>")
    if operation != ">" and draw.chance(0.2):
        return draw.pick(tasks(operation, "carry"))
    return draw.pick(tasks(operation, "small" if draw.chance(0.3) else "digits"))


def pick_asked_task(draw: Draw) -> Task:
    """A task for a conversation: now and then a difference in which the tens go, such as 47 - 42."""
    return draw.pick(tasks("-", "tens")) if draw.chance(0.1) else pick_task(draw)


def task_ask(task: Task, language: Language) -> Ask:
    """The question for one task. Its rivals are numbers near the answer; `is_correct` looks at every number anyway."""
    a, operation, b = task
    value = result(task)
    if operation == ">":
        near = [min(a, b)]
    else:
        near = [n for n in range(value - 4, value + 5) if n >= 0 and n not in (value, a, b)]
    others = tuple(str(n) for n in near)
    form = _LARGER[language] if operation == ">" else f"{a} {operation} {b} = {{}}"
    return Ask(
        family="arithmetic",
        key=f"arithmetic:{a}{operation}{b}",
        language=language,
        questions=tuple(q.format(a=a, b=b) for q in _WORDS[language][operation]),
        held_out_questions=tuple(q.format(a=a, b=b) for q in HELD_OUT_WORDS[language][operation]),
        forms=(form,),
        value=str(value),
        others=others,
        answers=(str(value),),
        rivals=others,
    )
