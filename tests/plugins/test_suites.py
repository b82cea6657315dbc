"""A plugin's suite of questions: listed, refused where it is broken, and no harm to the others."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcli.cli import run
from mmcli.errors import MmcliError, UserError
from mmcli.evaluation import demo_suite
from mmcli.evaluation.suites import PREFERENCES, find_suite, suite_names
from mmcli.plugins import SUITES

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
