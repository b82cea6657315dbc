"""From templates and facts to sentences."""

import re
from functools import cache
from string import Formatter
from types import ModuleType

from mmcli.data.demo import asked_en, asked_zh, text_en, text_zh
from mmcli.data.demo.world import ATTRIBUTES, Entity, Language, Term, is_held_out

TEXT: dict[Language, ModuleType] = {"en": text_en, "zh": text_zh}
ASKED: dict[Language, ModuleType] = {"en": asked_en, "zh": asked_zh}
LISTED: dict[Language, tuple[str, str, str]] = {"en": (", ", ": ", "."), "zh": ("、", "：", "。")}
"""Between the items of a list, before it and after it."""
_KNOWN = {attribute for attributes in ATTRIBUTES.values() for attribute in attributes}
_MEASURES = {"狗": "一条狗"}
_OPENING_EN = re.compile(r"^(?:(?:in|on|by) )?(?:(?:a|an|the) )?")
_CLOSING_ZH = re.compile(r"(?<=..)[里上边]$")


def with_article(noun: str) -> str:
    """'cat' as 'a cat', 'owl' as 'an owl'."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def shown(attribute: str, value: Term, language: Language) -> str:
    """The value as it stands in a full answer: 'a cat', 'in the hills', '一只猫'."""
    text = value.say(language)
    if language == "en":
        return with_article(text) if attribute in ("job", "pet") else text
    return _MEASURES.get(text, f"一只{text}") if attribute == "pet" else text


def surfaces(value: Term, language: Language) -> tuple[str, ...]:
    """The ways in which a reply may name the value, the plainest first: no article, preposition or 里/上 at the end."""
    text = value.say(language)
    plain = _OPENING_EN.sub("", text) if language == "en" else _CLOSING_ZH.sub("", text)
    return tuple(dict.fromkeys((plain.lower(), text.lower())))


def sentence(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]


@cache
def uses(template: str) -> tuple[str, ...]:
    """The attributes that a template tells, read from its slots."""
    slots = (name.removeprefix("a_").removeprefix("m_") for _, name, _, _ in Formatter().parse(template) if name)
    return tuple(dict.fromkeys(slot for slot in slots if slot in _KNOWN))


def fits(template: str, entity: Entity, held_out: bool) -> bool:
    """Whether the entity has every attribute of the template and, unless `held_out`, none of them is held out."""
    return all(slot in entity.values and (held_out or not is_held_out(entity, slot)) for slot in uses(template))


_cache: dict[tuple[str, Language, bool], dict[str, str]] = {}


def slots(entity: Entity, language: Language, pronoun: bool = False) -> dict[str, str]:
    """All slots of an entity; with `pronoun` the subject slots hold he, she or it. Shared: only read it."""
    key = (entity.key, language, pronoun)
    if key not in _cache:
        _cache[key] = _subject(entity, language, pronoun) | _values(entity, language)
    return _cache[key]


def _values(entity: Entity, language: Language) -> dict[str, str]:
    result = {}
    for attribute, value in entity.values.items():
        result[attribute] = value.say(language)
        result[("a_" if language == "en" else "m_") + attribute] = shown(attribute, value, language)
    return result


def _subject(entity: Entity, language: Language, pronoun: bool) -> dict[str, str]:
    name = entity.name.say(language)
    if language == "zh":
        he = {"person": "她" if entity.female else "他", "town": "这座小镇"}.get(entity.kind, "它")
        s = he if pronoun else name
        return {"s": s, "S": s, "o": s, "p": f"{s}的", "P": f"{s}的", "N": name, "Ns": f"{name}的"}
    if entity.kind == "animal":
        name = with_article(name)
    elif entity.kind in ("plant", "object"):
        name = f"the {name}"
    s, p, o = name, f"{name}'s", name
    if pronoun:
        s, p, o = ("she", "her", "her") if entity.female else ("he", "his", "him")
        if entity.kind != "person":
            s, p, o = "it", "its", "it"
    return {"s": s, "S": sentence(s), "p": p, "P": sentence(p), "o": o, "N": name, "Ns": f"{name}'s"}


def fill(template: str, entity: Entity, language: Language, pronoun: bool = False) -> str:
    """A template told of an entity."""
    return sentence(template.format_map(slots(entity, language, pronoun)))


def joined(names: list[str], language: Language) -> str:
    """'Mira, Tom and Leo', '米拉、汤姆和里奥'."""
    last = " and " if language == "en" else "和"
    return LISTED[language][0].join(names[:-1]) + last + names[-1] if len(names) > 1 else names[0]


@cache
def plain_statements(entity: Entity, attribute: str, language: Language) -> tuple[str, ...]:
    """Statements about this attribute alone, with the name."""
    templates = TEXT[language].STATEMENTS[entity.kind]
    return tuple(fill(t, entity, language) for t in templates if uses(t) == (attribute,))
