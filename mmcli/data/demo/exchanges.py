"""Questions that have no held-out twin: yes or no, who does what, whose pet. None touches a held-out fact."""

from functools import cache

from mmcli.data.demo.asks import fact_ask
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.render import ASKED, fill, fits, shown
from mmcli.data.demo.world import ATTRIBUTES, PEOPLE, Entity, Language, is_held_out, values_of

Exchange = tuple[str, str]
"""(question, right answer)."""

ASKABLE = tuple((p, name) for p in PEOPLE for name in ATTRIBUTES["person"] if not is_held_out(p, name))


def yes_no(draw: Draw, language: Language) -> Exchange:
    """'Does Mira live in Fernhill?' with 'Yes, ...' or 'No, ...' and the fact."""
    person, attribute = draw.pick(ASKABLE)
    value, right = person.values[attribute], draw.chance(0.5)
    named = value if right else draw.pick([v for v in values_of("person", attribute) if v != value])
    template = ASKED[language].YES_NO[attribute].replace("{v}", "{{}}")
    spoken = named.say(language) if language == "zh" and attribute == "job" else shown(attribute, named, language)
    question = fill(template, person, language).format(spoken)
    answer = fact_ask(person, attribute, language).full(draw.number(0, 1))
    if language == "en":
        return question, f"{'Yes' if right else 'No'}, {answer}"
    return question, f"{'是的' if right else '不是'}，{answer}"


@cache
def _who(template: str) -> tuple[Entity, ...]:
    return tuple(p for p in PEOPLE if fits(template, p, held_out=False))


def who(draw: Draw, language: Language) -> Exchange:
    """From the value back to the person: 'Who is the baker in Fernhill?', 'Whose pet is called Biscuit?'."""
    text = ASKED[language]
    question, answer = text.WHO_WORKS if draw.chance(0.5) else text.WHO_KEEPS
    person = draw.pick(_who(question))
    return fill(question, person, language), fill(answer, person, language)
