"""What can be asked: one `Ask` per fact, order, word pair and translation, with all its phrasings and its answer.

The question-form documents, the conversations and the preferences draw from `asks(language)`; the held-out questions
from `asks(language, held_out=True)`. The two never share a key, and a key is held out in both languages at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from mmcli.data.demo.draw import held_out
from mmcli.data.demo.lexicon import MEASURES, OPPOSITES, ORDERS, PLURALS, TRANSLATIONS
from mmcli.data.demo.render import TEXT, fill, sentence, shown, surfaces
from mmcli.data.demo.world import (
    ENTITIES,
    HELD_OUT_SHARE,
    LANGUAGES,
    PEOPLE,
    Entity,
    Language,
    Term,
    fact_key,
    held_out_facts,
    values_of,
)


@dataclass(frozen=True)
class Ask:
    """Something that can be asked in one language.

    `questions` are its phrasings, `forms` full answers with `{}` for the value, `value` the right value as shown there
    and `others` wrong ones. `answers` are the right short answers in lower case; `rivals` are names of other
    candidates, in both languages, that a right reply does not contain; `subject` names what is asked about.
    """

    family: str
    key: str
    language: Language
    questions: tuple[str, ...]
    forms: tuple[str, ...]
    value: str
    others: tuple[str, ...]
    answers: tuple[str, ...]
    rivals: tuple[str, ...]
    subject: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """The answer alone, as a reply."""
        return sentence(self.answers[0])

    def full(self, form: int = 0) -> str:
        """The answer as a sentence."""
        return sentence(self.forms[form % len(self.forms)].format(self.value))

    def wrong(self, other: str, form: int = 0) -> str:
        """A wrong sentence of the same shape."""
        return sentence(self.forms[form % len(self.forms)].format(other))


def _names(values: list[Term]) -> tuple[str, ...]:
    """Every surface of the values in both languages."""
    return tuple(dict.fromkeys(s for value in values for lang in LANGUAGES for s in surfaces(value, lang)))


def fact_ask(entity: Entity, attribute: str, language: Language) -> Ask:
    """The question after one attribute of one entity."""
    text, value = TEXT[language], entity.values[attribute]
    others = [v for v in values_of(entity.kind, attribute) if v != value and v != entity.name]
    people = [p.name for p in PEOPLE if p is not entity] if entity.kind == "person" else []
    answers = surfaces(value, language)
    forms = tuple(form.replace("{v}", "{{}}") for form in text.ANSWERS[entity.kind][attribute])
    return Ask(
        family="facts" if entity.kind == "person" else "things",
        key=fact_key(entity, attribute),
        language=language,
        questions=tuple(fill(q, entity, language) for q in text.QUESTIONS[entity.kind][attribute]),
        forms=tuple(fill(form, entity, language) for form in forms),
        value=shown(attribute, value, language),
        others=tuple(shown(attribute, v, language) for v in others),
        answers=answers,
        rivals=tuple(name for name in _names(others + people) if name not in answers),
        subject=tuple(name.lower() for name in entity.name),
    )


_ORDER_QUESTIONS: dict[Language, dict[tuple[str, str], tuple[str, ...]]] = {
    "en": {
        ("day", "after"): ("What day comes after {}?", "Which day follows {}?"),
        ("day", "before"): ("What day comes before {}?", "Which day is just before {}?"),
        ("month", "after"): ("Which month comes after {}?", "What month follows {}?"),
        ("month", "before"): ("Which month comes before {}?", "What month is just before {}?"),
        ("season", "after"): ("Which season comes after {}?", "What season follows {}?"),
        ("season", "before"): ("Which season comes before {}?", "What season is just before {}?"),
        ("letter", "after"): ("Which letter comes after {}?", "What letter follows {}?"),
        ("letter", "before"): ("Which letter comes before {}?", "What letter is just before {}?"),
        ("number", "after"): ("What number comes after {}?", "Which number follows {}?"),
        ("number", "before"): ("What number comes before {}?", "Which number is just before {}?"),
    },
    "zh": {
        ("day", "after"): ("{}的后一天是星期几？", "过了{}是星期几？"),
        ("day", "before"): ("{}的前一天是星期几？", "{}前面是星期几？"),
        ("month", "after"): ("{}的下一个月是几月？", "过了{}是几月？"),
        ("month", "before"): ("{}的上一个月是几月？", "{}前面是几月？"),
        ("season", "after"): ("{}之后是什么季节？", "过了{}是什么季节？"),
        ("season", "before"): ("{}之前是什么季节？", "{}前面是什么季节？"),
        ("letter", "after"): ("字母 {} 后面是哪个字母？", "{} 的下一个字母是什么？"),
        ("letter", "before"): ("字母 {} 前面是哪个字母？", "{} 的上一个字母是什么？"),
        ("number", "after"): ("{} 后面的数是几？", "{} 的下一个数是几？"),
        ("number", "before"): ("{} 前面的数是几？", "{} 的上一个数是几？"),
    },
}
_ORDER_FORMS: dict[Language, dict[str, str]] = {
    "en": {"after": "After {item} comes {{}}.", "before": "Before {item} comes {{}}."},
    "zh": {"after": "{item}后面是{{}}。", "before": "{item}前面是{{}}。"},
}


def _order_asks(language: Language) -> Iterator[Ask]:
    for name, (items, round_trip) in ORDERS.items():
        for relation, step in (("after", 1), ("before", -1)):
            for i, item in enumerate(items):
                if not round_trip and not 0 <= i + step < len(items):
                    continue
                value = items[(i + step) % len(items)]
                others = [x for x in items if x not in (item, value)]
                yield Ask(
                    family="order",
                    key=f"order:{name}.{item.en}.{relation}",
                    language=language,
                    questions=tuple(q.format(item.say(language)) for q in _ORDER_QUESTIONS[language][name, relation]),
                    forms=(_ORDER_FORMS[language][relation].format(item=item.say(language)),),
                    value=value.say(language),
                    others=tuple(x.say(language) for x in others),
                    answers=(value.say(language).lower(),),
                    rivals=tuple(dict.fromkeys(s.lower() for x in others for s in x)),
                    subject=tuple(dict.fromkeys(s.lower() for s in item)),
                )


def _word_ask(
    family: str,
    key: str,
    language: Language,
    questions: tuple[str, ...],
    form: str,
    word: str,
    value: str,
    pool: list[str],
) -> Ask:
    others = tuple(other for other in dict.fromkeys(pool) if other not in (word, value))
    return Ask(
        family=family,
        key=key,
        language=language,
        questions=tuple(q.format(word) for q in questions),
        forms=(form.replace("{word}", word),),
        value=value,
        others=others,
        answers=(value.lower(),),
        rivals=tuple(other.lower() for other in others),
        subject=(word.lower(),),
    )


def _opposite_asks(language: Language) -> Iterator[Ask]:
    pool = [term.say(language) for pair in OPPOSITES for term in pair]
    if language == "en":
        questions = ("What is the opposite of “{}”?", "Which word means the opposite of “{}”?")
        form = "The opposite of “{word}” is “{}”."
    else:
        questions = ("“{}”的反义词是什么？", "哪个词和“{}”意思相反？")
        form = "“{word}”的反义词是“{}”。"
    for pair in OPPOSITES:
        one, two = (term.say(language) for term in pair)
        for word, value in ((one, two), (two, one)):
            yield _word_ask("pairs", f"opposite:{pair[0].en}", language, questions, form, word, value, pool)


def _count_asks(language: Language) -> Iterator[Ask]:
    """Plurals in English, measure words in Chinese."""
    if language == "en":
        questions = ("What is the plural of “{}”?", "How do you write more than one “{}”?")
        form, listed = "The plural of “{word}” is “{}”.", PLURALS
    else:
        questions = ("“{}”用什么量词？", "数“{}”的时候用哪个量词？")
        form, listed = "“{word}”的量词是“{}”。", MEASURES
    pool = [value for _, value in listed]
    for word, value in listed:
        yield _word_ask("pairs", f"count:{language}-{word}", language, questions, form, word, value, pool)


def _translation_asks(language: Language) -> Iterator[Ask]:
    english, chinese = [t.en for t in TRANSLATIONS], [t.zh for t in TRANSLATIONS]
    if language == "en":
        to_chinese = ("How do you say “{}” in Chinese?", "What is “{}” in Chinese?")
        to_english = ("What does “{}” mean in English?", "What is “{}” in English?")
        forms = ("“{word}” in Chinese is “{}”.", "“{word}” in English is “{}”.")
    else:
        to_chinese = ("“{}”用中文怎么说？", "“{}”的中文是什么？")
        to_english = ("“{}”用英文怎么说？", "“{}”的英文是什么？")
        forms = ("“{word}”的中文是“{}”。", "“{word}”的英文是“{}”。")
    for t in TRANSLATIONS:
        key = f"translation:{t.en}"
        yield _word_ask("translation", key, language, to_chinese, forms[0], t.en, t.zh, chinese)
        yield _word_ask("translation", key, language, to_english, forms[1], t.zh, t.en, english)


@cache
def _all_asks(language: Language) -> tuple[Ask, ...]:
    facts = (fact_ask(entity, attribute, language) for entity in ENTITIES for attribute in entity.values)
    words = (_order_asks, _opposite_asks, _count_asks, _translation_asks)
    return (*facts, *(ask for family in words for ask in family(language)))


@cache
def held_out_keys() -> frozenset[str]:
    """The keys that are never asked: facts as the world holds them out, and the same share of every other group."""
    groups: dict[str, dict[str, None]] = {}
    for language in LANGUAGES:
        for ask in _all_asks(language):
            if ask.family not in ("facts", "things"):
                group = re.split(r"[.-]" if ask.family == "order" else r"[:-]", ask.key)[0]
                groups.setdefault(group, {})[ask.key] = None
    chosen = set(held_out_facts())
    for keys in groups.values():
        chosen |= held_out(list(keys), HELD_OUT_SHARE)
    return frozenset(chosen)


@cache
def asks(language: Language, held_out: bool = False) -> tuple[Ask, ...]:
    """Everything that may be asked in training text, or everything that is held out from it."""
    return tuple(ask for ask in _all_asks(language) if (ask.key in held_out_keys()) == held_out)
