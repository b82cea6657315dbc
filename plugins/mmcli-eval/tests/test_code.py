"""pass@k is the estimator of the paper; programs are held to what they may do, and judged by their tests."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcli_eval import code
from mmcli_eval.code import CodeConfig, Problem, figures, pass_at_k, program_of_reply, program_of_text, read_problems
from mmcli_eval.sandbox import Limits, protection, run_program

from mmcli.api import UserError, measure_suite
from mmcli.generate.engine import extend_in_turn
from mmcli.testing import tiny_model
from mmcli.text.tokenizer import Tokenizer


def can_be_held() -> bool:
    try:
        return bool(protection(Limits()))
    except UserError:
        return False


held = pytest.mark.skipif(not can_be_held(), reason="this system cannot keep programs from files (no Landlock)")


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 1), (1, 1, 1), (10, 3, 1), (10, 3, 5), (10, 9, 5), (200, 1, 100)])
def test_pass_at_k_is_one_minus_the_share_of_choices_without_a_right_one(n: int, c: int, k: int) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_figures_are_means_over_problems_with_their_standard_error() -> None:
    one, ten, most = figures([0, 20, 5, 5], 20)
    assert (one.name, ten.name, most.name) == ("pass@1", "pass@10", "pass@20")
    assert one.value == pytest.approx((0 + 1 + 0.25 + 0.25) / 4) and one.questions == 4
    assert one.error == pytest.approx(np.std([0, 1, 0.25, 0.25], ddof=1) / 2)
    assert most.value == 0.75
    assert [each.name for each in figures([1], 1)] == ["pass@1"]


@held
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("assert sum(range(4)) == 6\nimport json, re, hashlib, heapq", None),
        ("open('own.txt', 'w').write('x')\nassert open('own.txt').read() == 'x'", None),
        ("assert 1 + 1 == 3, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: invalid syntax (program.py, line 1)"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "left before its end"),
        ("while True: pass", "used more than 1 s of CPU time"),
        ("x = bytearray(10**10)", "MemoryError"),
        ("open('big', 'wb').write(bytes(10**8))", "File too large"),
        ("print(open('/etc/passwd').read())", "PermissionError"),
        ("import os; os.unlink(PLACE)", "PermissionError"),
        ("open(PLACE, 'a').write('x')", "PermissionError"),
        ("import subprocess; subprocess.run(['/bin/true'])", "Error"),
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "Error"),
        ("import torch", "ModuleNotFoundError"),
        ("import os; assert not {'HOME', 'PATH'} & {*os.environ} - {'HOME'}, os.environ", None),
    ],
)
def test_a_program_may_do_little(program: str, said: str | None, tmp_path: Path) -> None:
    place = tmp_path / "mine.txt"
    place.write_text("mine", encoding="utf-8")
    outcome = run_program(program.replace("PLACE", repr(str(place))), Limits(seconds=1))
    assert outcome.passed == (said is None), outcome
    assert (said or "") in outcome.said
    assert place.read_text(encoding="utf-8") == "mine"


HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from math import pi\n\n\ndef add(a, b):\n    """The sum."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
}
MBPP = {"task_id": 7, "text": "Write a function double.", "test_list": ["assert double(2) == 4"], "code": ""}


def problems_of(folder: Path, *values: Any) -> list[Problem]:
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return read_problems(file)


def test_problems_of_both_shapes_are_read(tmp_path: Path) -> None:
    first, second = problems_of(tmp_path, HUMAN_EVAL, MBPP)
    assert (first.id, first.code, second.id) == ("HumanEval/0", HUMAN_EVAL["prompt"], "7")
    assert first.tests.endswith("check(add)")
    assert "assert double(2) == 4" in second.text and second.tests.strip() == "assert double(2) == 4"


def test_programs_are_cut_out_of_what_was_written(tmp_path: Path) -> None:
    first, second = problems_of(tmp_path, HUMAN_EVAL, MBPP)
    body = "    return a + b\n"
    whole = f"def add(a, b):\n{body}"
    assert program_of_text(f"{body}\ndef other():\n    pass\n", first) == first.code + body
    assert program_of_reply(body, first) == first.code + body
    assert program_of_reply(f"Here it is:\n```python\n{whole}```\nDone.", first) == f"from math import pi\n{whole}"
    assert program_of_reply(f"```\n{whole}", first) == f"from math import pi\n{whole}"
    assert program_of_text("def double(x):\n    return 2 * x\nassert 3", second) == "def double(x):\n    return 2 * x"


class Writer:
    """An engine that answers every prompt with the same ids."""

    extend = extend_in_turn

    def __init__(self, tokenizer: Tokenizer, reply: str) -> None:
        self.vocab_size, self.max_len, self.slots, self.can_verify = tokenizer.vocab_size, 4000, 2, False
        assert tokenizer.eos_id is not None
        self.reply = [*tokenizer.encode_text(reply), tokenizer.eos_id]
        self.held = [0, 0]
        self.written = [0, 0]

    def _logits(self, slot: int) -> np.ndarray:
        logits_V = np.zeros(self.vocab_size, dtype=np.float32)
        logits_V[self.reply[self.written[slot]]] = 100
        self.written[slot] += 1
        return logits_V

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        self.held[slot], self.written[slot] = self.held[slot] + len(ids), 0
        return self._logits(slot)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        for slot in slots:
            self.held[slot] += 1
        return np.stack([self._logits(slot) for slot in slots])

    def length(self, slot: int) -> int:
        return self.held[slot]

    def truncate(self, slot: int, n: int) -> None:
        self.held[slot] = n

    def copy(self, source: int, target: int) -> None:
        self.held[target], self.written[target] = self.held[source], 0


@held
def test_a_model_is_scored_by_what_its_programs_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems_of(tmp_path, HUMAN_EVAL, MBPP)
    model = tiny_model(tmp_path / "model")
    engine = Writer(Tokenizer.load(model), "```python\ndef add(a, b):\n    return a + b\n```")
    monkeypatch.setattr(code, "load_engine", lambda *_, **__: engine)
    found = measure_suite(model, f"code:{tmp_path / 'problems.jsonl'},samples=2,temperature=0.5")
    assert [(each.name, each.value, each.questions) for each in found.figures] == [
        ("pass@1", 0.5, 2),
        ("pass@2", 0.5, 2),
    ]
    limited = measure_suite(model, f"code:{tmp_path / 'problems.jsonl'}", limit=1)
    assert [(each.name, each.text) for each in limited.figures] == [("pass@1", "100.0%")]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("", "does not say what to measure"),
        ("none.jsonl", "No such file"),
        ("bad.jsonl", "bad.jsonl:1 is no problem: no field 'prompt'"),
        ("empty.jsonl", "has no problem"),
        ("problems.jsonl,samples=0", "samples = 0 is below 1"),
        ("problems.jsonl,samples=2,temperature=0", "all samples are equal"),
        ("problems.jsonl,seconds=-1", "seconds = -1.0 is not above 0"),
        ("problems.jsonl,sample=2", 'unknown key "sample"'),
        ("problems.jsonl,other.jsonl", "takes one file"),
    ],
)
def test_what_cannot_be_measured_is_refused(argument: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    if not can_be_held():
        monkeypatch.setattr(code, "protection", lambda limits: "held")
    monkeypatch.chdir(tmp_path)
    problems_of(tmp_path, HUMAN_EVAL)
    (tmp_path / "bad.jsonl").write_text('{"test": "", "entry_point": "f"}\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        code.measure(code.SuiteRequest(model=None, argument=argument))  # type: ignore[arg-type]  # refused before that
    assert said in caught.value.what and caught.value.fix


def test_a_system_that_cannot_hold_programs_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcli_eval import confined

    monkeypatch.setattr(confined, "landlock_version", lambda: 0)
    with pytest.raises(UserError, match="cannot keep the programs of a model from your files"):
        protection(Limits())
    assert protection(Limits(files=False)).startswith("your files, ")
    assert CodeConfig().sampling.temperature == 0 and CodeConfig(samples=2).sampling.temperature == 0.8
