"""A plugin's suite of questions: listed, refused where it is broken, and no harm to the others."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcli.api import Suite, evaluate, measure_suite
from mmcli.cli import run
from mmcli.errors import MmcliError, UserError
from mmcli.evaluation import demo_suite
from mmcli.evaluation.suites import PREFERENCES, find_suite, suite_names
from mmcli.plugins import SUITES
from mmcli.run import Run
from mmcli.testing import check_suite, tiny_model

ROOT = Path(__file__).parents[2]


def suite(name: str, *, items: str = "json:loads", judge: str = "json:loads", api: int = 1) -> str:
    return (
        "from mmcli.api import Suite\n"
        f'SUITE = Suite(name="{name}", summary="S.", items="{items}", judge="{judge}", api={api})\n'
    )


# name: (code of its module `p_NAME`, what `mmcli plugins list` says)
BROKEN = {
    "missing": ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    "leaves": ("import sys; sys.exit(7)\n", "SystemExit: 7"),
    "future": (suite("future", api=99), "needs plugin API 99; this mmcli has 1"),
    "text": ("SUITE = 'a suite'", "is str (p_text:SUITE), not mmcli.evaluation.suites.Suite"),
    "alias": (suite("other"), 'calls itself "other"'),
}
ABSENT = {
    "noitems": (suite("noitems", items="p_gone:items"), "its module p_gone is missing"),
    "nojudge": (suite("nojudge", judge="p_gone:judge"), "its module p_gone is missing"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, new_site: Any) -> Any:
    site = new_site(tmp_path_factory.mktemp("suites"))
    for name, (code, _) in {**BROKEN, **ABSENT, "good": (suite("good"), "")}.items():
        site.add(f"p-{name}", {"mmcli.suites": {name: f"p_{name}:SUITE"}}, code)
    for package in ("twin-one", "twin-two"):
        site.add(package, {"mmcli.suites": {"twin": f"{package.replace('-', '_')}:SUITE"}}, suite("twin"))
    site.add("p-taker", {"mmcli.suites": dict.fromkeys(("demo", PREFERENCES), "p_taker:SUITE")}, suite("demo"))
    return site


@pytest.fixture
def here(site: Any, see: Callable[[Any], None]) -> Any:
    see(site)
    return site


def test_plugins_list_says_what_is_wrong_with_each(site: Any) -> None:
    done = site.mmcli("plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    states = {(row["kind"], row["name"], row["package"]): row["state"] for row in json.loads(done.stdout)}
    for name, (_, cause) in {**BROKEN, **ABSENT}.items():
        assert cause in states["suite", name, f"p-{name}"]
    for name in ("demo", PREFERENCES):
        assert states["suite", name, "p-taker"] == f'the name "{name}" belongs to mmcli itself'
    assert states["suite", "twin", "twin-one"] == 'the name "twin" is also taken by twin-two'
    assert states["suite", "good", "p-good"] == "ok"


@pytest.mark.parametrize("name", [*BROKEN, "twin"])
def test_a_broken_suite_gives_two_lines(
    here: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    with pytest.raises(MmcliError) as refused:
        find_suite(name)
    cause, package = ("is also taken by", "twin-one") if name == "twin" else (BROKEN[name][1], f"p-{name}")
    assert cause in refused.value.what and package in f"{refused.value.what} {refused.value.fix}"
    assert isinstance(refused.value, UserError) == (name == "twin")


def test_the_others_are_found(here: Any) -> None:
    assert find_suite("demo") is demo_suite.DEMO
    assert find_suite("good").summary == "S."
    assert suite_names()[0] == "demo" and {"good", "missing", "twin"} <= set(suite_names())
    with pytest.raises(UserError, match='no suite "goood"') as unknown:
        find_suite("goood")
    assert unknown.value.fix == 'did you mean "good"?'
    assert run(["plugins", "list", "--help"]) == 0


def test_the_built_in_suite_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["mmcli.suites"] == {"demo": "mmcli.evaluation.demo_suite:DEMO"}
    assert {"demo", PREFERENCES} == SUITES


MEASURE = """
from mmcli.api import Figure, Suite, UserError
SUITE = Suite(name="odd-one", summary="S.", measure="p_odd_one:measure", version="3")

def measure(request):
    if request.argument == "crash":
        return 1 / 0
    if request.argument != "both":
        raise UserError(f"there is no {request.argument}", "give both")
    count = request.limit or 10
    yield Figure(task="first", name="acc", value=0.25, error=0.0125, questions=count)
    yield Figure(task="second", name="perplexity", value=12.3456, format=".2f")
"""


@pytest.fixture
def measured(tmp_path: Path, new_site: Any, see: Callable[[Any], None]) -> Path:
    """The folder of a run, beside a suite that measures in its own way."""
    (tmp_path / "site").mkdir()
    site = new_site(tmp_path / "site")
    site.add("p-odd-one", {"mmcli.suites": {"odd-one": "p_odd_one:SUITE"}}, MEASURE)
    see(site)
    made = Run.create(tmp_path / "runs", "sft", "small")
    tiny_model(made.model)
    made.update(state="finished")
    return tmp_path / "runs"


def test_a_suite_that_measures_gets_its_argument_and_is_shown_and_kept(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", "1", "--suite", "odd-one:both", "--runs-dir", str(measured)]
    assert run([*argv, "--limit", "4"]) == 0
    shown = capsys.readouterr().out
    assert "first" in shown and "25.0% ± 1.2%" in shown and "12.35" in shown
    assert run([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["suite"], document["version"], document["limit"]) == ("odd-one:both", "3", None)
    assert [(each["task"], each["questions"]) for each in document["figures"]] == [("first", 10), ("second", None)]
    assert run(["eval", "1", "1", "--suite", "odd-one:both", "--suite", "preferences", *argv[4:]]) == 0
    assert "second perplexity" in " ".join(capsys.readouterr().out.split())
    assert run(["runs", "show", "1", "--runs-dir", str(measured)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "odd-one:both v3 first acc 25.0% ± 1.2%" in shown and "at most 4 of a family" in shown
    assert measure_suite(measured / "0001-sft-small", "odd-one:both", limit=2).figures[0].questions == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--suite", "odd-one:none"], "error: there is no none"),
        (["--suite", "odd-one:crash"], 'error: the suite "odd-one" failed: ZeroDivisionError'),
        (["--suite", "odd-one:both", "--show", "wrong"], "--show is for suites of questions"),
        (["--suite", "odd-one:both", "--shuffle-answers"], "--shuffle-answers is for suites of questions"),
        (["--suite", "demo:both"], 'the suite demo takes no argument, and got "both"'),
        (["--suite", "odd-two:both"], 'there is no suite "odd-two"'),
        (["--suite", "odd-one:both", "--limit", "0"], "--limit 0 leaves nothing"),
    ],
)
def test_what_a_measuring_suite_cannot_do_gives_two_lines(
    measured: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert run(["eval", "1", *argv, "--runs-dir", str(measured)]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err
    assert [line[:7] for line in captured.err.splitlines()][-2:] == ["error: ", "  fix: "], captured.err


def test_each_way_of_asking_refuses_the_other(measured: Path, tmp_path: Path) -> None:
    model = measured / "0001-sft-small"
    with pytest.raises(UserError, match="is measured, not asked"):
        evaluate(model, "odd-one:both")
    with pytest.raises(UserError, match="is asked, not measured"):
        measure_suite(model, "demo")
    assert [check.problem for check in check_suite("odd-one", folder=tmp_path / "check")] == ["", ""]
    for wrong in ({}, {"items": "a:b"}, {"measure": "a:b", "items": "a:b"}):
        with pytest.raises(ValueError, match="items and a judge, or a measure"):
            Suite(name="x", summary="", **wrong)
