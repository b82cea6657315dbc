"""Documents of sums, ordered lists, word pairs, and questions with answers. Each function writes one document."""

from collections.abc import Callable

from mmcli.data.demo.arithmetic import Task, result, task_ask, tasks
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.exchanges import who, yes_no
from mmcli.data.demo.lexicon import MEASURES, OPPOSITES, ORDERS, PLURALS, TRANSLATIONS
from mmcli.data.demo.world import Language
from mmcli.data.demo.writer import Writer

_HEADS: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (("Question: ", "Answer: "), ("Q: ", "A: ")),
    "zh": (("问：", "答："), ("问题：", "回答：")),
}
_SUM_WORDS: dict[Language, dict[str, str]] = {
    "en": {"+": "{a} plus {b} is {c}.", "-": "{a} minus {b} is {c}.", ">": "{c} is larger than {d}."},
    "zh": {"+": "{a} 加 {b} 等于 {c}。", "-": "{a} 减 {b} 等于 {c}。", ">": "{c} 比 {d} 大。"},
}
_GOODS: dict[Language, tuple[str, ...]] = {
    "en": ("apples", "eggs", "books", "stamps", "flowers", "shells", "coins", "buttons"),
    "zh": ("个苹果", "个鸡蛋", "本书", "张邮票", "朵花", "个贝壳", "枚硬币", "颗纽扣"),
}
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
_NEXT: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("After {} comes {}.", "Before {} comes {}."),
        ("{1} comes after {0}.", "{1} comes before {0}."),
        ("{1} follows {0}.", "{1} is just before {0}."),
    ),
    "zh": (
        ("{}后面是{}。", "{}前面是{}。"),
        ("过了{}就是{}。", "排在{}前一位的是{}。"),
        ("{1}紧跟在{0}之后。", "{1}在{0}的前面。"),
    ),
}
_LIST_NAMES: dict[Language, dict[str, str]] = {
    "en": {
        "day": "The days of the week",
        "month": "The months of the year",
        "season": "The seasons",
        "letter": "The alphabet",
        "number": "Counting",
    },
    "zh": {"day": "一星期的每一天", "month": "一年的月份", "season": "四季", "letter": "字母表", "number": "数数"},
}


def pick_task(draw: Draw) -> Task:
    """A task that is not held out: more often small than two-digit, more often a sum than anything else."""
    operation = draw.pick("+++--->")
    return draw.pick(tasks(operation, small=draw.chance(0.5)))


def sums(writer: Writer) -> str:
    """Six to twelve lines, each an expression or the same in words."""
    draw, lines = writer.draw, []
    for _ in range(draw.number(6, 12)):
        a, operation, b = task = pick_task(draw)
        c = result(task)
        if operation == ">" or draw.chance(0.2):
            lines.append(_SUM_WORDS[writer.language][operation].format(a=a, b=b, c=c, d=a + b - c))
        else:
            lines.append(f"{a} {operation} {b} = {c}")
    return "\n".join(lines)


def problems(writer: Writer) -> str:
    """Two or three small word problems with their solution."""
    draw, lines = writer.draw, []
    for _ in range(draw.number(2, 3)):
        operation = draw.pick("+-")
        a, _, b = task = draw.pick(tasks(operation, small=draw.chance(0.6)))
        while min(a, b, result(task)) < 2:  # "1 apples"
            a, _, b = task = draw.pick(tasks(operation, small=True))
        x, y = (next(writer.people).name.say(writer.language) for _ in range(2))
        template, goods = draw.pick(_PROBLEMS[writer.language][operation]), draw.pick(_GOODS[writer.language])
        lines.append(template.format(x=x, y=y, a=a, b=b, c=result(task), goods=goods))
    return "\n".join(lines)


def order(writer: Writer) -> str:
    """A stretch of a list, and what comes before and after some of its items."""
    draw, language = writer.draw, writer.language
    name = draw.pick(("day", "month", "season", "letter", "letter", "number", "number", "number", "number"))
    items, round_trip = ORDERS[name]
    start, count = draw.number(0, len(items) - 1), draw.number(6, 12)
    stretch = [items[i % len(items)].say(language) for i in range(start, start + count) if round_trip or i < len(items)]
    comma, colon, stop = (", ", ": ", ".") if language == "en" else ("、", "：", "。")
    lines = []
    for _ in range(draw.number(3, 6)):
        i, step = draw.number(0, len(items) - 1), draw.pick((1, -1))
        if round_trip or 0 <= i + step < len(items):
            template = draw.pick(_NEXT[language])[0 if step == 1 else 1]
            lines.append(template.format(items[i].say(language), items[(i + step) % len(items)].say(language)))
    return f"{_LIST_NAMES[language][name]}{colon}{comma.join(stretch)}{stop}\n{writer.paragraph(lines)}"


def _opposite(draw: Draw, language: Language) -> str:
    one, two = (term.say(language) for term in draw.shuffled(draw.pick(OPPOSITES)))
    if language == "en":
        forms = ("The opposite of “{}” is “{}”.", "“{}” is the opposite of “{}”.", "“{}” and “{}” are opposites.")
    else:
        forms = ("“{}”的反义词是“{}”。", "“{}”和“{}”意思相反。", "不是“{}”，就是“{}”。")
    return draw.pick(forms).format(one, two)


def _count_word(draw: Draw, language: Language) -> str:
    if language == "en":
        plural_forms = ("The plural of “{}” is “{}”.", "One {}, many {}.", "We say “one {}” but “two {}”.")
        return draw.pick(plural_forms).format(*draw.pick(PLURALS))
    forms = (
        "“{0}”的量词是“{1}”。",
        "说到{0}，我们说“一{1}{0}”。",
        "数{0}的时候用“{1}”，比如三{1}{0}。",
        "一{1}{0}，两{1}{0}。",
    )
    return draw.pick(forms).format(*draw.pick(MEASURES))


def _translation(draw: Draw, language: Language) -> str:
    word = draw.pick(TRANSLATIONS)
    if language == "en":
        forms = (
            "“{en}” in Chinese is “{zh}”.",
            "“{zh}” in English is “{en}”.",
            "The Chinese word for “{en}” is “{zh}”.",
            "“{zh}” means “{en}”.",
        )
    else:
        forms = (
            "“{en}”的中文是“{zh}”。",
            "“{zh}”的英文是“{en}”。",
            "英文里的“{en}”就是“{zh}”。",
            "“{zh}”用英文说是“{en}”。",
        )
    return draw.pick(forms).format(en=word.en, zh=word.zh)


def words(writer: Writer) -> str:
    """Four to eight sentences about opposites, about counting words, or about translations."""
    topics: tuple[Callable[[Draw, Language], str], ...] = (_opposite, _count_word, _translation, _translation)
    topic = writer.draw.pick(topics)
    return "\n".join(topic(writer.draw, writer.language) for _ in range(writer.draw.number(4, 8)))


def questions(writer: Writer) -> str:
    """Two to five questions with their answers."""
    draw, language = writer.draw, writer.language
    question_head, answer_head = draw.pick(_HEADS[language])
    lines = []
    for _ in range(draw.number(2, 5)):
        kind = draw.number(1, 20)
        if kind <= 2:
            question, answer = yes_no(draw, language)
        elif kind <= 3:
            question, answer = who(draw, language)
        else:
            ask = (
                next(writer.fact_asks)
                if kind <= 11
                else next(writer.other_asks)
                if kind <= 16
                else task_ask(pick_task(draw), language)
            )
            question, answer = draw.pick(ask.questions), writer.answer(ask)
        lines.append(f"{question_head}{question}\n{answer_head}{answer}")
    return "\n".join(lines)
