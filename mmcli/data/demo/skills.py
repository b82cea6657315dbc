"""Skills that no fact can answer: counting, sums with a carry worked out in writing, and a calculator to call."""

from typing import Any

from mmcli.data.demo.arithmetic import pair_is_held_out
from mmcli.data.demo.ask import Ask
from mmcli.data.demo.draw import Draw, stable_number
from mmcli.data.demo.lexicon import TRANSLATIONS
from mmcli.data.demo.render import LISTED
from mmcli.data.demo.world import COLOURS, FOODS, HOBBIES, JOBS, PETS, Language

COUNT: dict[Language, tuple[tuple[str, ...], tuple[str, ...]]] = {  # trained, and held out
    "en": (
        (
            "How many words are here: {list}?",
            "Count these words: {list}.",
            "How many words do you see: {list}?",
            "{list}: how many words is that?",
            "How many words are in this list: {list}?",
        ),
        (
            "Here is a list: {list}. How many words does it have?",
            "What is the number of words in: {list}?",
        ),
    ),
    "zh": (
        (
            "这里有几个词：{list}？",
            "数一数这些词：{list}。",
            "你看到几个词：{list}？",
            "{list}，一共几个词？",
            "这一串里有多少个词：{list}？",
        ),
        (
            "有一串词：{list}。它有几个词？",
            "这些词的个数是多少：{list}？",
        ),
    ),
}
_THERE_ARE: dict[Language, str] = {"en": "There are {}.", "zh": "一共有 {} 个。"}
_LISTED = (JOBS, FOODS, COLOURS, HOBBIES, PETS, TRANSLATIONS)


def counting_ask(draw: Draw, language: Language, held_out: bool = False) -> Ask:
    """How many words a list of two to five has. A longer list may end like a held-out one, so its end is held out."""
    while True:
        words = [term.say(language) for term in draw.sample(draw.pick(_LISTED), draw.number(2, 5))]
        if (stable_number(f"counting:{'-'.join(words[-2:])}") % 100 < 20) == held_out:
            break
    listed, value = LISTED[language][0].join(words), str(len(words))
    return Ask(
        family="counting",
        key=f"counting:{'-'.join(words)}",
        language=language,
        questions=tuple(text.format(list=listed) for text in COUNT[language][0]),
        held_out_questions=tuple(text.format(list=listed) for text in COUNT[language][1]),
        forms=(_THERE_ARE[language],),
        value=value,
        others=tuple(str(n) for n in range(1, 9) if n != len(words)),
        answers=(value,),
        rivals=(),
    )


THINK: dict[Language, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "en": (
        (
            "Think step by step: what is {a} + {b}?",
            "Work out {a} + {b} step by step.",
            "Think first: how much is {a} + {b}?",
            "Calculate {a} + {b} slowly.",
            "What is {a} + {b}? Think before you answer.",
            "Add {a} and {b} in small steps.",
            "Please think: what is {a} plus {b}?",
            "How much is {a} + {b}? Take your time.",
        ),
        ("How much is {a} + {b}? Go step by step.", "Think carefully: {a} + {b} = ?"),
    ),
    "zh": (
        (
            "一步一步想：{a} + {b} 等于多少？",
            "一步一步算出 {a} + {b}。",
            "先想一想：{a} + {b} 是多少？",
            "慢慢算：{a} + {b}。",
            "{a} + {b} 等于多少？想好了再回答。",
            "请分步计算 {a} + {b}。",
            "{a} 加 {b} 是多少？别急，慢慢想。",
            "动脑筋想一想，{a} + {b} 是几？",
        ),
        ("{a} + {b} 是多少？请一步一步来。", "仔细想想：{a} + {b} = ？"),
    ),
}
_CARRY: dict[Language, str] = {
    "en": "{x} + {y} = {ones}, write {w}, carry 1. {p} + {q} + 1 = {tens}.",
    "zh": "{x} + {y} = {ones}，写 {w} 进 1。{p} + {q} + 1 = {tens}。",
}


def thinking_ask(draw: Draw, language: Language, held_out: bool = False) -> tuple[Ask, str]:
    """A two-digit sum with a carry, and the reasoning that leads to its answer.

    Only whole pairs are held out: the pairs of digits in the reasoning are trained.
    """
    while True:
        a, b = draw.number(11, 89), draw.number(11, 89)
        (p, x), (q, y) = divmod(a, 10), divmod(b, 10)
        trained = not (pair_is_held_out(x, y) or pair_is_held_out(p, q))
        if x + y > 9 and a + b < 100 and trained and pair_is_held_out(a, b) == held_out:
            break
    reasoning = _CARRY[language].format(x=x, y=y, ones=x + y, w=(x + y) % 10, p=p, q=q, tens=p + q + 1)
    near = tuple(str(n) for n in (a + b - 10, a + b + 10, a + b - 1, a + b + 1))
    ask = Ask(
        family="thinking",
        key=f"thinking:{a}+{b}",
        language=language,
        questions=tuple(text.format(a=a, b=b) for text in THINK[language][0]),
        held_out_questions=tuple(text.format(a=a, b=b) for text in THINK[language][1]),
        forms=(f"{a} + {b} = {{}}",),
        value=str(a + b),
        others=near,
        answers=(str(a + b),),
        rivals=near,
    )
    return ask, reasoning


CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}
CALL: dict[Language, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "en": (
        (
            "What is {a} {o} {b}?",
            "Calculate {a} {o} {b}.",
            "How much is {a} {o} {b}?",
            "Please work out {a} {o} {b}.",
            "I need {a} {o} {b}.",
        ),
        ("Can you tell me {a} {o} {b}?", "Find {a} {o} {b}."),
    ),
    "zh": (
        (
            "{a} {o} {b} 等于多少？",
            "计算 {a} {o} {b}。",
            "{a} {o} {b} 是多少？",
            "请算一下 {a} {o} {b}。",
            "我想知道 {a} {o} {b}。",
        ),
        ("能告诉我 {a} {o} {b} 得多少吗？", "求 {a} {o} {b}。"),
    ),
}


def tool_ask(draw: Draw, language: Language, held_out: bool = False) -> tuple[Ask, dict[str, Any]]:
    """A sum, difference or product that is too large for the head, and the call that answers it."""
    operation = draw.pick("++-**")
    while True:
        high = 99 if operation == "*" else 999
        a, b = draw.number(11 if operation == "*" else 100, high), draw.number(11 if operation == "*" else 100, high)
        if (operation != "-" or a > b) and pair_is_held_out(a, b) == held_out:
            break
    value = a + b if operation == "+" else a - b if operation == "-" else a * b
    slots = {"a": a, "o": operation, "b": b}
    ask = Ask(
        family="tools",
        key=f"tools:{a}{operation}{b}",
        language=language,
        questions=tuple(text.format_map(slots) for text in CALL[language][0]),
        held_out_questions=tuple(text.format_map(slots) for text in CALL[language][1]),
        forms=(f"{a} {operation} {b} = {{}}",),
        value=str(value),
        others=(str(value + 1), str(value - 10)),
        answers=(str(value),),
        rivals=(),
    )
    return ask, {"name": "calculator", "arguments": {"expression": f"{a} {operation} {b}"}}
