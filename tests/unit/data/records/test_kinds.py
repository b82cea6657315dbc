from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mmcli.data.record import Record, RecordError
from mmcli.data.records.conversations import as_chat, split_reasoning
from mmcli.data.records.kinds import all_kinds, as_text, dump_kinds, find_kind, kind_of, register_kind
from mmcli.data.records.preferences import as_preference
from mmcli.errors import UserError

Q, A = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
SYSTEM = {"role": "system", "content": "be brief"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def record(**value: Any) -> Record:
    return Record("f.jsonl", 1, value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"text": "x"}, "text"),
        ({"content": "x", "title": "y"}, "text"),
        ({"paragraphs": ["x"]}, "text"),
        ({"messages": []}, "chat"),
        ({"conversations": [], "text": "x"}, "chat"),
        ({"instruction": "x", "output": "y"}, "chat"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "preference"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "preference"),
        ({"messages": "no list"}, "unknown"),
        ({"url": "x"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_kind(value: dict[str, Any], kind: str) -> None:
    assert kind_of(value) == kind


def test_text() -> None:
    assert as_text(record(text=" kept as it is\n")) == " kept as it is\n"
    assert as_text(record(paragraphs=["one", "two"], chapter="c")) == "one\ntwo"
    assert as_text(record(content="body", title="t")) == "body"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": 5}, '"text" is not text'),
        ({"text": None}, '"text" is not text'),
        ({"text": " \n"}, '"text" is empty'),
        ({"paragraphs": ["a", 1]}, '"paragraphs" is not text'),
        ({"url": "x", "n": 1}, "a record of no known kind: its fields are url, n"),
        ({"messages": []}, "a chat record where a text record is needed"),
    ],
)
def test_text_that_cannot_be_used(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        as_text(record(**value))
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [SYSTEM, Q, A]},
        {
            "conversations": [
                {"from": "system", "value": "be brief"},
                {"from": "human", "value": "question"},
                {"from": "gpt", "value": "answer"},
            ]
        },
        {"conversations": [Q, A], "system": "be brief"},
        {"messages": [{"role": "developer", "content": "be brief"}, Q, A], "system": "not this one"},
        {"instruction": "question", "input": "", "output": "answer", "system": "be brief"},
        {"question": "question", "answer": "answer", "system": "be brief"},
        {
            "messages": [
                SYSTEM,
                {"role": "user", "content": [{"type": "text", "text": "quest"}, {"type": "text", "text": "ion"}]},
                A,
            ]
        },
    ],
)
def test_shapes_of_one_conversation(value: dict[str, Any]) -> None:
    chat = as_chat(record(**value))
    assert chat.messages == [SYSTEM, Q, A]
    assert chat.tools is None


def test_instruction_with_input_history_and_placeholders() -> None:
    chat = as_chat(record(instruction="do", input="this", output="I am {{name}}", history=[["before", "then"]]))
    assert chat.messages == [
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": "then"},
        {"role": "user", "content": "do\nthis"},
        {"role": "assistant", "content": "I am {{name}}"},
    ]


def test_reasoning_is_kept() -> None:
    chat = as_chat(record(messages=[Q, {**A, "reasoning_content": "hm"}]))
    assert chat.messages[1] == {**A, "reasoning_content": "hm"}


THOUGHT = " \n<think>\nhm\n  so\n</think>\n\nanswer"
REASONED = {**A, "reasoning_content": "hm\n  so"}


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [Q, {**A, "content": THOUGHT}]},
        {"messages": [Q, {**A, "content": [{"type": "text", "text": THOUGHT}], "reasoning_content": ""}]},
        {"conversations": [{"from": "human", "value": "question"}, {"from": "gpt", "value": THOUGHT}]},
        {"instruction": "question", "output": THOUGHT},
        {"question": "question", "answer": THOUGHT.replace("\n\n", "\r\n")},
    ],
)
def test_reasoning_that_a_reply_begins_with_is_split_off(value: dict[str, Any]) -> None:
    assert split_reasoning(as_chat(record(**value)).messages) == [Q, REASONED]


def test_reasoning_of_a_history_is_split_off() -> None:
    chat = as_chat(record(instruction="question", output="answer", history=[["question", THOUGHT]]))
    assert split_reasoning(chat.messages) == [Q, REASONED, Q, A]


@pytest.mark.parametrize("reply", [THOUGHT, [{**A, "content": THOUGHT}], {"from": "gpt", "value": THOUGHT}])
def test_reasoning_of_preferred_replies_is_split_off(reply: Any) -> None:
    for prompt in ({"prompt": "question"}, {"conversations": [Q]}, {"instruction": "question"}):
        preference = as_preference(record(**prompt, chosen=reply, rejected="<think>other</think>answer"))
        assert preference.prompt == [Q]
        assert split_reasoning(preference.chosen) == [REASONED]
        assert split_reasoning(preference.rejected) == [{**A, "reasoning_content": "other"}]
    whole = as_preference(record(chosen=[Q, {**A, "content": THOUGHT}], rejected=[Q, A]))
    assert (whole.prompt, split_reasoning(whole.chosen), whole.rejected) == ([Q], [REASONED], [A])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<think></think>answer", A),
        ("<think>\n\n</think>\n\nanswer", A),
        ("<think>a</think>b</think>", {**A, "content": "b</think>", "reasoning_content": "a"}),
        ("<think>hm, and no end", {**A, "content": "<think>hm, and no end"}),
        ("</think><think>a", {**A, "content": "</think><think>a"}),
        ("so: <think>a</think>b", {**A, "content": "so: <think>a</think>b"}),
    ],
)
def test_what_is_reasoning_in_a_text(text: str, message: dict[str, Any]) -> None:
    written = {**A, "content": text}
    for chat in (as_chat(record(messages=[Q, written])), as_chat(record(instruction="question", output=text))):
        assert split_reasoning(chat.messages) == [Q, message]
        assert chat.messages == [Q, written]  # for templates that show no reasoning


def test_a_message_that_has_its_reasoning_keeps_its_text() -> None:
    given = {**A, "content": THOUGHT, "reasoning_content": "given"}
    assert split_reasoning(as_chat(record(messages=[Q, given])).messages)[1] == given


def test_only_an_assistant_reasons() -> None:
    spoken = [{"role": role, "content": THOUGHT} for role in ("system", "user", "tool")]
    assert split_reasoning(as_chat(record(messages=[*spoken, A])).messages) == [*spoken, A]
    asked = {"role": "user", "content": THOUGHT}
    chat = as_chat(record(instruction=THOUGHT, output="answer", system=THOUGHT, history=[[THOUGHT, "a"]]))
    assert chat.messages == [spoken[0], asked, {**A, "content": "a"}, asked, A]
    assert as_preference(record(prompt=THOUGHT, chosen="answer", rejected="worse")).prompt == [asked]


CALLED: list[dict[str, Any]] = [
    Q,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "blue"},
    A,
]
TURNS = [
    {"from": "human", "value": "question"},
    {"from": "function_call", "value": json.dumps({"name": "look", "arguments": {"at": "sky"}})},
    {"from": "observation", "value": "blue"},
    {"from": "gpt", "value": "answer"},
]


@pytest.mark.parametrize(
    "value",
    [
        {"conversations": TURNS, "tools": json.dumps([TOOL["function"]])},
        {"conversations": TURNS, "tools": [TOOL]},
        {"messages": CALLED, "tools": [TOOL]},
        {
            "messages": [Q, {"role": "assistant", "content": None, "tool_calls": [CALL["function"]]}, *CALLED[2:]],
            "tools": [TOOL],
        },
        {
            "messages": [
                {**Q, "functions": [TOOL["function"]]},
                {**CALLED[1], "tool_calls": json.dumps([CALL])},
                *CALLED[2:],
            ]
        },
        {
            "messages": [
                Q,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "look", "arguments": '{"at": "sky"}'}}],
                },
                *CALLED[2:],
            ],
            "tools": [TOOL],
        },
    ],
)
def test_shapes_of_tool_calls(value: dict[str, Any]) -> None:
    chat = as_chat(record(**value))
    assert chat.messages == CALLED
    assert chat.tools == [TOOL]


def test_words_before_a_call_are_one_message_with_it() -> None:
    turns = [TURNS[0], {"from": "gpt", "value": "let me look"}, *TURNS[1:]]
    chat = as_chat(record(conversations=turns))
    assert chat.messages[1] == {"role": "assistant", "content": "let me look", "tool_calls": [CALL]}
    assert len(chat.messages) == 4


@pytest.mark.parametrize("beside", [False, True])
def test_reasoning_before_a_call_is_one_message_with_it(beside: bool) -> None:
    thought = {"role": "assistant", "content": "<think>hm</think>"}
    said = [{**thought, "tool_calls": [CALL]}] if beside else [thought, TURNS[1]]
    chat = as_chat(record(messages=[Q, *said, TURNS[2], A]))
    assert split_reasoning(chat.messages) == [Q, {**CALLED[1], "reasoning_content": "hm"}, *CALLED[2:]]


BAD = {"role": "assistant", "content": "bad", "train": False}


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False, "weight": 0}]
)
def test_messages_that_are_not_to_be_trained(flag: dict[str, Any]) -> None:
    chat = as_chat(record(messages=[Q, {**A, "content": "bad", **flag}, Q, {**A, "weight": 1, "train": None}]))
    assert chat.messages == [Q, BAD, Q, A]
    turns = [TURNS[0], {"from": "gpt", "value": "bad", **flag}, {**TURNS[1], **flag}, *TURNS[2:]]
    chat = as_chat(record(conversations=turns))
    assert chat.messages[1] == {**BAD, "tool_calls": [CALL]}
    mixed = as_chat(record(conversations=[TURNS[0], {"from": "gpt", "value": "bad", **flag}, *TURNS[1:]]))
    assert mixed.messages[1:3] == [BAD, CALLED[1]]  # one is trained, the other is not


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**A, "weight": 0.5}, 'the "weight" of a message is neither 0 nor 1: message 2 has 0.5'),
        ({**A, "train": "no"}, "the \"train\" of a message is neither 0 nor 1: message 2 has 'no'"),
        ({**A, "train": [0]}, 'the "train" of a message is neither 0 nor 1: message 2 has [0]'),
        ({**A, "train": True, "weight": 0}, "weight and train of a message disagree: message 2"),
        ({**Q, "train": True}, '"train" is set for a message that is not the assistant\'s: message 2'),
        ({**A, "train_detail": [{"begin_offset": 0}]}, '"train_detail" of a message is not supported: message 2'),
        ({**A, "prefix": True}, '"prefix" of a message is not supported: message 2'),
        ({"role": "assistant", "content": None, "refusal": "no"}, '"refusal" of a message is not supported: message 2'),
        ({**Q, "images": ["a.png"]}, '"images" of a message is not supported: message 2'),
        ({**A, "thinking": 5}, "the reasoning of a message is not text: message 2"),
    ],
)
def test_keys_with_a_meaning_are_refused_by_name(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        as_chat(record(messages=[Q, message, A]))
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "q", "completion": "a", "label": False}, '"label" says whether the reply is wanted'),
        ({"question": "q", "answer": "a", "image": "a.png"}, '"image" of a record is not supported'),
        ({"messages": [Q, A], "chat_template_kwargs": {"a": 1}}, '"chat_template_kwargs" of a record is not supported'),
    ],
)
def test_records_with_a_meaning_that_would_be_lost_are_refused(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        as_chat(record(**value))
    assert str(caught.value).startswith(reason)


def test_keys_without_a_meaning_are_left_out() -> None:
    chat = as_chat(record(messages=[{**Q, "id": 5, "train": False}, {**A, "prefix": False, "images": []}], images=[]))
    assert chat.messages == [Q, A]


@pytest.mark.parametrize("names", [("Human", "GPT"), ("USER", "Assistant"), (" User ", "Model")])
def test_roles_in_capitals(names: tuple[str, str]) -> None:
    turns = [{"from": names[0], "value": "question"}, {"from": names[1], "value": "answer"}]
    assert as_chat(record(conversations=turns)).messages == [Q, A]
    assert as_chat(record(messages=[{**Q, "role": names[0]}, {**A, "role": names[1]}])).messages == [Q, A]


def test_conversations_as_json_text() -> None:
    value = {"conversations": json.dumps(TURNS), "tools": [TOOL]}
    assert kind_of(value) == "chat"
    assert as_chat(record(**value)).messages == CALLED
    inside = [{**TURNS[0], "functions": [TOOL["function"]]}, *TURNS[1:]]
    assert as_chat(record(messages=json.dumps(inside))).tools == [TOOL]
    with pytest.raises(RecordError, match="the messages are not JSON"):
        as_chat(record(messages="[oops"))
    assert kind_of({"messages": "oops", "text": "x"}) == "text"


def test_prompt_and_completion_as_messages() -> None:
    """As in TRL: the completion is trained, the prompt is not."""
    chat = as_chat(record(prompt=[Q, A, Q], completion=[A], system="be brief"))
    assert chat.messages == [SYSTEM, Q, {**A, "train": False}, Q, A]
    assert as_chat(record(prompt="question", completion=[A])).messages == [Q, A]
    assert as_chat(record(prompt=[Q], completion="answer")).messages == [Q, A]
    assert as_chat(record(prompt="question", completion="answer")).messages == [Q, A]
    with pytest.raises(RecordError, match="the conversation is empty"):
        as_chat(record(prompt=[Q], completion=[]))


def test_a_call_in_the_older_form_and_other_names_of_reasoning() -> None:
    older = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": "sky"}'}}
    assert as_chat(record(messages=[Q, older, *CALLED[2:]])).messages == CALLED
    for name in ("thinking", "reasoning"):
        assert as_chat(record(messages=[Q, {**A, name: "hm"}])).messages[1] == {**A, "reasoning_content": "hm"}


@pytest.mark.parametrize("tools", ["", "[]", [], None])
def test_no_tools(tools: Any) -> None:
    assert as_chat(record(messages=[Q, A], tools=tools)).tools is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"messages": []}, "the conversation is empty"),
        ({"messages": [Q]}, "no assistant message: there is nothing to learn from"),
        ({"messages": [Q, "x"]}, "a message is not an object: message 2"),
        ({"messages": [Q, {"role": "poet", "content": "x"}]}, "a message has no known role: message 2 has 'poet'"),
        ({"messages": [Q, {"role": ["user"], "content": "x"}]}, "a message has no known role: message 2 has ['user']"),
        ({"messages": [Q, {"content": "x"}]}, "a message has no known role: message 2 has None"),
        ({"messages": [Q, {"role": "assistant", "content": 5}]}, "a message has no text: message 2"),
        ({"messages": [Q, {"role": "assistant", "content": None}]}, "a message has no text: message 2"),
        ({"messages": [Q, {"role": "assistant", "content": [{"image": 1}]}]}, "a message has no text: message 2"),
        ({"messages": [Q, {"role": "assistant", "content": " "}]}, "an assistant message is empty: message 2"),
        ({"messages": [Q, {**A, "content": "<think>a</think>\n"}, Q]}, "an assistant message is empty: message 2"),
        ({"messages": [Q, {"from": "function_call", "value": "{oops"}]}, "a tool call is not JSON: message 2"),
        ({"messages": [Q, {"from": "function_call", "value": "[]"}]}, "a tool call has no name: message 2"),
        ({"messages": [Q, {"from": "function_call", "value": "5"}]}, "a tool call has no name: message 2"),
        (
            {"messages": [Q, {"from": "function_call", "value": '{"name": "f", "arguments": "x"}'}]},
            "a tool call's arguments are not a JSON object: message 2",
        ),
        ({"messages": [Q, A], "tools": "{oops"}, "the tools are not JSON"),
        ({"messages": [Q, A], "tools": {"a": 1}}, "the tools are not a list"),
        ({"messages": [Q, A], "tools": [5]}, "a tool has no name"),
        ({"instruction": "x", "output": " "}, '"output" is empty'),
        ({"instruction": "x", "output": "<think>a</think>"}, '"output" is empty'),
        ({"instruction": "x", "output": None}, '"output" is not text'),
        ({"instruction": " ", "output": "y"}, '"instruction" is empty'),
        ({"instruction": "x", "input": 5, "output": "y"}, '"input" is not text'),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, '"history" is not a list of pairs'),
        ({"instruction": "x", "output": "y", "history": "a"}, '"history" is not a list of pairs'),
        ({"text": "x"}, "a text record where a chat record is needed"),
    ],
)
def test_chats_that_cannot_be_used(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        as_chat(record(**value))
    assert str(caught.value) == reason


WORSE = {"role": "assistant", "content": "worse"}


@pytest.mark.parametrize(
    "value",
    [
        {"chosen": [Q, A], "rejected": [Q, WORSE]},
        {"prompt": "question", "chosen": [Q, A], "rejected": [Q, WORSE]},
        {"prompt": "question", "chosen": "answer", "rejected": "worse"},
        {"prompt": [Q], "chosen": [A], "rejected": [WORSE]},
        {"prompt": [Q], "chosen": "answer", "rejected": "worse"},
        {
            "conversations": [{"from": "human", "value": "question"}],
            "chosen": {"from": "gpt", "value": "answer"},
            "rejected": {"from": "gpt", "value": "worse"},
        },
        {"instruction": "question", "input": "", "chosen": "answer", "rejected": "worse"},
    ],
)
def test_shapes_of_one_preference(value: dict[str, Any]) -> None:
    preference = as_preference(record(**value))
    assert preference.prompt == [Q]
    assert preference.chosen == [A]
    assert preference.rejected == [WORSE]


def test_preference_with_system_and_a_shared_beginning() -> None:
    value = {"chosen": [SYSTEM, Q, A, Q, A, Q, A], "rejected": [SYSTEM, Q, A, Q, WORSE]}
    preference = as_preference(record(**value))
    assert preference.prompt == [SYSTEM, Q, A, Q]
    assert preference.chosen == [A, Q, A]
    assert preference.rejected == [WORSE]
    assert as_preference(record(prompt="question", system="be brief", chosen="a", rejected="b")).prompt == [SYSTEM, Q]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "q", "chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "chosen and rejected are the same"),
        ({"prompt": "q", "chosen": "", "rejected": "x"}, '"chosen" is empty'),
        ({"prompt": "q", "chosen": "<think>a</think>", "rejected": "x"}, '"chosen" is empty'),
        ({"prompt": "q", "chosen": "x", "rejected": None}, '"rejected" is neither text nor messages'),
        ({"chosen": "x", "rejected": "y"}, "no prompt for chosen and rejected"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, '"prompt" is empty'),
        ({"chosen": [Q, A], "rejected": [Q]}, "one of chosen and rejected has no reply of its own"),
        ({"chosen": [Q, A], "rejected": [SYSTEM, Q, A]}, "chosen and rejected share no prompt"),
        ({"chosen": [Q, A, Q, A], "rejected": [Q, A, SYSTEM, A]}, "chosen and rejected differ before the reply"),
        ({"messages": [Q, A]}, "a chat record where a preference record is needed"),
    ],
)
def test_preferences_that_cannot_be_used(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        as_preference(record(**value))
    assert str(caught.value) == reason


# The registry


def test_the_built_in_kinds_name_their_stages_and_encoders() -> None:
    found = {name: kind.stage for name, kind in all_kinds().items() if name in ("text", "chat", "preference")}
    assert found == {"text": "pretrain", "chat": "sft", "preference": "dpo"}
    assert all(callable(find_kind(name).encoder) for name in found)
    with pytest.raises(UserError, match='no record kind "texts"') as caught:
        find_kind("texts")
    assert caught.value.fix == 'did you mean "text"?'


def test_another_kind_of_the_same_name_is_refused() -> None:
    chat = find_kind("chat")
    assert register_kind(chat) is chat
    with pytest.raises(UserError, match='a record kind "chat" already'):
        register_kind(replace(chat, stage="other"))
    assert find_kind("chat").stage == "sft"


def test_a_kind_of_functions_without_a_name_is_not_sent_to_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dump_kinds() is not None
    local = replace(find_kind("text"), name="local", matches=lambda value: "local" in value)
    monkeypatch.setitem(all_kinds(), "local", local)
    assert dump_kinds() is None


def test_the_needed_kind_is_recognised_before_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = replace(find_kind("chat"), name="solved", matches=lambda value: "answer" in value)
    monkeypatch.setitem(all_kinds(), "solved", solved)
    value = {"question": "q", "answer": "a"}
    assert (kind_of(value), kind_of(value, "solved"), kind_of(value, "text")) == ("chat", "solved", "chat")
