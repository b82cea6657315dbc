"""Short stories: a start, a problem, an attempt, a helper, a solution. Everything told of the characters is true."""

from functools import cache
from types import ModuleType

from mmcli.data.demo import stories_en, stories_zh
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.render import sentence, slots, uses
from mmcli.data.demo.world import PEOPLE, TOWN_BY_NAME, Entity, Language, is_held_out

_PARTS: dict[Language, ModuleType] = {"en": stories_en, "zh": stories_zh}


@cache
def neighbours(person: Entity) -> tuple[Entity, ...]:
    """The other people of the same town."""
    return tuple(p for p in PEOPLE if p.values["town"] == person.values["town"] and p is not person)


def _characters(hero: Entity, helper: Entity, language: Language) -> dict[str, str]:
    town = TOWN_BY_NAME[hero.values["town"]]
    he = slots(hero, language, pronoun=True)
    return {
        **slots(hero, language),
        "He": he["S"],
        "he": he["s"],
        "his": he["p"],
        "His": he["P"],
        "him": he["o"],
        "M": helper.name.say(language),
        "mjob": helper.values["job"].say(language),
        "landmark": town.values["landmark"].say(language),
        "product": town.values["product"].say(language),
    }


@cache
def _tells_held_out(template: str, hero: Entity, helper: Entity) -> bool:
    town = TOWN_BY_NAME[hero.values["town"]]
    owners = {name: hero if name in hero.values else town for name in uses(template)}
    told = any(is_held_out(owner, name) for name, owner in owners.items())
    return told or ("{mjob}" in template and is_held_out(helper, "job"))


def story(draw: Draw, hero: Entity, language: Language, length: int = 6) -> str:
    """One story of `length` parts (5 to 9) about the hero and a neighbour, as one paragraph."""
    parts, helper = _PARTS[language], draw.pick(neighbours(hero))
    things, beats = parts.PLOTS[draw.pick(tuple(parts.PLOTS))]
    chosen = [draw.pick(variants) for variants in beats]
    chosen.insert(0, draw.pick(parts.OPENINGS))
    if length > 5:
        chosen.append(draw.pick(parts.ENDINGS))
    for aside in draw.sample(parts.ASIDES, max(0, length - 6)):
        chosen.insert(draw.number(1, len(chosen) - 2), aside)
    return _tell(draw, chosen, draw.pick(things), hero, helper, language)


CHAT_PAIRS = tuple(
    (hero, helper)
    for hero in PEOPLE
    for helper in neighbours(hero)
    if not any(is_held_out(person, name) for person in (hero, helper) for name in ("town", "job"))
)
"""Heroes and helpers of whom a conversation may tell: where they live and what they do is not held out."""


def short_story(draw: Draw, hero: Entity, helper: Entity, language: Language) -> str:
    """A story of five parts that tells no held-out fact; hero and helper are one of `CHAT_PAIRS`."""
    parts = _PARTS[language]
    while True:
        things, beats = parts.PLOTS[draw.pick(tuple(parts.PLOTS))]
        thing = draw.pick(things)
        # One way to begin and few to go on: a small model tells such a story to its end.
        chosen = [parts.OPENINGS[0], *(variants[0] for variants in beats)]
        if not any(_tells_held_out(template, hero, helper) for template in [*chosen, thing]):
            return _tell(draw, chosen, thing, hero, helper, language)


def _tell(draw: Draw, chosen: list[str], thing: str, hero: Entity, helper: Entity, language: Language) -> str:
    parts, words = _PARTS[language], _characters(hero, helper, language)
    words |= {"day": draw.pick(parts.DAYS), "weather": draw.pick(parts.WEATHER), "thing": thing.format_map(words)}
    told = (sentence(template.format_map(words)) for template in chosen)
    return (" " if language == "en" else "").join(told)
