"""Chat data is told about where chat would ask otherwise than it trains; reasoning goes where the template shows it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mmcli.data.encode.encoders import encode_conversations, encode_preferences
from mmcli.data.encode.prompts import mismatch_of_records
from mmcli.data.record import Record, Rejected
from mmcli.data.sources.sources import open_sources
from mmcli.run import Run
from mmcli.stage import Silent, StageContext
from mmcli.stages.tokens import open_cache
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

TEXTS = ["A cloud is water, high in the air. <think>Hm, so.</think>"] * 3
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
# Shows no reasoning, and opens one in the prompt.
R1 = (
    "{% for m in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
PLAIN = R1.replace("<think>\n", "")
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\n\n</think>\n\na"}]},
    {"instruction": "q", "output": "<think>hm</think>b"},
]
PAIR = {"prompt": "q", "chosen": "<think>hm</think>a", "rejected": "<think>hm</think>b"}


def with_template(template: str) -> Tokenizer:
    made = train_tokenizer(TEXTS, vocab_size=320)
    return Tokenizer(dataclasses.replace(made.definition, chat_template=template))


def records(*rows: dict[str, Any]) -> list[Record]:
    return [Record("f.jsonl", line, row) for line, row in enumerate(rows, 1)]


def spelled(tokenizer: Tokenizer, ids: Any) -> str:
    return tokenizer.decode(list(ids), keep_special=True)


def test_reasoning_stays_in_the_content_where_the_template_shows_none() -> None:
    tokenizer = with_template(PLAIN)
    first, second = encode_conversations(tokenizer, records(*ROWS), {})
    assert spelled(tokenizer, first.ids[0]).endswith("<think>\n\n</think>\n\na<|im_end|>\n")
    assert spelled(tokenizer, second.ids[0]).endswith("assistant\n<think>hm</think>b<|im_end|>\n")
    assert tokenizer.control_id("<think>") not in second.ids[0]  # it is text
    (pair,) = encode_preferences(tokenizer, records(PAIR), {})
    assert [spelled(tokenizer, ids).count("<think>hm</think>") for ids in pair.ids] == [1, 1]


def test_reasoning_is_apart_where_the_template_shows_it() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=320)
    _, second = encode_conversations(tokenizer, records(*ROWS), {})
    assert spelled(tokenizer, second.ids[0]).endswith("assistant\n<think>\nhm\n</think>\n\nb<|im_end|>\n")
    assert tokenizer.control_id("<think>") in second.ids[0]


def test_chat_data_is_looked_at_and_no_other() -> None:
    tokenizer = with_template(R1)
    found: list[Record | Rejected] = [Rejected("f.jsonl", 1, "no", b""), *records({"messages": []}, *ROWS)]
    for kind, rows in (("chat", found), ("preference", records(PAIR))):
        reason = mismatch_of_records(kind, rows, tokenizer)
        assert reason is not None and "chat begins a reply with" in reason
    assert mismatch_of_records("text", records({"text": "x"}), tokenizer) is None
    assert mismatch_of_records("chat", found, with_template(PLAIN)) is None
    assert mismatch_of_records("chat", found, train_tokenizer(TEXTS, vocab_size=320)) is None


class Recorder(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(("template", "warned"), [(R1, 1), (PLAIN, 0)])
def test_it_is_said_once_before_a_training(tmp_path: Path, template: str, warned: int) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    report = Recorder()
    context = StageContext(Run.create(tmp_path / "runs", "sft", "x"), report, resolved=None)  # type: ignore[arg-type]
    for part in ("", "val"):
        open_cache(open_sources([str(file)], kind="chat"), with_template(template), context, part=part)
    assert len(report.warnings) == warned
