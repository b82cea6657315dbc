"""report.html: one file that tells a run, where nothing of the data or the configuration is markup."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mmcli import runner
from mmcli.config import to_tables
from mmcli.model.config import ModelConfig
from mmcli.report.lineage import lineage
from mmcli.report.page import SHOWN_SAMPLES, page, write_report
from mmcli.run import Run
from mmcli.stage import Metric, Silent

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'
VOID = {"meta", "img", "br"}


class Parsed(HTMLParser):
    """The tags and the text of a page; every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def a_run(root: Path, stage: str = "pretrain", parent: Run | None = None, **info: Any) -> Run:
    run = Run.create(root, stage, "tiny")
    metrics = [Metric("loss"), Metric("val_loss", label="val"), Metric("val_bits_per_byte", label="bpb")]
    run.update(state="finished", steps_done=200, steps=200, metrics=[asdict(each) for each in metrics], **info)
    lines = [{"step": i, "tokens": i, "loss": 3.0 - i / 100, "lr": 1e-3, "tokens_per_second": 9.0} for i in range(200)]
    lines[100] |= {"val_loss": 2.5, "val_bits_per_byte": 1.25}
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.record_choice("device", "cpu Model 9")
    run.record_choice("model", to_tables(ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2)))
    if parent is not None:
        run.record_choice("start_from", f"{parent.name}/model")
        parent.model.mkdir(exist_ok=True)
    return run


def test_a_page_tells_the_run(tmp_path: Path) -> None:
    run = a_run(tmp_path, sources={"optim.lr": "--lr", "optim.clip": "default", "train.steps": "preset tiny"})
    run.write_config({"optim": {"lr": 1e-3, "clip": 1.0}, "train": {"steps": 200}})
    run.update(data={"sources": ["books.txt"], "kept": 12_345, "rejected": 7, "tokens": 99, "cache": "abc"})
    (run.path / "samples.jsonl").write_text('{"step": 50, "prompt": "Once", "text": " upon"}\n')
    shown = Parsed(page(run))
    for text in (
        "0001-pretrain-tiny",
        "finished",
        "1.010",
        "508,224",
        "Once upon",
        "books.txt",
        "12,345",
        "cpu Model 9",
    ):
        assert text in shown.text
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page(run))
    assert ("optim.lr", "0.001", "--lr") in rows and ("train.steps", "200", "preset tiny") in rows
    folded = page(run).index("<summary>defaults: 1</summary>")
    assert page(run).index("<td>optim.lr</td>") < folded < page(run).index("<td>optim.clip</td>")
    titles = [attributes["aria-label"] for tag, attributes in shown.tags if tag == "svg"]
    assert titles == ["loss", "bits per byte", "learning rate", "tokens/s"]


def test_what_a_page_shows_is_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    run = a_run(tmp_path, command=["mmcli", EVIL], reason=EVIL, preset=EVIL, sources={"train.name": EVIL})
    run.update(state="stopped", data={"sources": [EVIL], "kept": EVIL}, changes=[{"input": EVIL}], parent=EVIL)
    run.update(metrics=[asdict(Metric("loss", label=EVIL))])
    run.write_config({"train": {"name": EVIL, EVIL: 1}})
    run.record_choice(EVIL, EVIL)
    sample = {"step": EVIL, "prompt": EVIL, "text": f"</td></table>{EVIL}"}
    (run.path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    html = page(run)
    shown = Parsed(html)
    assert not {"script", "img", "link", "iframe", "object", "base"} & {tag for tag, _ in shown.tags}
    assert not any(name.startswith("on") or name == "src" for _, attributes in shown.tags for name in attributes)
    assert shown.text.count(EVIL) >= 10
    assert "url(" not in html and "@import" not in html
    assert set(re.findall(r'(?:https?:)?//[^"<]*', html)) <= {"http://www.w3.org/2000/svg"}


def test_many_samples_are_thinned_with_the_first_and_the_last(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    lines = [json.dumps({"step": n, "prompt": "p", "text": f"#{n}#"}) + "\n" for n in range(1, 501)]
    (run.path / "samples.jsonl").write_text("".join(lines))
    found = re.findall(r"#(\d+)#", page(run))
    assert len(found) == SHOWN_SAMPLES and (found[0], found[-1]) == ("1", "500")


def test_the_lineage_goes_from_the_tokenizer_to_the_run(tmp_path: Path) -> None:
    tokenizer = Run.create(tmp_path, "tokenizer", "t")
    tokenizer.update(state="finished", fingerprint="f1")
    first = a_run(tmp_path, tokenizer="f1")
    second = a_run(tmp_path, "sft", first, tokenizer="f1")
    third = a_run(tmp_path, "dpo", second, tokenizer="f1")
    assert [each.name for each in lineage(third)] == [run.name for run in (tokenizer, first, second, third)]
    write_report(first)
    html = page(third)
    assert f'<a href="../{first.name}/report.html">' in html and f"../{second.name}/" not in html
    assert f"started from it: {second.name}" in page(first)
    second.path.rename(tmp_path / "gone")
    third.update(parent=second.name)
    left = [(tokenizer.name, tokenizer), (second.name, None), (third.name, third)]
    assert [(each.name, each.run) for each in lineage(third)] == left


@pytest.mark.parametrize("damage", ["run.json", "config.toml", "resolved.toml", "metrics.jsonl", "samples.jsonl"])
def test_a_damaged_run_has_a_page_too(tmp_path: Path, damage: str) -> None:
    run = a_run(tmp_path)
    (run.path / damage).write_bytes(b'{"a": [1, \xff\n[]\n7\n{"step": null}\n')
    assert run.name in Parsed(page(run)).text


def test_a_run_without_a_training_has_a_page(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "tokenizer", "t")
    assert "<svg" not in page(run) and run.name in Parsed(page(run)).text


def test_a_report_that_fails_loses_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    run, report = a_run(tmp_path), Told()
    runner._report_page(run, report)
    assert (run.path / "report.html").is_file() and report.warnings == []

    def fail(run: Run) -> str:
        raise ValueError("oh")

    monkeypatch.setattr("mmcli.report.page.page", fail)
    runner._report_page(run, report)
    assert report.warnings == [
        f"{run.path} has no new report.html (oh); make it with: mmcli runs report {run.reference}"
    ]
