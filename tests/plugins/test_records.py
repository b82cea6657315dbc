"""A plugin's kind of record: prompts with the answer that a reward asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmcli.run import Run
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

KIND = '''
"""Prompts with an answer."""

from dataclasses import dataclass

from mmcli.data.record import EncodedRecord, RecordError
from mmcli.data.records.kinds import RecordKind


@dataclass(frozen=True)
class Prompt:
    prompt: str
    answer: str


def is_prompt(value):
    return "prompt" in value and "answer" in value


def as_prompt(record):
    PROMPT.check(record)
    prompt, answer = record.value["prompt"], record.value["answer"]
    if not isinstance(answer, str) or not answer:
        raise RecordError("no answer to compare with")
    return Prompt(prompt, answer)


def texts(prompt):
    return [prompt.prompt, prompt.answer]


def encode(tokenizer, records, options):
    """The prompt without loss, the answer with it."""
    from mmcli.data.encode.encoders import encode_each

    def one(record):
        found = as_prompt(record)
        given, wanted = tokenizer.encode_text(found.prompt), tokenizer.encode_text(found.answer)
        mask = [False] * len(given) + [True] * len(wanted)
        return EncodedRecord([given + wanted], [mask], len((found.prompt + found.answer).encode()), len(found.answer))

    return encode_each(one, records)


PROMPT = RecordKind(
    name="prompt", label="prompts with an answer (prompt, answer)", stage="toy", matches=is_prompt, read=as_prompt,
    texts=texts, encode="p_prompts:encode",
)
'''
BUILD = """
import json, sys
from pathlib import Path
from mmcli.data.encode import encoders
from mmcli.data.encode.cache import TokenCache
from mmcli.data.sources.sources import open_sources
from mmcli.text.tokenizer import Tokenizer

pools = []
class Pool(encoders.EncoderPool):
    def __init__(self, *args, **options):
        pools.append(self)
        super().__init__(*args, **options)

encoders.EncoderPool, encoders.BATCH_RECORDS, encoders.usable_cores = Pool, 4, lambda: 2
found = {}
for name, alone in (("alone", 1e9), ("workers", -1.0)):
    encoders.ALONE_SECONDS = alone
    sources = open_sources([sys.argv[1]], kind="prompt")
    cache = TokenCache.build_or_open(Path(sys.argv[3]) / name, sources, Tokenizer.load(Path(sys.argv[2])))
    ids, trained = [[f(i).tolist() for i in range(len(cache))] for f in (cache.ids, cache.trained)]
    found[name] = [ids, trained, cache.labels.tolist(), cache.tally.kept, cache.tally.rejected, cache.tally.reasons]
print(json.dumps({**found, "pools": len(pools)}))
"""
ROWS: list[dict[str, Any]] = [{"prompt": f"what is {n} and {n}?", "answer": f"{2 * n}"} for n in range(30)]
BAD: list[dict[str, Any]] = [{"prompt": "what is 1?", "answer": ""}, {"text": "a text"}, {"other": 1}]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, new_site: Any) -> Any:
    site = new_site(tmp_path_factory.mktemp("records"))
    site.add("p-prompts", {"mmcli.records": {"prompt": "p_prompts:PROMPT"}}, KIND)
    site.add("p-broken", {"mmcli.records": {"broken": "p_broken:KIND"}}, "import no_such_module\n")
    (site.path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *BAD]))
    run = Run.create(site.path / "runs", "tokenizer", "tiny")
    train_tokenizer([row["prompt"] for row in ROWS], vocab_size=300).save(run.model)
    return site


def path_with(site: Any) -> str:
    return os.pathsep.join(filter(None, [str(site.path), os.environ.get("PYTHONPATH")]))


def mmcli(site: Any, *argv: str) -> Any:
    done = site.mmcli(*argv, "--json", MMCLI_RUNS=str(site.path / "runs"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_cache_holds_what_the_plugin_encodes_also_in_other_processes(site: Any, tmp_path: Path) -> None:
    run = site.path / "runs" / "0001-tokenizer-tiny" / "model"
    command = [sys.executable, "-c", BUILD, str(site.path / "prompts.jsonl"), str(run), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path_with(site)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pools"] == 1
    ids, trained, labels, kept, rejected, reasons = found["alone"]
    assert found["workers"] == found["alone"]
    tokenizer = Tokenizer.load(run)
    expected = [[tokenizer.encode_text(row[key]) for key in ("prompt", "answer")] for row in ROWS]
    assert ids == [given + wanted for given, wanted in expected]
    assert trained == [[0] * len(given) + [1] * len(wanted) for given, wanted in expected]
    assert labels == [len(row["answer"]) for row in ROWS]
    assert (kept, rejected) == (len(ROWS), len(BAD))
    assert reasons == {
        "no answer to compare with": 1,
        "a text record where a prompt record is needed": 1,
        "a record of no known kind": 1,
    }


def test_data_check_and_preview_know_the_kind(site: Any) -> None:
    data = str(site.path / "prompts.jsonl")
    for stage in ([], ["--stage", "toy"]):  # told by its records, or asked for
        found = mmcli(site, "data", "check", data, *stage)
        assert (found["stage"], found["kept"], found["rejected"]) == ("toy", len(ROWS), len(BAD))
        assert found["kinds"] == {"prompt": len(ROWS) + 1, "text": 1, "unknown": 1}
    [first] = mmcli(site, "data", "preview", data, "--limit", "1")
    assert first["text"] == ROWS[0]["prompt"] + ROWS[0]["answer"]
    refused = site.mmcli("data", "check", data, "--stage", "pretrain")
    assert refused.returncode == 2 and "holds prompts with an answer" in refused.stderr
    assert "mmcli toy" in refused.stderr
    refused = site.mmcli("data", "check", data, "--stage", "toi")
    assert refused.returncode == 2 and 'did you mean "toy"?' in refused.stderr


def test_a_tokenizer_learns_its_texts(site: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "made")
    data = str(site.path / "prompts.jsonl")
    found = mmcli(site, "tokenizer", "train", "--data", data, "--vocab-size", "300", "--out", out)
    assert (found["records"], found["rejected"]) == (len(ROWS), len(BAD))
    assert found["bytes"] == sum(len(row["prompt"]) + len(row["answer"]) for row in ROWS)


def test_it_is_listed_and_a_broken_one_breaks_nothing(site: Any) -> None:
    states = {each["name"]: (each["kind"], each["state"]) for each in mmcli(site, "plugins", "list")}
    assert states["prompt"] == ("record kind", "ok")
    assert states["broken"] == ("record kind", "ModuleNotFoundError: No module named 'no_such_module'")
