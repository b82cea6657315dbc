"""The pretraining documents: every kind in both languages, mixed."""

from collections.abc import Callable, Iterator

from mmcli.data.demo import echoes, lists, passages, sums
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.world import LANGUAGES
from mmcli.data.demo.writer import Writer

MIN_CHARACTERS, MAX_CHARACTERS = 20, 1000

# Who writes each kind, and how many documents of it there are in each language.
KINDS: dict[str, tuple[Callable[[Writer], str], int]] = {
    "profile": (passages.profile, 450),
    "portrait": (passages.portrait, 100),
    "roll": (passages.roll, 220),
    "sheet": (passages.sheet, 800),
    "letter": (passages.letter, 60),
    "shared": (passages.shared, 80),
    "town": (passages.town, 200),
    "things": (passages.things, 600),
    "bilingual": (passages.bilingual, 250),
    "story": (passages.story, 120),
    "questions": (lists.questions, 150),
    "order": (lists.order, 150),
    "neighbours": (lists.neighbours, 700),
    "opposites": (lists.opposites, 250),
    "counted": (lists.counted, 200),
    "translations": (lists.translations, 600),
    "echo": (echoes.echo, 600),
    "sums": (sums.sums, 900),
    "rows": (sums.rows, 250),
    "families": (sums.families, 100),
    "counting": (sums.counting, 150),
    "problems": (sums.problems, 80),
}


def documents(seed: int = 0) -> Iterator[str]:
    """The pretraining documents in a mixed order: short texts, no two the same.

    The same seed gives the same documents on every machine, Python version and hash seed. All facts are told, the
    held-out ones in declarative sentences only.
    """
    plan = [(kind, language) for kind, (_, count) in KINDS.items() for language in LANGUAGES for _ in range(count)]
    writers = {(kind, language): Writer(seed, kind, language) for kind in KINDS for language in LANGUAGES}
    seen: set[str] = set()
    for kind, language in Draw(seed, "documents").shuffled(plan):
        compose = KINDS[kind][0]
        text = compose(writers[kind, language])
        while text in seen or not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            text = compose(writers[kind, language])
        seen.add(text)
        yield text
