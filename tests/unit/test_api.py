"""mmcli.api: lazy, complete, and all that plugins, the guide and the benchmarks import."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from mmcli import api
from mmcli.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", api.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(api, name) is not None
    assert name in dir(api)


def test_what_type_checkers_see_is_what_there_is() -> None:
    tree = ast.parse(Path(api.__file__).read_text(encoding="utf-8"))
    typed = {}
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in node.body:
                assert isinstance(inner, ast.ImportFrom)
                typed |= {alias.name: inner.module for alias in inner.names if alias.name == alias.asname}
    assert typed == api._MODULE_OF


def test_a_name_outside_the_interface_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"mmcli\.api has no load_function"):
        _ = api.load_function


def imported(code: str) -> set[str]:
    """The modules of mmcli that some code imports."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {module for module in found if module == "mmcli" or module.startswith("mmcli.")}


SCRIPTS = [*sorted((ROOT / "benchmarks").glob("**/*.py")), *sorted((ROOT / "plugins").glob("*/mmcli_*/**/*.py"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_plugins_and_benchmarks_import_the_interface_alone(path: Path) -> None:
    assert imported(path.read_text(encoding="utf-8")) <= {"mmcli.api"}


@pytest.mark.parametrize("guide", ["plugins.md", "python.md"])
def test_the_guides_import_the_interface_alone(guide: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides" / guide).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert imported(block) <= {"mmcli.api", "mmcli.testing"}


def test_a_model_configuration_by_preset() -> None:
    assert api.model_config("small").dim == 512
    assert api.model_config("small", {"dim": 640}).dim == 640
    with pytest.raises(UserError, match="widht"):
        api.model_config("small", {"widht": 640})


def test_a_run_from_python(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    lines = [f"Line {i}: the {('cat', 'dog', 'owl')[i % 3]} sleeps in house {i % 17}." for i in range(200)]
    text.write_text("\n\n".join(lines), encoding="utf-8")
    shape: dict[str, Any] = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 64}
    values = {
        "model": shape,
        "data.sources": [str(text)],
        "data.seq_len": 32,
        "train.steps": 3,
        "train.batch_size": 4,
        "train.device": "cpu",
    }
    runs_dir = tmp_path / "runs"
    run = api.run_stage("pretrain", values, preset="tiny", name="py", runs_dir=runs_dir)
    assert run.info()["state"] == "finished" and run.name.endswith("-pretrain-py")
    assert run.info()["steps_done"] == 3
    with pytest.raises(UserError, match="is finished"):
        api.resume_run(run)
    model = api.load(run, max_len=48)
    assert not model.chat
    greedy = api.SamplingConfig(temperature=0, repetition_penalty=1)
    said = model.generate("Line 3:", max_new_tokens=8, sampling=greedy)
    assert said == "".join(model.stream("Line 3:", max_new_tokens=8, sampling=greedy))
    assert said == api.load("latest", max_len=48, runs_dir=runs_dir).generate(
        "Line 3:", max_new_tokens=8, sampling=greedy
    )
    loss = api.measure_loss(run, [str(text)])
    assert loss.loss.tokens > 1000 and 0 < loss.loss.loss < 10
    exported = api.export_onnx(run)
    assert exported.folder == run.path / "export" / "onnx-fp32"
    onnx = api.load(exported.folder, backend="onnx", max_len=48)
    assert onnx.generate("Line 3:", max_new_tokens=8, sampling=greedy) == said
    assert (api.export_hf(run).folder / "config.json").is_file()
    assert api.export_gguf(run).path == run.path / "export" / f"{run.name}-f16.gguf"
    score = api.evaluate(run, limit=1)
    assert score.total.total > 0
    with pytest.raises(UserError, match="trian"):
        api.run_stage("pretrain", {"trian.steps": 3}, preset="tiny", runs_dir=runs_dir)


def test_every_home_is_a_module() -> None:
    for module in api._HOMES:
        importlib.import_module(module)
