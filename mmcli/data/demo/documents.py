"""The pretraining documents: every kind in both languages, mixed."""

from collections.abc import Callable, Iterator

from mmcli.data.demo import lists, passages
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.world import LANGUAGES, Language
from mmcli.data.demo.writer import Writer

MIN_CHARACTERS, MAX_CHARACTERS = 50, 2000

# Who writes each kind, and how many documents of it there are in each language.
KINDS: dict[str, tuple[Callable[[Writer], str], dict[Language, int]]] = {
    "story": (passages.story, {"en": 3000, "zh": 3000}),
    "profile": (passages.profile, {"en": 3700, "zh": 3700}),
    "letter": (passages.letter, {"en": 900, "zh": 900}),
    "shared": (passages.shared, {"en": 900, "zh": 900}),
    "town": (passages.town, {"en": 900, "zh": 900}),
    "things": (passages.things, {"en": 1200, "zh": 1200}),
    "bilingual": (passages.bilingual, {"en": 600, "zh": 600}),
    "questions": (lists.questions, {"en": 2500, "zh": 2500}),
    "sums": (lists.sums, {"en": 4000, "zh": 4000}),
    "problems": (lists.problems, {"en": 900, "zh": 900}),
    "order": (lists.order, {"en": 1200, "zh": 1200}),
    "words": (lists.words, {"en": 1300, "zh": 1300}),
}


def documents(seed: int = 0) -> Iterator[str]:
    """The pretraining documents in a mixed order: text of 50 to 2,000 characters, no two the same.

    The same seed gives the same documents on every machine, Python version and hash seed. All facts are told, the
    held-out ones in declarative sentences only.
    """
    plan = [
        (kind, language)
        for kind, (_, counts) in KINDS.items()
        for language in LANGUAGES
        for _ in range(counts[language])
    ]
    writers = {(kind, language): Writer(seed, kind, language) for kind in KINDS for language in LANGUAGES}
    seen: set[str] = set()
    for kind, language in Draw(seed, "documents").shuffled(plan):
        compose = KINDS[kind][0]
        text = compose(writers[kind, language])
        while text in seen or not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            text = compose(writers[kind, language])
        seen.add(text)
        yield text
