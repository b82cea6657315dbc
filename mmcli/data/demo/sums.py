"""Documents of sums, differences, comparisons and counting. Each function writes one document."""

from mmcli.data.demo.arithmetic import Size, Task, pair_is_held_out, pick_task, result, tasks
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.render import LISTED
from mmcli.data.demo.world import Language
from mmcli.data.demo.writer import Writer

_SAID: dict[Language, dict[str, str]] = {
    "en": {"+": "{a} plus {b} is {c}.", "-": "{a} minus {b} is {c}.", ">": "{a} and {b}: {c} is larger."},
    "zh": {"+": "{a} 加 {b} 等于 {c}。", "-": "{a} 减 {b} 等于 {c}。", ">": "{a} 和 {b}：{c} 更大。"},
}
_GOODS: dict[Language, tuple[str, ...]] = {
    "en": ("apples", "eggs", "books", "stamps", "flowers", "shells", "coins", "buttons"),
    "zh": ("个苹果", "个鸡蛋", "本书", "张邮票", "朵花", "个贝壳", "枚硬币", "颗纽扣"),
}
_FROM_TO: dict[Language, str] = {"en": "From {} to {}: ", "zh": "从 {} 到 {}："}
_PROBLEMS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "+": (
            "{x} has {a} {goods}. {y} brings {b} more. Now there are {c} {goods}, because {a} + {b} = {c}.",
            "{x} found {a} {goods} and {y} found {b}. Together they have {a} + {b} = {c} {goods}.",
        ),
        "-": (
            "{x} had {a} {goods} and gave {b} of them to {y}. Now {x} has {c} left, because {a} - {b} = {c}.",
            "There were {a} {goods} in the basket. {x} took {b}. So {a} - {b} = {c} {goods} are left.",
        ),
    },
    "zh": {
        "+": (
            "{x}有 {a} {goods}，{y}又拿来 {b} {goods}。{a} + {b} = {c}，现在一共有 {c} {goods}。",
            "{x}找到 {a} {goods}，{y}找到 {b} {goods}。两个人一共有 {a} + {b} = {c} {goods}。",
        ),
        "-": (
            "{x}有 {a} {goods}，送给{y} {b} {goods}。{a} - {b} = {c}，{x}还剩 {c} {goods}。",
            "篮子里有 {a} {goods}，{x}拿走了 {b} {goods}。{a} - {b} = {c}，篮子里还有 {c} {goods}。",
        ),
    },
}


def line(task: Task) -> str:
    """'23 + 45 = 68', '45 > 23' (or '23 < 45')."""
    a, operation, b = task
    if operation == ">":
        return f"{a} {'>' if a > b else '<'} {b}"
    return f"{a} {operation} {b} = {result(task)}"


def sums(writer: Writer) -> str:
    """Six to ten lines, each an expression or the same in words; a comparison names both numbers first."""
    draw, lines = writer.draw, []
    for _ in range(draw.number(6, 10)):
        task = pick_task(draw)
        if draw.chance(0.5 if task[1] == ">" else 0.15):
            lines.append(_SAID[writer.language][task[1]].format(a=task[0], b=task[2], c=result(task)))
        else:
            lines.append(line(task))
    return "\n".join(lines)


def rows(writer: Writer) -> str:
    """Two rows of tasks that share a number, rising or falling: 8 + 3 = 11, 8 + 4 = 12, 8 + 5 = 13."""
    return "\n".join(line(task) for _ in range(2) for task in _row(writer.draw))


def _row(draw: Draw) -> list[Task]:
    operation, found = draw.pick("++-"), list[Task]()
    while len(found) < 4:
        size: Size = draw.pick(("small", "digits", "carry"))
        fixed, place = draw.number(0, 20 if size == "small" else 99), draw.pick((0, 2))
        found = [task for task in tasks(operation, size) if task[place] == fixed]
    count = min(len(found), draw.number(4, 6))
    start = draw.number(0, len(found) - count)
    return found[start : start + count][:: draw.pick((1, 1, -1))]


def families(writer: Writer) -> str:
    """Sums with their turned-round sums and their differences: 8 + 5 = 13, 5 + 8 = 13, 13 - 5 = 8."""
    draw, lines = writer.draw, []
    for _ in range(3):
        a, _, b = draw.pick(tasks("+", "small"))
        lines += [line((a, "+", b)), line((b, "+", a))]
        lines += [line((a + b, "-", n)) for n in (a, b) if not pair_is_held_out(a + b, n)]
    return "\n".join(dict.fromkeys(lines))


def counting(writer: Writer) -> str:
    """Three stretches of numbers, upwards or downwards, each after its first and last number."""
    return "\n".join(_stretch(writer.draw, writer.language) for _ in range(3))


def _stretch(draw: Draw, language: Language) -> str:
    start, count = draw.number(0, 22), draw.number(3, 8)
    numbers = [str(n) for n in range(start, start + count)][:: draw.pick((1, -1))]
    comma, _, stop = LISTED[language]
    return _FROM_TO[language].format(numbers[0], numbers[-1]) + comma.join(numbers) + stop


def problems(writer: Writer) -> str:
    """One or two small word problems with their solution."""
    draw, lines = writer.draw, []
    for _ in range(draw.number(1, 2)):
        operation = draw.pick("+-")
        a, _, b = task = draw.pick(tasks(operation, "small" if draw.chance(0.6) else "digits"))
        while min(a, b, result(task)) < 2:  # "1 apples"
            a, _, b = task = draw.pick(tasks(operation, "small"))
        x, y = (next(writer.people).name.say(writer.language) for _ in range(2))
        template, goods = draw.pick(_PROBLEMS[writer.language][operation]), draw.pick(_GOODS[writer.language])
        lines.append(template.format(x=x, y=y, a=a, b=b, c=result(task), goods=goods))
    return "\n".join(lines)
