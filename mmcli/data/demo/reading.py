"""Reading: a short text about invented people, then a question whose answer is in the text.

The text is made up on the spot, so nothing but the text can answer the question. A fifth of all texts is held out.
"""

from dataclasses import dataclass
from functools import cache
from string import Formatter

from mmcli.data.demo.ask import Ask
from mmcli.data.demo.draw import Draw, stable_number
from mmcli.data.demo.render import sentence
from mmcli.data.demo.world import COLOURS, FOODS, PETS, SEASONS, Language, Term, terms

NAMES = terms(
    "Anders/安德, Bella/贝拉, Dino/迪诺, Elli/艾莉, Gino/吉诺, Hedda/海达, Ilse/伊尔莎, Jaro/亚罗, Kira/琪拉, "
    "Lotte/洛特, Marek/马雷克, Nele/内莱, Oona/乌娜, Piet/皮特, Runa/鲁娜, Sven/斯文, Tilda/蒂尔达, Uma/乌玛, "
    "Vito/维托, Wim/维姆"
)
_VALUES: dict[str, tuple[Term, ...]] = {
    "place": terms(
        "market/集市, school/学校, station/车站, library/图书馆, forest/树林, beach/海滩, park/公园, farm/农场"
    ),
    "thing": terms("book/书, hat/帽子, lamp/台灯, kite/风筝, basket/篮子, bell/铃铛, chair/椅子, scarf/围巾, pen/钢笔"),
    "day": terms("Monday/星期一, Tuesday/星期二, Wednesday/星期三, Thursday/星期四, Friday/星期五, Saturday/星期六"),
    "food": FOODS,
    "colour": COLOURS,
    "pet": PETS,
    "season": SEASONS,
    "number": tuple(Term(str(n), str(n)) for n in range(2, 10)),
}


@dataclass(frozen=True)
class _Event:
    """A sentence with slots, and questions about it: (question, answer with `{}`, slot of the value)."""

    text: str
    asked: tuple[tuple[str, str, str], ...]


_EVENTS: dict[Language, tuple[_Event, ...]] = {
    "en": (
        _Event(
            "On {day}, {A} went to the {place}.",
            (
                ("Where did {A} go?", "{A} went to the {}.", "place"),
                ("On which day did {A} go out?", "{A} went out on {}.", "day"),
                ("Who went to the {place}?", "{} went to the {place}.", "A"),
            ),
        ),
        _Event(
            "{A} bought a {colour} {thing}.",
            (
                ("What did {A} buy?", "{A} bought a {}.", "thing"),
                ("What colour was the {thing}?", "The {thing} was {}.", "colour"),
                ("Who bought the {thing}?", "{} bought the {thing}.", "A"),
            ),
        ),
        _Event(
            "{B} was eating {food}.",
            (
                ("What was {B} eating?", "{B} was eating {}.", "food"),
                ("Who was eating {food}?", "{} was eating {food}.", "B"),
            ),
        ),
        _Event(
            "{A} saw a {pet} under a tree.",
            (
                ("Which animal did {A} see?", "{A} saw a {}.", "pet"),
                ("Who saw a {pet}?", "{} saw a {pet}.", "A"),
            ),
        ),
        _Event(
            "{B} had {number} coins.",
            (
                ("How many coins did {B} have?", "{B} had {} coins.", "number"),
                ("Who had {number} coins?", "{} had {number} coins.", "B"),
            ),
        ),
        _Event(
            "{B} wore a {colour2} coat.",
            (
                ("What colour was the coat of {B}?", "The coat was {}.", "colour2"),
                ("Who wore a coat?", "{} wore a coat.", "B"),
            ),
        ),
        _Event(
            "{A} gave {B} a {thing2}.",
            (
                ("What did {A} give to {B}?", "{A} gave {B} a {}.", "thing2"),
                ("Who got the {thing2}?", "{} got the {thing2}.", "B"),
                ("Who gave away the {thing2}?", "{} gave away the {thing2}.", "A"),
            ),
        ),
        _Event(
            "{B} lost a {thing3} near the {place2}.",
            (
                ("What did {B} lose?", "{B} lost a {}.", "thing3"),
                ("Where did {B} lose the {thing3}?", "{B} lost the {thing3} near the {}.", "place2"),
                ("Who lost the {thing3}?", "{} lost the {thing3}.", "B"),
            ),
        ),
        _Event(
            "{A} came home in {season}.",
            (
                ("In which season did {A} come home?", "{A} came home in {}.", "season"),
                ("Who came home in {season}?", "{} came home in {season}.", "A"),
            ),
        ),
    ),
    "zh": (
        _Event(
            "{day}，{A}去了{place}。",
            (
                ("{A}去了哪里？", "{A}去了{}。", "place"),
                ("{A}是星期几出门的？", "{A}是{}出门的。", "day"),
                ("谁去了{place}？", "{}去了{place}。", "A"),
            ),
        ),
        _Event(
            "{A}买了{colour}的{thing}。",
            (
                ("{A}买了什么？", "{A}买了{}。", "thing"),
                ("{thing}是什么颜色的？", "{thing}是{}的。", "colour"),
                ("谁买了{thing}？", "{}买了{thing}。", "A"),
            ),
        ),
        _Event(
            "{B}正在吃{food}。",
            (("{B}在吃什么？", "{B}在吃{}。", "food"), ("谁在吃{food}？", "{}在吃{food}。", "B")),
        ),
        _Event(
            "{A}在树下看见了{pet}。",
            (("{A}看见了什么动物？", "{A}看见了{}。", "pet"), ("谁看见了{pet}？", "{}看见了{pet}。", "A")),
        ),
        _Event(
            "{B}有 {number} 枚硬币。",
            (
                ("{B}有几枚硬币？", "{B}有 {} 枚硬币。", "number"),
                ("谁有 {number} 枚硬币？", "{}有 {number} 枚硬币。", "B"),
            ),
        ),
        _Event(
            "{B}穿着{colour2}的大衣。",
            (("{B}的大衣是什么颜色的？", "{B}的大衣是{}的。", "colour2"), ("谁穿着大衣？", "{}穿着大衣。", "B")),
        ),
        _Event(
            "{A}把{thing2}送给了{B}。",
            (
                ("{A}把什么送给了{B}？", "{A}把{}送给了{B}。", "thing2"),
                ("谁收到了{thing2}？", "{}收到了{thing2}。", "B"),
                ("谁把{thing2}送人了？", "{}把{thing2}送人了。", "A"),
            ),
        ),
        _Event(
            "{B}在{place2}附近丢了{thing3}。",
            (
                ("{B}丢了什么？", "{B}丢了{}。", "thing3"),
                ("{B}在哪里丢了{thing3}？", "{B}在{}附近丢了{thing3}。", "place2"),
                ("谁丢了{thing3}？", "{}丢了{thing3}。", "B"),
            ),
        ),
        _Event(
            "{season}的时候，{A}回家了。",
            (
                ("{A}在什么季节回家？", "{A}在{}回家。", "season"),
                ("谁在{season}回家？", "{}在{season}回家。", "A"),
            ),
        ),
    ),
}
_LAYOUTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "{0} {1}",
        "{0}\n{1}",
        "Read this text: {0}\n{1}",
        "Text: {0}\nQuestion: {1}",
        "Here is a little story. {0} {1}",
    ),
    "zh": ("{0}{1}", "{0}\n{1}", "读一读：{0}\n{1}", "短文：{0}\n问题：{1}", "这里有一个小故事。{0}{1}"),
}
HELD_OUT_LAYOUTS: dict[Language, tuple[str, ...]] = {
    "en": ("Look at these sentences: {0}\n{1}", "{0}\nAnswer from the text: {1}"),
    "zh": ("请看这几句话：{0}\n{1}", "{0}\n根据短文回答：{1}"),
}


def text_is_held_out(text: str) -> bool:
    """Whether a text is in no training text."""
    return stable_number(f"reading:{text}") % 5 == 0


@cache
def _surfaces(slot: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.lower() for value in _values(slot) for name in value))


def _kind(slot: str) -> str:
    return "name" if slot in ("A", "B") else slot.rstrip("23")


def _values(slot: str) -> tuple[Term, ...]:
    return NAMES if _kind(slot) == "name" else _VALUES[_kind(slot)]


def reading_asks(draw: Draw, language: Language, count: int = 1, held_out: bool = False) -> list[tuple[str, Ask]]:
    """Up to `count` different questions about one text of two or three sentences: (the question, its `Ask`).

    Each `Ask` has the text before the question. Other values of its kind are the rivals, and so is what else the text
    names.
    """
    events, text = _EVENTS[language], ""
    while not text or text_is_held_out(text) != held_out:
        chosen = sorted(draw.sample(range(len(events)), draw.number(2, 3)))
        slots = dict(zip("AB", (name.say(language) for name in draw.sample(NAMES, 2)), strict=True))
        for slot, values in _VALUES.items():
            for n, term in enumerate(draw.sample(values, 3), 1):  # colour, colour2, colour3
                slots[slot + str(n if n > 1 else "")] = term.say(language)
        told = [sentence(events[n].text.format_map(slots)) for n in chosen]
        text = (" " if language == "en" else "").join(told)
    mentioned = {slots[name].lower() for n in chosen for name in _slots(events[n].text)}
    possible = [(events[n], asked) for n in chosen for asked in events[n].asked]
    return [_ask(text, event, asked, slots, mentioned, language) for event, asked in draw.sample(possible, count)]


def _ask(
    text: str,
    event: _Event,
    asked: tuple[str, str, str],
    slots: dict[str, str],
    mentioned: set[str],
    language: Language,
) -> tuple[str, Ask]:
    question, form, slot = asked
    question = question.format_map(slots)
    value, answer = slots[slot], slots[slot].lower()
    # A right reply may say what else the event is about, but no other value of the same kind.
    beside = {slots[name].lower() for name in _slots(event.text) if _kind(name) != _kind(slot)} | {answer}
    rivals = tuple(name for name in dict.fromkeys((*_surfaces(slot), *sorted(mentioned))) if name not in beside)
    others = [v.say(language) for v in _values(slot)]
    return question, Ask(
        family="reading",
        key=f"reading:{stable_number(text + question):016x}",
        language=language,
        questions=tuple(layout.format(text, question) for layout in _LAYOUTS[language]),
        held_out_questions=tuple(layout.format(text, question) for layout in HELD_OUT_LAYOUTS[language]),
        forms=(form.replace("{}", "{{}}").format_map(slots),),
        value=value,
        others=tuple(other for other in others if other != value),
        answers=(answer,),
        rivals=rivals,
    )


@cache
def _slots(text: str) -> tuple[str, ...]:
    return tuple(name for _, name, _, _ in Formatter().parse(text) if name)
