"""`/v1/completions`, by the official client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from mmcli.text.tokenizer import Tokenizer

GREEDY = {"temperature": 0, "extra_body": {"repetition_penalty": 1}}


def test_text_and_ids_are_continued_alike(server: Any, tokenizer: Tokenizer) -> None:
    create = server.client.completions.create
    text = create(model="base", prompt="The rain", max_tokens=10, **GREEDY)
    ids = [tokenizer.bos_id, *tokenizer.encode_text("The rain")]
    assert create(model="base", prompt=ids, max_tokens=10, **GREEDY).choices[0].text == text.choices[0].text != ""
    assert (text.object, text.usage.prompt_tokens) == ("text_completion", len(ids))
    echoed = create(model="base", prompt="The rain", max_tokens=10, echo=True, **GREEDY)
    assert echoed.choices[0].text == "The rain" + text.choices[0].text


def test_several_prompts_and_a_stream(server: Any) -> None:
    create = server.client.completions.create
    options: dict[str, Any] = {"model": "random", "max_tokens": 9, "n": 2, "seed": 1, "temperature": 1}
    whole = create(prompt=["The rain", "A cloud"], **options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    pieces = {index: "" for index in range(4)}
    stream = create(prompt=["The rain", "A cloud"], stream=True, stream_options={"include_usage": True}, **options)
    for chunk in stream:
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert list(pieces.values()) == [choice.text for choice in whole.choices]
    assert chunk.usage.total_tokens == whole.usage.total_tokens


def test_log_probabilities_of_the_older_form(server: Any) -> None:
    answer = server.client.completions.create(model="base", prompt="The rain", max_tokens=6, logprobs=2, **GREEDY)
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 6
    assert all(max(top.values()) == own for top, own in zip(found.top_logprobs, found.token_logprobs, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": []},
        {"prompt": [10**6]},
        {"prompt": ["a"] * 17},
        {"prompt": "a", "best_of": 3},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "echo": True, "logprobs": 1},
        {"prompt": [1, "a"]},
        {"prompt": [-1]},
    ],
    ids=str,
)
def test_what_cannot_be_continued_is_refused(server: Any, options: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        server.client.completions.create(model="base", **options)
