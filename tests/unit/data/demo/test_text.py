"""The text itself: the same for everyone, of the promised size, in good shape."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import islice

import pytest

from mmcli.data import demo
from mmcli.data.demo import questions
from mmcli.data.demo.judge import normalise
from mmcli.data.demo.world import ATTRIBUTES, LANGUAGES, PEOPLE
from mmcli.data.record import Record
from mmcli.data.records.conversations import as_chat

FIRST_1000_DOCUMENTS = "42675a561ff02ae6c41e54b6023bb07daa13dd74ee1561de73e1dd16a5b8982d"
FIRST_1000_CONVERSATIONS = "c22100d513274d55469c6612c4325f0fb4277947728ca169fe5b375f3f12b0df"
ALL_QUESTIONS = "51ecfe487b3df33c61cc073b0260c99c27f0b388d0555990813b2119b5c4bd21"


def digest(texts) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(repr(text).encode() + b"\0")
    return total.hexdigest()


def test_frozen_digests(documents, conversations):
    """A change of the generated text is seen here; it needs a new CORPUS_VERSION."""
    assert digest(documents[:1000]) == FIRST_1000_DOCUMENTS
    assert digest(conversations[:1000]) == FIRST_1000_CONVERSATIONS
    assert (
        digest((q.id, q.messages, q.answers, q.rivals, q.subject, q.exact, q.call) for q in questions())
        == ALL_QUESTIONS
    )
    assert demo.CORPUS_VERSION == "8"


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_hash_seed_changes_nothing(hash_seed):
    code = (
        "import hashlib; from itertools import islice; from mmcli.data import demo; t = hashlib.sha256();"
        "[t.update(repr(x).encode()) for f in (demo.documents, demo.conversations, demo.preferences)"
        " for x in islice(f(3), 300)];"
        "[t.update(repr(q).encode()) for q in demo.questions()]; print(t.hexdigest())"
    )
    here = hashlib.sha256()
    for generate in (demo.documents, demo.conversations, demo.preferences):
        for item in islice(generate(3), 300):
            here.update(repr(item).encode())
    for question in questions():
        here.update(repr(question).encode())
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here.hexdigest()


def test_another_seed_is_another_text(documents, conversations):
    assert list(islice(demo.documents(1), 20)) != list(documents[:20])
    assert list(islice(demo.conversations(1), 20)) != list(conversations[:20])
    assert demo.fingerprint(0) != demo.fingerprint(1)
    assert re.fullmatch(r"[0-9a-f]{16}", demo.fingerprint(0))


def test_documents_have_the_promised_size(documents):
    assert 10_000 <= len(documents) <= 16_000
    size = sum(len(text.encode()) for text in documents)
    assert 2_000_000 <= size <= 4_000_000
    assert all(20 <= len(text) <= 1000 for text in documents)
    assert len(set(documents)) == len(documents)


def test_generation_is_quick():
    start = time.process_time()
    for part in (demo.documents, demo.conversations, demo.preferences):
        for _ in part(2):
            pass
    assert time.process_time() - start < 10  # about 3 s; the margin is for a slow machine


def test_no_slot_is_left_in_the_text(training_text):
    text = re.sub(r'\{"name": "calculator", "arguments": \{[^{}]*\}\}', "", training_text)
    assert not re.search(r"[{}]|\bNone\b|\.\.|。。| ,|  ", text.replace("\n", "|"))


def test_conversations_alternate_and_are_short(conversations):
    assert 25_000 <= len(conversations) <= 36_000
    long = 0
    for conversation in conversations:
        messages = [m for m in conversation["messages"] if m["role"] != "tool" and not m.get("tool_calls")]
        roles = [m["role"] for m in messages]
        body = roles[1:] if roles[0] == "system" else roles
        assert body == ["user", "assistant"] * (len(body) // 2) and body
        assert all(m["content"].strip() == m["content"] and m["content"] for m in messages)
        long += any(m["role"] == "assistant" and len(m["content"].split()) > 30 for m in messages)
    assert long < len(conversations) * 0.02


def test_calls_and_reasoning_are_read_as_chat(conversations):
    """A call has its tool, its result and the answer after it; what is thought ends in what is said."""
    called = [c for c in conversations if "tools" in c]
    thought = [c for c in conversations if "reasoning_content" in c["messages"][-1]]
    assert len(called) >= 300 and len(thought) >= 400
    for conversation in called + thought:
        assert as_chat(Record("demo", 1, conversation)).messages == conversation["messages"]
    for conversation in called:
        messages = conversation["messages"]
        for n, message in enumerate(messages):
            if message.get("tool_calls"):
                (call,) = message["tool_calls"]
                assert messages[n + 1]["role"] == "tool"
                expression = call["function"]["arguments"]["expression"]
                assert str(eval(expression)) == messages[n + 1]["content"]
                assert messages[n + 2]["content"] == f"{expression} = {messages[n + 1]['content']}"
    for conversation in thought:
        left, right = conversation["messages"][-1]["content"].split(" = ")
        assert eval(left) == int(right)


def test_preferences_have_two_different_replies(preferences):
    assert len(preferences) == 4000
    held_out = tuple(demo.preferences(0, held_out=True))
    assert len(held_out) >= 200
    prompts = {str(pair["prompt"]) for pair in preferences}
    assert not [pair for pair in held_out if str(pair["prompt"]) in prompts]
    for pair in (*preferences, *held_out):
        assert pair["prompt"][-1]["role"] == "user"
        (chosen,), (rejected,) = pair["chosen"], pair["rejected"]
        assert chosen["role"] == rejected["role"] == "assistant"
        assert normalise(chosen["content"]) != normalise(rejected["content"])


def test_both_languages_have_their_share(conversations):
    # Of the questions: replies with sums have no words.
    asked = [next(m["content"] for m in c["messages"] if m["role"] == "user") for c in conversations]
    chinese = sum(bool(re.search(r"[\u4e00-\u9fff]", text)) for text in asked)
    assert 0.45 < chinese / len(conversations) < 0.6
    count = Counter(q.language for q in questions())
    assert abs(count["zh"] - count["en"]) <= 20


def test_every_fact_is_stated_often_in_both_languages(documents):
    """Held-out facts too: 15 times at least, in documents that name the person and the value."""
    texts = [text for text in documents if "\n答：" not in text]
    for person in PEOPLE[1::6]:
        for language in LANGUAGES:
            name = person.name.say(language)
            named = [text for text in texts if name in text]
            for attribute in ATTRIBUTES["person"]:
                value = person.values[attribute].say(language)
                assert sum(value in text for text in named) >= 15, (name, attribute)
