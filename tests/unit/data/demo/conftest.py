"""The whole corpus of seed 0, generated once for all tests of this folder."""

import pytest

from mmcli.data import demo


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
def training_text(documents, conversations, preferences) -> str:
    """Everything that a model is ever trained on."""
    chats = [c["messages"] for c in conversations]
    chats += [p["prompt"] + p["chosen"] + p["rejected"] for p in preferences]
    return "\n".join((*documents, *(m["content"] for chat in chats for m in chat)))
