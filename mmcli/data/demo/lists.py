"""Documents of ordered lists, word pairs, and questions with answers. Each function writes one document."""

from mmcli.data.demo.arithmetic import pick_task, task_ask
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.exchanges import who, yes_no
from mmcli.data.demo.lexicon import ORDERS
from mmcli.data.demo.render import LISTED, sentence
from mmcli.data.demo.words import COUNT, OPPOSITE, TRANSLATION, spaced
from mmcli.data.demo.world import ENTITIES, OTHER, Language
from mmcli.data.demo.writer import Writer

_HEADS: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (("Question: ", "Answer: "), ("Q: ", "A: ")),
    "zh": (("问：", "答："), ("问题：", "回答：")),
}
# What comes after and before; the first way is that of the answers.
_NEXT: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("After {} comes {}.", "Before {} comes {}."),
        ("{1} comes after {0}.", "{1} comes before {0}."),
        ("{0} is followed by {1}.", "Just before {0} is {1}."),
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
        "number": "Counting",
    },
    "zh": {"day": "一星期的每一天", "month": "一年的月份", "season": "四季", "number": "数数"},
}
_BACKWARDS: dict[Language, str] = {"en": "{}, backwards", "zh": "{}，倒过来"}


def order(writer: Writer) -> str:
    """Two stretches of lists, forwards or backwards."""
    return "\n".join(_stretch(writer.draw, writer.language) for _ in range(2))


def _stretch(draw: Draw, language: Language) -> str:
    name = draw.pick(tuple(ORDERS))
    items, round_trip = ORDERS[name]
    start, count = draw.number(0, len(items) - (1 if round_trip else 5)), draw.number(5, 9)
    stretch = [items[i % len(items)].say(language) for i in range(start, start + count) if round_trip or i < len(items)]
    comma, colon, stop = LISTED[language]
    title = _LIST_NAMES[language][name]
    if draw.chance(0.35):
        title, stretch = _BACKWARDS[language].format(title), stretch[::-1]
    return f"{title}{colon}{comma.join(stretch)}{stop}"


def neighbours(writer: Writer) -> str:
    """Five to nine sentences of what comes before or after something, with no list beside them to read it from."""
    draw, language, lines = writer.draw, writer.language, list[str]()
    for _ in range(draw.number(5, 9)):
        item, value, step = next(writer.neighbours)
        ways = _NEXT[language][0] if draw.chance(0.7) else draw.pick(_NEXT[language])
        lines.append(sentence(spaced(ways[0 if step == 1 else 1].format(item.say(language), value.say(language)))))
    return "\n".join(lines)


_OPPOSITE_FORMS: dict[Language, tuple[str, ...]] = {
    "en": ("“{}” is the opposite of “{}”.", "“{}” and “{}” are opposites.", "Not “{}” but “{}”."),
    "zh": ("“{}”和“{}”意思相反。", "“{}”与“{}”是一对反义词。", "不是“{}”，就是“{}”。"),
}
_COUNT_FORMS: dict[Language, tuple[str, ...]] = {
    "en": ("One “{0}”, two “{1}”.", "We say one “{0}” but many “{1}”.", "“{1}” is the plural of “{0}”."),
    "zh": ("“{0}”用“{1}”来数：一{1}{0}。", "说到“{0}”，我们用“{1}”：三{1}{0}。", "数“{0}”的时候用“{1}”。"),
}
_TRANSLATION_FORMS: dict[Language, tuple[str, ...]] = {
    "en": (
        "The Chinese word for “{en}” is “{zh}”.",
        "The English word for “{zh}” is “{en}”.",
        "“{zh}” means “{en}”.",
        "“{en}” is “{zh}”.",
    ),
    "zh": ("英文里的“{en}”就是“{zh}”。", "“{zh}”用英文说是“{en}”。", "“{en}”的意思是“{zh}”。", "“{zh}”就是“{en}”。"),
}


def opposites(writer: Writer) -> str:
    """Five to nine sentences about opposites, mostly in the words of the answers."""
    draw, language, lines = writer.draw, writer.language, []
    for _ in range(draw.number(5, 9)):
        one, two = (term.say(language) for term in next(writer.opposites))
        form = OPPOSITE[language][1].replace("{word}", "{}")
        lines.append((form if draw.chance(0.65) else draw.pick(_OPPOSITE_FORMS[language])).format(one, two))
    return "\n".join(lines)


def counted(writer: Writer) -> str:
    """Five to nine sentences about plurals or measure words, mostly in the words of the answers."""
    draw, language, lines = writer.draw, writer.language, []
    for _ in range(draw.number(5, 9)):
        form = COUNT[language][1].replace("{word}", "{}")
        form = form if draw.chance(0.65) else draw.pick(_COUNT_FORMS[language])
        lines.append(form.format(*next(writer.counted)))
    return "\n".join(lines)


def translations(writer: Writer) -> str:
    """Five to nine sentences about translations, both ways, mostly in the words of the answers; sometimes of names."""
    draw, language, lines = writer.draw, writer.language, []
    to_chinese, to_english = (form.replace("{word}", "{}") for _, form in TRANSLATION[language])
    for _ in range(draw.number(5, 9)):
        word, into = next(writer.translations)
        if draw.chance(0.1):
            word = draw.pick(ENTITIES).name
        if draw.chance(0.2):
            lines.append(draw.pick(_TRANSLATION_FORMS[language]).format(en=word.en, zh=word.zh))
        else:
            lines.append((to_english if into == "en" else to_chinese).format(word.say(OTHER[into]), word.say(into)))
    return "\n".join(lines)


def questions(writer: Writer) -> str:
    """Two to four questions with their answers."""
    draw, language = writer.draw, writer.language
    question_head, answer_head = draw.pick(_HEADS[language])
    lines = []
    for _ in range(draw.number(2, 4)):
        kind = draw.number(1, 20)
        if kind <= 2:
            question, answer = yes_no(draw, language)
        elif kind <= 3:
            question, answer = who(draw, language)
        else:
            ask = (
                next(writer.fact_asks)
                if kind <= 10
                else next(writer.other_asks)
                if kind <= 16
                else task_ask(pick_task(draw), language)
            )
            question, answer = draw.pick(ask.questions), writer.answer(ask)
        lines.append(f"{question_head}{question}\n{answer_head}{answer}")
    return "\n".join(lines)
