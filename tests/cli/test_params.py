"""`mmcli params` and `mmcli presets`."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mmcli.cli import run
from mmcli.config import preset_names


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run(list(argv)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(shown(capsys, *argv, "--json"))


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


# params count


def test_count_of_small_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "params", "count")
    assert found == as_json(capsys, "params", "count", "--preset", "small")
    assert (found["preset"], found["total"], found["active"]) == ("small", 25_829_888, 25_829_888)
    assert sum(found["components"].values()) == found["total"]
    assert found["weight_bytes"]["fp32"] == 4 * found["total"]
    assert found["flops_per_token"] == {"seq_len": 512, "forward": 55_836_672, "training": 167_510_016}


def test_count_of_moe(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "params", "count", "--preset", "moe")
    assert (found["total"], found["active"]) == (145_029_760, 91_945_600)
    assert "724,927,488" in found["note"]


def test_count_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "params", "count", "--preset", "moe")
    for part in ("145,029,760", "91,945,600", "63.4%", "routed experts", "106,168,320", "580.1 MB", "10.2 MB",
                 "567.3 MFLOP", "39,321,600", "+106,188,800", "preset moe-1024"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("preset", preset_names())
def test_the_report_fits_80_columns_and_its_sums_hold(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "params", "count", "--preset", preset)
    assert max(len(line) for line in text.splitlines()) <= 80
    found = as_json(capsys, "params", "count", "--preset", preset)
    textbook = found["textbook"]
    assert textbook["total"] + sum(each["parameters"] for each in textbook["differences"]) == found["total"]
    for number in (found["total"], textbook["total"], *(n for n in found["components"].values() if n)):
        assert f"{number:,}" in text


def test_set_and_config_change_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\ndim = 640\nuse_moe = true\n[optim]\nlr = 1.0\n", encoding="utf-8")
    found = as_json(capsys, "params", "count", "--config", str(file))
    assert (found["total"], found["changed"]) == (145_029_760, True)
    more = as_json(capsys, "params", "count", "--config", str(file), "--set", "model.n_routed_experts=8")
    assert more["total"] - found["total"] == 8 * (4 * 3 * 640 * 1728 + 4 * 640)
    assert "documented" not in more or more["documented"] is None
    assert "(changed)" in shown(capsys, "params", "count", "--set", "model.dim=256")


def test_length_and_rows_change_flops_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    short = as_json(capsys, "params", "count")
    long = as_json(capsys, "params", "count", "--seq-len", "1024", "--micro-batch", "2")
    assert long["flops_per_token"]["training"] - short["flops_per_token"]["training"] == 6 * 8 * 512 * 512
    assert long["training_memory_bytes"]["tokens_per_micro_batch"] == 2048
    assert long["training_memory_bytes"]["weights"] == short["training_memory_bytes"]["weights"]


def test_muon_needs_less_memory(capsys: pytest.CaptureFixture[str]) -> None:
    adamw, muon = (
        as_json(capsys, "params", "count", "--optimizer", name)["training_memory_bytes"] for name in ("adamw", "muon")
    )
    assert adamw == as_json(capsys, "params", "count")["training_memory_bytes"]
    hidden = 25_829_888 - 6400 * 512 - 17 * 512
    assert adamw["optimizer"] - muon["optimizer"] == adamw["total"] - muon["total"] == 4 * hidden
    assert "weights, gradients and Muon with AdamW" in shown(capsys, "params", "count", "--optimizer", "muon")


@pytest.mark.parametrize(
    ("argv", "named", "hint"),
    [
        (["--preset", "smal"], 'there is no preset "smal"', 'did you mean "small"?'),
        (["--set", "model.dmi=3"], 'unknown key "model.dmi" (from --set)', 'did you mean "model.dim"?'),
        (["--set", "model.dim=wide"], "model.dim = 'wide' is not a whole number (from --set)", "hidden size"),
        (["--set", "model.n_kv_heads=3"], "does not divide n_heads = 8 (from --set)", "give a divisor"),
        (["--set", "dim"], "is not key=value", "--set optim.lr=3e-4"),
        (["--seq-len", "9000"], "--seq-len 9000 is not in 1 to model.max_seq_len = 8192", "--set"),
        (["--seq-len", "0"], "--seq-len 0", "give a length"),
        (["--micro-batch", "0"], "--micro-batch 0", "1 or more"),
        (["--config", "missing.toml"], "cannot read missing.toml", "give the path"),
    ],
)
def test_mistakes_are_named(argv: list[str], named: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "params", "count", *argv)
    assert named in text and hint in text


def test_a_config_file_without_a_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[modle]\ndim = 640\n", encoding="utf-8")
    assert "has no [model] table" in refused(capsys, "params", "count", "--config", str(file))


# params compare


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "params", "compare")["models"]
    columns = ("name", "documented", "total", "active", "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("MiniMind2-Small", "26M", 25_829_888, 25_829_888, 512, 8, 8, 2, 6400),
        ("MiniMind2", "104M", 104_030_976, 104_030_976, 768, 16, 8, 2, 6400),
        ("MiniMind2-MoE", "145M", 145_029_760, 91_945_600, 640, 8, 8, 2, 6400),
        ("MiniMind2*", "104M", 183_796_736, 183_796_736, 1024, 16, 16, 4, 6400),
        ("MiniMind2-MoE*", "145M", 724_927_488, 454_394_880, 1024, 16, 16, 4, 6400),
        ("GPT-2 Small", "124M", 124_439_808, 124_439_808, 768, 12, 12, 12, 50257),
        ("LLaMA-1 7B", "6.7B", 6_738_415_616, 6_738_415_616, 4096, 32, 32, 32, 32000),
        ("Phi-1.5", "1.3B", 1_418_270_720, 1_418_270_720, 2048, 24, 32, 32, 51200),
    ]


def test_compare_fits_80_columns_and_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "params", "compare")
    assert max(len(line) for line in text.splitlines()) <= 80
    lines = text.splitlines()
    for row in as_json(capsys, "params", "compare")["models"]:
        line = next(line for line in lines if line.startswith(row["name"] + " "))
        figures = (row["total"], row["active"], row["dim"], row["n_layers"], row["n_heads"], row["n_kv_heads"])
        cells = line.removeprefix(row["name"]).split()
        assert [cell.replace(",", "") for cell in cells] == [
            row["documented"],
            *map(str, figures),
            str(row["vocab_size"]),
        ]


# presets


def test_presets_list(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "presets", "list")["presets"]
    assert {row["name"] for row in rows} == set(preset_names())
    text = shown(capsys, "presets", "list")
    assert max(len(line) for line in text.splitlines()) <= 80
    for row in rows:
        assert f"{row['total']:,}" in text and row["title"] in text


def test_presets_show_is_toml_with_sources(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "presets", "show", "moe-1024")
    tables = tomllib.loads(text)
    found = as_json(capsys, "presets", "show", "moe-1024")
    model = {key: "none" if value is None else value for key, value in found["model"].items()}
    assert tables["model"] == model
    assert tables["pretrain"]["train"] == {"batch_size": 32}
    assert tables["pretrain"]["cpu"] == {"train": {"batch_size": 8}}
    assert found["stages"]["pretrain.cpu.train"] == {"batch_size": [8, "preset small"]}
    assert found["sources"]["dim"] == "preset base-1024"
    assert found["sources"]["vocab_size"] == "preset small"
    assert found["sources"]["norm_eps"] == "default"
    assert set(found["sources"]) == set(found["model"])
    assert next(line for line in text.splitlines() if line.startswith("dim = 1024")).endswith("# preset base-1024")


def test_presets_show_what_is_shown_makes_the_same_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in preset_names():
        file = tmp_path / f"{name}.toml"
        file.write_text(shown(capsys, "presets", "show", name), encoding="utf-8")
        found = as_json(capsys, "params", "count", "--config", str(file), "--seq-len", "16")
        assert found["total"] == as_json(capsys, "params", "count", "--preset", name)["total"]


def test_an_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'did you mean "moe"?' in refused(capsys, "presets", "show", "moee")


# Quick


def test_the_json_path_imports_nothing_slow() -> None:
    """`params count --json` answers in a blink: measured by what it imports, which no busy machine changes."""
    code = """
import sys
from mmcli.cli import run
assert run(["params", "count", "--preset", "small", "--json"]) == 0
slow = {"torch", "numpy", "rich", "transformers", "tokenizers", "datasets", "onnx", "onnxruntime", "jinja2"}
sys.stderr.write(" ".join(sorted(slow & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["total"] == 25_829_888
    assert done.stderr == ""


# The guide

GUIDE = (Path(__file__).parents[2] / "docs/guides/params.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [line[len("$ mmcli ") :] for line in GUIDE.splitlines() if line.startswith("$ ")])
def test_the_guide_shows_what_the_command_prints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"$ mmcli {command}\n{shown(capsys, *command.split())}```" in GUIDE
