"""Replies that a teacher writes to the prompts of conversations: a dataset to learn from.

Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947), with greedy decoding in place of a beam.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcli.api import (
    ModelRef,
    OpenedData,
    Record,
    RecordError,
    Rejected,
    SamplingConfig,
    StageContext,
    Tokenizer,
    UserError,
    as_chat,
    atomic_folder,
    encode_chat,
    generate_batch,
    is_chat_model,
    load_engine,
    read_reply,
    stop_ids,
)

FOLDER, FILE = "replies", "replies.jsonl"  # of the run
SLOTS = 32  # replies that are written at a time
TRIAL_PROMPTS = 64  # of a training that is only measured
GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)


def write_replies(teacher: ModelRef, data: OpenedData, max_new_tokens: int, device: str, context: StageContext) -> Path:
    """The file of the teacher's replies, written once in a run: conversations that end in what it said.

    Raises:
        UserError: the teacher answers no messages, or none of its replies can be used.
    """
    file = context.run.path / FOLDER / FILE
    if file.is_file():
        return file
    tokenizer = Tokenizer.load(teacher.path)
    if not is_chat_model(teacher.path, tokenizer, stage=teacher.stage):
        what = f"the teacher {teacher.label} continues texts, it writes no replies"
        raise UserError(what, "give --teacher a model of conversations, such as latest:sft")
    left_out: Counter[str] = Counter()
    prompts = list(_prompts(data, left_out))
    if context.trial is not None:
        prompts = prompts[:TRIAL_PROMPTS]
    context.report.note(f"{teacher.label} writes {len(prompts):,} replies, greedily")
    engine = load_engine(teacher, slots=SLOTS, device=device, report=context.report)
    encoded = [
        encode_chat(tokenizer, each["messages"], tools=each.get("tools"), add_generation_prompt=True).ids
        for each in prompts
    ]
    replies: dict[int, Mapping[str, Any]] = {}
    completions = generate_batch(engine, encoded, GREEDY, max_new_tokens=max_new_tokens, stop_ids=stop_ids(tokenizer))
    for done, each in enumerate(completions, 1):
        message = read_reply(tokenizer, each.ids)
        if each.finish_reason == "context" and not each.ids:
            left_out["prompts that fill the context"] += 1
        elif each.stop_id is None:
            left_out[f"replies that did not end within {max_new_tokens} tokens"] += 1
        elif not str(message["content"]).strip():
            left_out["empty replies"] += 1
        else:
            replies[each.prompt] = message
        context.report.progress("replies", done, len(prompts), "written")
    if left_out:
        told = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        context.report.warn(f"left out: {told}")
    if not replies:
        raise UserError(f"no reply of {teacher.label} can be used", "give a better teacher, or more --max-new-tokens")
    with atomic_folder(file.parent) as beside, (beside / FILE).open("w", encoding="utf-8") as out:
        for number in sorted(replies):
            asked = prompts[number]
            record = {**asked, "messages": [*asked["messages"], replies[number]]}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return file


def _prompts(data: OpenedData, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Each conversation up to its last message of the user, with its tools; repeated ones once."""
    seen: set[str] = set()
    for item in data.train.records():
        if isinstance(item, Rejected):
            left_out["records that cannot be read"] += 1
            continue
        assert isinstance(item, Record)
        try:
            chat = as_chat(item)
        except RecordError:
            left_out["records that are no conversations"] += 1
            continue
        asked = max((n for n, message in enumerate(chat.messages) if message["role"] == "user"), default=None)
        if asked is None:
            left_out["conversations without a message of the user"] += 1
            continue
        prompt: dict[str, Any] = {"messages": chat.messages[: asked + 1]}
        if chat.tools is not None:
            prompt["tools"] = chat.tools
        text = json.dumps(prompt, sort_keys=True)
        if text in seen:
            left_out["repeated prompts"] += 1
            continue
        seen.add(text)
        yield prompt
