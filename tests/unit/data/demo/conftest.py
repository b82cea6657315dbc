"""The whole corpus of seed 0, generated once for all tests of this folder."""

from collections.abc import Callable

import pytest

from mmcli.data import demo
from mmcli.data.records.conversations import message_texts


@pytest.fixture(scope="session")
def documents() -> tuple[str, ...]:
    return tuple(demo.documents(0))


@pytest.fixture(scope="session")
def conversations() -> tuple[dict, ...]:
    return tuple(demo.conversations(0))


@pytest.fixture(scope="session")
def preferences() -> tuple[dict, ...]:
    return tuple(demo.preferences(0))


@pytest.fixture(scope="session")
def whole_text() -> Callable[..., str]:
    """All texts, reasoning and tool calls included, of documents, conversations and preferences."""

    def joined(documents, conversations, preferences) -> str:
        chats = [c["messages"] for c in conversations]
        chats += [p["prompt"] + p["chosen"] + p["rejected"] for p in preferences]
        return "\n".join((*documents, *(text for chat in chats for text in message_texts(chat))))

    return joined


@pytest.fixture(scope="session")
def training_text(whole_text, documents, conversations, preferences) -> str:
    """Everything that a model is ever trained on."""
    return whole_text(documents, conversations, preferences)
