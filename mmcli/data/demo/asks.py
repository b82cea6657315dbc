"""What can be asked: one `Ask` per fact, order, word pair and translation, with all its phrasings and its answer.

The question-form documents, the conversations and the preferences draw from `asks(language)`; the held-out questions
from `asks(language, held_out=True)`. The two never share a key, and a key is held out in both languages at once.
"""

import re
from functools import cache

from mmcli.data.demo.ask import Ask
from mmcli.data.demo.draw import held_out
from mmcli.data.demo.render import ASKED, TEXT, fill, shown, surfaces
from mmcli.data.demo.words import count_asks, opposite_asks, order_asks, translation_asks
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


def _names(values: list[Term]) -> tuple[str, ...]:
    """Every surface of the values in both languages."""
    return tuple(dict.fromkeys(s for value in values for lang in LANGUAGES for s in surfaces(value, lang)))


@cache
def fact_ask(entity: Entity, attribute: str, language: Language) -> Ask:
    """The question after one attribute of one entity."""
    text, asked, value = TEXT[language], ASKED[language], entity.values[attribute]
    others = [v for v in values_of(entity.kind, attribute) if v != value and v != entity.name]
    people = [p.name for p in PEOPLE if p is not entity] if entity.kind == "person" else []
    answers = surfaces(value, language)
    forms = tuple(form.replace("{v}", "{{}}") for form in text.ANSWERS[entity.kind][attribute])
    return Ask(
        family="facts" if entity.kind == "person" else "things",
        key=fact_key(entity, attribute),
        language=language,
        questions=tuple(fill(q, entity, language) for q in asked.QUESTIONS[entity.kind][attribute]),
        held_out_questions=tuple(fill(q, entity, language) for q in asked.HELD_OUT_QUESTIONS[entity.kind][attribute]),
        forms=tuple(fill(form, entity, language) for form in forms),
        value=shown(attribute, value, language),
        others=tuple(shown(attribute, v, language) for v in others),
        answers=answers,
        rivals=tuple(name for name in _names(others + people) if name not in answers),
        subject=tuple(name.lower() for name in entity.name),
    )


@cache
def _all_asks(language: Language) -> tuple[Ask, ...]:
    facts = (fact_ask(entity, attribute, language) for entity in ENTITIES for attribute in entity.values)
    words = (order_asks, opposite_asks, count_asks, translation_asks)
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
