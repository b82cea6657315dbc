"""A broken plugin breaks nothing but itself, and says what is wrong in two lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmcli.cli.plugins as command
from mmcli.api import Adapter, RecordKind, Reward, Stage, Suite
from mmcli.cli import run
from mmcli.errors import MmcliError, UserError
from mmcli.plugins import GROUPS, Plugin, installed, load
from mmcli.train.adapters import load_adapter

LOG = "import os; open(os.environ.get('LOADED', os.devnull), 'a').write(__name__ + chr(10))\n"


def stage(
    name: str,
    *,
    field: str = "steps: int = 1",
    config: str = "Config",
    run: str = "json:loads",
    defaults: str = "{}",
    api: int = 1,
) -> str:
    return (
        LOG
        + f"""
from dataclasses import dataclass
from mmcli.stage import Stage

@dataclass(frozen=True, kw_only=True)
class Config:
    {field}

STAGE = Stage(name="{name}", summary="Nothing.", config={config}, run="{run}", defaults={defaults}, api={api})
"""
    )


# name of the stage: (code of its module `p_NAME`, what `mmcli plugins list` says)
BROKEN = {
    "syntax": (LOG + "def f(:\n", "SyntaxError: invalid syntax (p_syntax.py:2)"),
    "missing": (LOG + "import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    "leaves": (LOG + "import sys; sys.exit(7)\n", "SystemExit: 7"),
    "base": (LOG + "raise BaseException('boom')\n", "BaseException: boom"),
    "nothing": (LOG, "AttributeError: module 'p_nothing' has no attribute 'STAGE'"),
    "future": (stage("future", api=99), "needs plugin API 99; this mmcli has 1"),
    "text": (LOG + "STAGE = 'a stage'", "is str (p_text:STAGE), not mmcli.stage.Stage"),
    "alias": (stage("pretrain"), 'calls itself "pretrain"'),
    "plain": (stage("plain", config="dict"), "has a config that is no dataclass: <class 'dict'>"),
    "typo": (stage("typo", field="x: Nowhere = 1"), "NameError: name 'Nowhere' is not defined"),
    "empty": (stage("empty", field="x: int"), 'has a config without a default for "x"'),
    "unknown": (stage("unknown", defaults="{'step': 2}"), 'unknown key "step" (from stage unknown)'),
    "unfit": (stage("unfit", defaults="{'steps': 'x'}"), "steps = 'x' is not a whole number (from stage unfit)"),
    "unlike": (stage("unlike", defaults="[1]"), "AttributeError"),
    "flags": (stage("flags", field="json: bool = False"), "gives --json two meanings"),
}
TAKEN = {"pretrain": "p-taker", "chat": "p-taker"}  # a built-in stage, and a command


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, new_site: Any) -> Any:
    """Every kind of broken plugin, and a good one, at once."""
    site = new_site(tmp_path_factory.mktemp("broken"))
    for name, (code, _) in BROKEN.items():
        site.add_stage(f"p-{name}", name, code)
    site.add("p-taker", {"mmcli.stages": dict.fromkeys(TAKEN, "p_taker:STAGE")}, stage("pretrain"))
    for package in ("twin-one", "twin-two"):
        site.add_stage(package, "twin", stage("twin"))
    site.add_stage("p-good", "good", stage("good") + "print('hello from good')\n")
    site.add("p-adapter", {"mmcli.adapters": {"wrong": "p_adapter:STAGE", "bad-name": "x:y"}}, stage("wrong"))
    folder = site.path / "p_garbled-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: p-garbled\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[mmcli.stages]\nno equals sign\n")
    return site


@pytest.fixture
def here(site: Any, see: Callable[[Any], None]) -> Any:
    see(site)
    return site


def test_help_and_other_commands_work_and_load_no_plugin(site: Any, tmp_path: Path) -> None:
    log = tmp_path / "loaded"
    shown = site.mmcli("--help", LOADED=str(log))
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    for name in BROKEN:
        assert f" {name} " in shown.stdout
        assert f"(from the package p-{name})" in shown.stdout
    assert "(taken by the packages twin-one, twin-two: none runs)" in " ".join(shown.stdout.replace("│", " ").split())
    assert "Train a model from scratch on plain text." in shown.stdout
    assert "p-taker" not in shown.stdout
    other = site.mmcli("config", "show", "pretrain", "--json", LOADED=str(log))
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout)["config"]["model"]["dim"] == 128  # of tiny
    assert not log.exists()


FUTURE = """
from dataclasses import dataclass
from mmcli.api import Adapter, RecordKind, Reward, Stage, Suite

@dataclass(frozen=True)
class Config:
    steps: int = 1

told = {"name": "odd5", "summary": "Nothing.", "api": 99}
stages = Stage(config=Config, run="json:loads", **told)
adapters = Adapter(config=Config, build="json:loads", **told)
records = RecordKind(
    name="odd5", label="", stage="odd5", matches=bool, read=str, texts=list, encode="json:loads", api=99
)
suites = Suite(items="json:loads", judge="json:loads", **told)
rewards = Reward(function="json:loads", **told)
"""
BREAKS = (*("def f(:", "import no_such_module", "raise SystemExit(7)", "raise BaseException('boom')", "x = 1", FUTURE),)


@pytest.fixture(scope="module")
def broken_parts(tmp_path_factory: pytest.TempPathFactory, new_site: Any) -> Any:
    """An entry point of every group in each kind of broken module: names of their own, and names that are taken."""
    site = new_site(tmp_path_factory.mktemp("parts"))
    for number, code in enumerate(BREAKS):
        names = (f"odd{number}", "sft", "demo", "twin")
        values = {group: f"p_parts{number}:{group.partition('.')[2]}" for group in GROUPS}
        site.add(f"p-parts{number}", {group: dict.fromkeys(names, value) for group, value in values.items()}, code)
    return site


@pytest.mark.parametrize(
    "argv",
    [
        *("--help", "runs list", "presets list", "config show sft", "pretrain --help", "sft --help", "chat --help"),
        *(
            "eval --help",
            "data check TEXT",
            "params count",
            "plugins --help",
            "resume --help",
        ),
        *("export --help", "plugins new fine --out NEW", "tokenizer --help", "plan --help"),
    ],
)
def test_every_command_works_beside_broken_parts_of_every_kind(
    broken_parts: Any, see: Callable[[Any], None], capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: str
) -> None:
    see(broken_parts)
    (tmp_path / "text.txt").write_text("The cat sleeps.\n\nThe dog runs.")
    words = argv.replace("TEXT", str(tmp_path / "text.txt")).replace("NEW", str(tmp_path / "new")).split()
    assert run(words) == 0
    assert "boom" not in capsys.readouterr().err


SAID = (
    "SyntaxError: invalid syntax",
    "ModuleNotFoundError: No module named 'no_such_module'",
    *("SystemExit: 7", "BaseException: boom", "AttributeError: module", "needs plugin API 99; this mmcli has 1"),
)


def test_parts_of_every_kind_say_why_they_cannot_be_used(broken_parts: Any, see: Callable[[Any], None]) -> None:
    see(broken_parts)
    classes = {"stage": Stage, "adapter": Adapter, "record kind": RecordKind, "suite": Suite, "reward": Reward}
    own = [plugin for plugin in installed() if plugin.package.startswith("p-parts")]
    assert {plugin.kind for plugin in own} == set(GROUPS.values()) == set(classes)
    for plugin in own:
        with pytest.raises(MmcliError) as caught:
            load(plugin, classes[plugin.kind])
        if plugin.name.startswith("odd"):
            assert SAID[int(plugin.name[-1])] in caught.value.what
        else:
            assert "is also taken by" in caught.value.what or "belongs to mmcli itself" in caught.value.what
        assert plugin.package in f"{caught.value.what} {caught.value.fix}"


def test_plugins_list_says_what_is_wrong_with_each(site: Any) -> None:
    done = site.mmcli("plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    states = {(row["kind"], row["name"], row["package"]): row["state"] for row in json.loads(done.stdout)}
    for name, (_, cause) in BROKEN.items():
        assert cause in states["stage", name, f"p-{name}"]
    for name, package in TAKEN.items():
        assert states["stage", name, package] == f'the name "{name}" belongs to mmcli itself'
    assert states["stage", "twin", "twin-one"] == 'the name "twin" is also taken by twin-two'
    assert states["stage", "twin", "twin-two"] == 'the name "twin" is also taken by twin-one'
    assert states["stage", "good", "p-good"] == "ok"
    assert states["stage", "pretrain", "mmcli"] == "ok"
    assert states["adapter", "wrong", "p-adapter"] == "is Stage (p_adapter:STAGE), not mmcli.stage.Adapter"
    assert "is not made of a-z" in states["adapter", "bad-name", "p-adapter"]
    assert "entry_points.txt cannot be read" in states["?", "?", "p-garbled"]


def test_the_list_fits_80_columns(
    here: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "state", lambda plugin: BROKEN.get(plugin.name, ("", "[ok] " * 30))[1])
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["plugins", "list"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "SystemExit: 7" in shown
    assert "[ok] [ok]" in shown  # what a plugin says is no markup


@pytest.mark.parametrize("name", [*BROKEN, "twin"])
@pytest.mark.parametrize("argv", [("{}", "--help"), ("config", "show", "{}")], ids=["command", "config show"])
def test_a_broken_command_gives_two_lines(
    here: Any, capsys: pytest.CaptureFixture[str], name: str, argv: tuple[str, ...]
) -> None:
    assert run([part.format(name) for part in argv]) == (2 if name == "twin" else 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line[:7] for line in captured.err.splitlines()] == ["error: ", "  fix: "], captured.err
    cause, package = ("is also taken by", "twin-one") if name == "twin" else (BROKEN[name][1], f"p-{name}")
    assert cause in captured.err
    assert package in captured.err or name == "flags"


def test_no_plugin_takes_the_place_of_a_built_in(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "--help"]) == 0
    assert "Train a model from scratch" in capsys.readouterr().out
    assert run(["chat", "--help"]) == 0
    assert "Chat with a model" in capsys.readouterr().out


def test_what_a_plugin_prints_stays_out_of_the_result(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "good", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"config": {"steps": 1}, "sources": {"steps": "default"}}
    assert captured.err == "hello from good\n"


def test_a_broken_adapter_is_named(here: Any) -> None:
    with pytest.raises(MmcliError, match=r'adapter "wrong" of p-adapter 1\.0 is Stage') as caught:
        load_adapter("wrong")
    assert "pip uninstall p-adapter" in caught.value.fix
    with pytest.raises(UserError, match='no adapter "rong"') as unknown:
        load_adapter("rong")
    assert unknown.value.fix == 'did you mean "wrong"?'


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os._exit(5)", "ended its process while loading (exit code 5)"),
        ("import time; time.sleep(600)", "did not load within 2 seconds"),
        ("print(input())", "EOFError: EOF when reading a line"),
        (stage("odd", run="p_odd_work:run"), "its module p_odd_work is missing"),
        (stage("odd", run="p_odd.work:run"), "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_the_list_survives_what_a_plugin_does_to_the_process(
    tmp_path: Path, new_site: Any, see: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.setattr(command, "TIMEOUT_SECONDS", 2.0)
    site = new_site(tmp_path)
    site.add_stage("p-odd", "odd", code)
    see(site)
    (plugin,) = (each for each in installed() if each.package == "p-odd")
    assert said in command.state(plugin)


def test_a_syntax_error_in_the_working_module_is_found_without_running_it(
    tmp_path: Path, new_site: Any, see: Callable[[Any], None]
) -> None:
    site = new_site(tmp_path)
    site.add_stage("p-work", "work", stage("work", run="p_work_inner:run"))
    (tmp_path / "p_work_inner.py").write_text("raise SystemExit(3)\ndef f(:\n")
    see(site)
    plugin = Plugin("stage", "work", "p-work", "1.0", "p_work:STAGE")
    assert "SyntaxError: invalid syntax (p_work_inner.py:2)" in command.state(plugin)


def test_an_older_copy_further_back_does_not_clash(tmp_path: Path, new_site: Any, see: Callable[[Any], None]) -> None:
    for folder, version in (("new", "2.0"), ("old", "1.0")):
        (tmp_path / folder).mkdir()
        new_site(tmp_path / folder).add_stage("p-twice", "twice", stage("twice"), version)
    see(new_site(tmp_path / "old"))
    see(new_site(tmp_path / "new"))
    assert [each.version for each in installed() if each.package == "p-twice"] == ["2.0"]
    assert run(["twice", "--help"]) == 0
