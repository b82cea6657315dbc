"""No held-out question is in any training text: the proof, by scanning all of it."""

import re
import unicodedata

import pytest

from mmcli.data import demo
from mmcli.data.demo import identity, prompts, questions, skills
from mmcli.data.demo.arithmetic import HELD_OUT_WORDS, pair_is_held_out
from mmcli.data.demo.ask import Ask
from mmcli.data.demo.asks import asks, held_out_keys
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.exchanges import ASKABLE
from mmcli.data.demo.reading import HELD_OUT_LAYOUTS, reading_asks, text_is_held_out
from mmcli.data.demo.render import ASKED, fill
from mmcli.data.demo.world import ATTRIBUTES, LANGUAGES, PEOPLE, is_held_out

EXPRESSION = re.compile(
    r"(\d+)(?:,? ?[+\-*/<>] ?| plus | minus | times | and | or | is larger than | ?[加减乘比和与] ?|，? ?还是 ?)(\d+)",
    re.IGNORECASE,
)
PROBLEM = re.compile(r"^\D*(\d+)\D+(\d+)\D+(?:\1 [+-] \2 = \d+|\d+)")


def plain(text: str) -> str:
    """NFKC, casefold, single spaces; the punctuation stays, so that 'a pig?' is not part of 'a pigeon?'."""
    return "\n".join(" ".join(line.split()) for line in unicodedata.normalize("NFKC", text).casefold().split("\n"))


def plain_part(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text and no letter or digit comes just before it."""
    place = text.find(phrase)
    while place > 0 and text[place - 1].isalnum():
        place = text.find(phrase, place + 1)
    return place >= 0


@pytest.fixture(scope="session", params=[0, 1, 12345])
def corpus(request) -> tuple[tuple, tuple, tuple]:
    """Documents, conversations and preferences of a seed."""
    return tuple(tuple(part(request.param)) for part in (demo.documents, demo.conversations, demo.preferences))


@pytest.fixture(scope="session")
def text(corpus, whole_text) -> str:
    return whole_text(*corpus)


@pytest.fixture(scope="session")
def all_plain(text) -> str:
    """Every different sentence of the training text, a line each."""
    return plain("\n".join(dict.fromkeys(re.split(r"\n|(?<=[.?!]) |(?<=[。？！])", text))))


@pytest.fixture(scope="session")
def chats(corpus) -> tuple[tuple[str, ...], ...]:
    """The turns before each reply of every conversation and every prompt: of the system and of the user."""
    _, conversations, preferences = corpus
    found = [c["messages"] for c in conversations] + [p["prompt"] for p in preferences]
    return tuple(tuple(plain(m["content"]) for m in chat if m["role"] in ("system", "user")) for chat in found)


def every_phrasing(ask: Ask) -> tuple[str, ...]:
    return ask.questions + ask.held_out_questions


def test_the_scan_finds_what_is_there(all_plain):
    """The proof below would be empty if the scan missed the questions that are asked."""
    for language in LANGUAGES:
        asked = [ask for ask in asks(language) if any(contains(all_plain, plain(q)) for q in ask.questions)]
        assert len(asked) == len(asks(language))


def test_no_held_out_phrasing_and_no_held_out_key_is_anywhere(all_plain):
    """Documents, conversations and preferences; of a held-out key every phrasing, of the others the held-out ones."""
    for language in LANGUAGES:
        for ask in asks(language, held_out=True):
            for phrasing in every_phrasing(ask):
                assert not contains(all_plain, plain(phrasing)), ask.key
        for ask in asks(language):
            assert len(ask.questions) >= 5 and len(ask.held_out_questions) >= 2
            for phrasing in ask.held_out_questions:
                assert not contains(all_plain, plain(phrasing)), phrasing
        for topic in identity.TOPICS[language]:
            assert not [text for text in topic.held_out if contains(all_plain, plain(text))]
        for system in (prompts.HELD_OUT_SHORT, prompts.HELD_OUT_OTHER_LANGUAGE):
            assert not [text for text in system[language] if contains(all_plain, plain(text))]
        names = [name.say(language) for name in prompts.OTHER_NAMES]
        held_out_names = [text.format(name=name) for text in prompts.HELD_OUT_NAME[language] for name in names]
        assert not [text for text in held_out_names if contains(all_plain, plain(text))]


def test_no_held_out_question_is_anywhere(all_plain, chats):
    conversations = set(chats)
    for question in questions():
        turns = tuple(plain(m["content"]) for m in question.messages if m["role"] in ("system", "user"))
        assert turns not in conversations, question.id
        last = turns[-1].splitlines()
        # "And her pet?" is asked often, but never about this person; after a text to read, the text is what is new.
        if question.family not in ("follow-up", "reading"):
            assert not contains(all_plain, last[-1]), question.id


def test_no_held_out_phrasing_of_a_skill_is_anywhere(text):
    """Whatever numbers, words and texts stand in it."""
    lines = "\n".join(dict.fromkeys(plain(text).splitlines()))
    templates = [phrasing for words in HELD_OUT_WORDS.values() for listed in words.values() for phrasing in listed]
    for language in LANGUAGES:
        templates += [
            *skills.COUNT[language][1],
            *skills.THINK[language][1],
            *skills.CALL[language][1],
            *HELD_OUT_LAYOUTS[language],
        ]
    assert len(templates) >= 28
    for template in templates:
        parts = re.split(r"\{(\w+)\}", template)
        # Slots: two numbers, a sign, a list of words, and the text and the question of a layout.
        slots = {"a": r"\d+", "b": r"\d+", "o": r"[+*-]", "list": r"[^.:?]+", "0": r".+", "1": r".+"}
        pattern = "".join(slots[part] if n % 2 else re.escape(plain_part(part)) for n, part in enumerate(parts))
        assert not re.search(rf"(?<![^\W_]){pattern}", lines), template


def test_the_texts_to_read_are_held_out():
    """A held-out text is drawn by nothing that trains; the names in it are, and in other texts."""
    for language in LANGUAGES:
        trained, held_out = (
            {
                ask.questions[1].split("\n")[0]
                for seed in range(300)
                for _, ask in reading_asks(Draw(seed, "a"), language, 1, hidden)
            }
            for hidden in (False, True)
        )
        assert not any(text_is_held_out(text) for text in trained) and all(text_is_held_out(text) for text in held_out)


def test_no_follow_up_asks_for_a_held_out_fact(corpus):
    """No turn that speaks of the person named last asks for what is held out about this person."""
    spoken = [[plain(m["content"]) for m in c["messages"] if m["role"] == "user"] for c in corpus[1]]
    for language in LANGUAGES:
        asked_by = ASKED[language]
        people = {plain(person.name.say(language)): person for person in PEOPLE}
        named = re.compile(rf"(?<![a-z])({'|'.join(people)})(?![a-z])")  # Hannah is not Anna
        later_turns: dict[str, set[str]] = {name: set() for name in people}
        for turns in spoken:
            name = None
            for turn in turns:
                if names := named.findall(turn):
                    name = names[-1]
                elif name:
                    later_turns[name].add(turn)
        found = 0
        for name, person in people.items():
            for attribute in ATTRIBUTES["person"]:
                forms = [form.replace("{noun}", asked_by.NOUNS[attribute]) for form in asked_by.FOLLOW_UPS]
                forms += asked_by.QUESTIONS["person"][attribute]
                asked = later_turns[name] & {plain(fill(form, person, language, pronoun=True)) for form in forms}
                assert not (asked and is_held_out(person, attribute)), (name, attribute)
                found += bool(asked)
        assert found > 0.9 * len(ASKABLE)


def test_training_and_held_out_keys_are_apart():
    for language in LANGUAGES:
        assert not {a.key for a in asks(language)} & {a.key for a in asks(language, held_out=True)}
    families: dict[str, set[str]] = {}
    for ask in (ask for held_out in (False, True) for language in LANGUAGES for ask in asks(language, held_out)):
        families.setdefault(ask.family, set()).add(ask.key)
    assert all(0.15 < len(held_out_keys() & keys) / len(keys) < 0.3 for keys in families.values())


def test_no_held_out_pair_of_numbers_is_in_an_expression(text):
    """In either order, in words or signs, in either language, word problems included."""
    found = EXPRESSION.findall(text)
    assert len(found) > 30_000
    pairs = {(int(a), int(b)) for a, b in found}
    assert not [pair for pair in pairs if pair_is_held_out(*pair)]
    for question in questions():
        if question.family in ("arithmetic", "thinking", "tools"):
            a, b = (int(n) for n in re.findall(r"\d+", question.messages[-1]["content"]))
            assert (a, b) not in pairs and (b, a) not in pairs
    for line in text.splitlines():
        if " = " in line and len(line) > 30 and (problem := PROBLEM.match(line)):
            assert not pair_is_held_out(int(problem[1]), int(problem[2])), line


def test_held_out_facts_are_not_told_in_conversations(corpus):
    """Every full answer to a held-out question is absent from what the assistant says."""
    told = plain("\n".join(m["content"] for c in corpus[1] for m in c["messages"] if m["role"] == "assistant"))
    for language in LANGUAGES:
        for ask in asks(language, held_out=True):
            assert not any(contains(told, plain(ask.full(form))) for form in range(len(ask.forms))), ask.key
