"""What is said is said again: lists, pairs and words to repeat, so that a model learns to copy what it has read.

Every word of the corpus is here in the same share, also those whose translation or opposite nothing asks for.
"""

from functools import cache

from mmcli.data.demo.draw import Draw
from mmcli.data.demo.lexicon import DAYS, MEASURES, OPPOSITES, PLURALS, TRANSLATIONS
from mmcli.data.demo.prompts import OTHER_NAMES
from mmcli.data.demo.reading import NAMES
from mmcli.data.demo.render import LISTED
from mmcli.data.demo.talker import Message, Talker, dialogue
from mmcli.data.demo.unknowns import STRANGERS
from mmcli.data.demo.world import (
    COLOURS,
    FOODS,
    JOBS,
    LANGUAGES,
    MONTHS,
    PEOPLE,
    PET_NAMES,
    PETS,
    SEASONS,
    Language,
    Term,
)
from mmcli.data.demo.writer import Writer

_AGAIN: dict[Language, tuple[str, ...]] = {"en": ("Again: ", "Once more: ", ""), "zh": ("再来一遍：", "再说一次：", "")}
_REPEAT: dict[Language, tuple[str, ...]] = {
    "en": ("Repeat after me: {}.", "Please repeat: {}.", "Say this again: {}.", "Write this again: {}."),
    "zh": ("跟我说：{}。", "请照着说：{}。", "再说一遍：{}。", "照着写：{}。"),
}
_SAY: dict[Language, tuple[str, ...]] = {
    "en": ("Say “{}”.", "Repeat the word “{}”.", "Write the word “{}”.", "Please repeat “{}”."),
    "zh": ("请说“{}”。", "重复“{}”这个词。", "写出“{}”这个词。", "请重复“{}”。"),
}
_WHICH: dict[Language, tuple[str, ...]] = {
    "en": ("Which language is “{}”?", "Is “{}” English or Chinese?", "What language is the word “{}”?"),
    "zh": ("“{}”是哪种语言？", "“{}”是英文还是中文？", "“{}”这个词是什么语言？"),
}
_IS: dict[Language, dict[Language, str]] = {
    "en": {"en": "“{}” is English.", "zh": "“{}” is Chinese."},
    "zh": {"en": "“{}”是英文。", "zh": "“{}”是中文。"},
}


@cache
def _words(language: Language) -> tuple[str, ...]:
    """The words that are asked for in quotation marks, and those that stand in an order."""
    terms: list[Term] = [*TRANSLATIONS, *(term for pair in OPPOSITES for term in pair), *DAYS, *MONTHS, *SEASONS]
    counted = PLURALS if language == "en" else MEASURES
    return tuple(dict.fromkeys([*(t.say(language) for t in terms), *(word for word, _ in counted)]))


@cache
def _strangers(language: Language) -> tuple[str, ...]:
    """Names of whom the world tells nothing: whatever is said of them contradicts nothing."""
    return tuple(dict.fromkeys(t.say(language) for t in (*NAMES, *OTHER_NAMES, *STRANGERS)))


@cache
def _names(language: Language) -> tuple[str, ...]:
    known = (*(p.name for p in PEOPLE), *PET_NAMES)
    return tuple(dict.fromkeys([*(t.say(language) for t in known), *_strangers(language)]))


@cache
def _values(language: Language) -> tuple[str, ...]:
    listed = (*COLOURS, *FOODS, *JOBS, *PETS)
    return tuple(dict.fromkeys(t.say(language) for t in listed))


def _item(draw: Draw, language: Language) -> str:
    kind = draw.number(1, 10)
    if kind <= 3:
        return str(draw.number(0, 999 if kind == 1 else 99))
    return draw.pick(_words(language) if kind <= 6 else _names(language) if kind <= 8 else _values(language))


def _items(draw: Draw, language: Language, count: int) -> list[str]:
    return list(dict.fromkeys(_item(draw, language) for _ in range(count)))


def echo(writer: Writer) -> str:
    """Two lists of words, names and numbers, each said twice: in the same order, or pairs in another one."""
    draw, language, lines = writer.draw, writer.language, list[str]()
    comma, colon, stop = LISTED[language]
    for _ in range(2):
        items = _items(draw, language, draw.number(4, 7))
        again = items
        if draw.chance(0.5):
            keys = list(dict.fromkeys(draw.pick(_strangers(language)) for _ in range(draw.number(3, 5))))
            items = [key + colon + _item(draw, language) for key in keys]
            again = draw.shuffled(items)
        lines += [comma.join(items) + stop, draw.pick(_AGAIN[language]) + comma.join(again) + stop]
    return "\n".join(lines)


def repeat(talker: Talker) -> list[Message]:
    """A list to repeat."""
    draw, language = talker.draw, talker.language
    told = LISTED[language][0].join(_items(draw, language, draw.number(2, 6)))
    return dialogue(draw.pick(_REPEAT[language]).format(told), told)


def word(talker: Talker) -> list[Message]:
    """One to three words to repeat, or whose language is asked for."""
    draw, language, turns = talker.draw, talker.language, list[str]()
    for _ in range(draw.number(1, 3)):
        spoken = draw.pick(LANGUAGES)
        said = draw.pick(_words(spoken))
        if draw.chance(0.4):
            turns += [draw.pick(_SAY[language]).format(said), f"“{said}”"]
        else:
            turns += [draw.pick(_WHICH[language]).format(said), _IS[language][spoken].format(said)]
    return dialogue(*turns)
