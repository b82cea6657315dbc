"""Imports go one way: `LEVELS` gives the order of the packages, `INNER` that of the folders and modules inside some of
them, and no modules import each other in a circle, for typing only included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mmcli"
LEVELS = {
    "errors": 0,
    "lock": 0,
    "threads": 0,
    "machine": 0,
    "manifest": 1,
    "files": 2,
    "config": 1,
    "stage": 3,
    "plugins": 3,
    "rewards": 4,
    "run": 3,
    "find": 3,
    "ranks": 2,
    "inputs": 4,
    "text": 5,
    "data": 6,
    "model": 6,
    "generate": 7,
    "train": 8,
    "evaluation": 8,
    "export": 9,
    "stages": 10,
    "runner": 11,
    "housekeeping": 4,
    "scaffold": 4,
    "report": 7,
    "verify": 11,
    "doctor": 11,
    "serve": 11,
    "forecast": 12,
    "testing": 12,
    "cli": 13,
}
# Inside a package: what comes later may import what comes earlier. All that the package holds is named here.
INNER = {
    "data": ["config", "record", "demo", "formats", "records", "sources", "encode", "pack", "preview", "check"],
    "model": [
        *("config", "device", "documents", "grouped", "logps", "cache", "count", "recompute", "ffn", "init", "rotary"),
        *("attention", "moe", "transformer", "formats"),
    ],
    "report": [
        "curves",
        "scale",
        "svg",
        "png",
        "terminal",
        "evaluations",
        "overview",
        "references",
        "reference",
        "lineage",
        "style",
        "page",
        "card",
    ],
    "evaluation": [
        *("engines", "suites", "demo_suite", "scores", "questions", "loss"),
        *("evaluate", "figures", "held_out", "preferences", "keep"),
    ],
}
LIGHT_EVERYWHERE = {
    *(
        "errors",
        "lock",
        "threads",
        "machine",
        "manifest",
        "files",
        "config",
        "stage",
        "plugins",
        "rewards",
        "run",
        "ranks",
        "find",
        "inputs",
    ),
    "housekeeping",
}
HEAVY = {"torch", "datasets", "onnx", "onnxruntime", "transformers", "rich"}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def typing_only(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    found.add(inner.module)
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or layer(path) in LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    own = layer(path)
    for module in imported_modules(path) - typing_only(path):
        parts = module.split(".")
        if parts[0] != "mmcli" or len(parts) == 1:
            continue
        other = parts[1]
        assert other in LEVELS, f"{path} imports {module}, which is in no layer"
        assert other == own or LEVELS[other] < LEVELS[own] or {own, other} <= {"stage", "plugins", "run", "find"}, (
            f"{path} ({own}) imports {module} ({other})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_command_line_prints(path: Path) -> None:
    if layer(path) == "cli":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"print", "sys.exit", "exit", "sys.stdout.write", "sys.stderr.write"}


@pytest.mark.parametrize("name", sorted(LIGHT_EVERYWHERE))
def test_leaves_are_light(name: str) -> None:
    assert not {module.split(".")[0] for module in imported_modules(PACKAGE / f"{name}.py")} & HEAVY


def test_data_and_model_do_not_import_each_other() -> None:
    for own, other in (("data", "model"), ("model", "data")):
        for path in (PACKAGE / own).rglob("*.py"):
            assert not any(m.startswith(f"mmcli.{other}") for m in imported_modules(path)), path


@pytest.mark.parametrize("package", sorted(INNER))
def test_imports_go_down_inside_a_package(package: str) -> None:
    order = INNER[package]
    folder = PACKAGE / package
    inside = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert inside - {"__init__", "__pycache__"} == set(order)
    for path in sorted(folder.rglob("*.py")):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        for module in imports_of(path):
            parts = module.split(".")
            if parts[:2] != ["mmcli", package] or len(parts) < 3 or own == "__init__":
                continue
            assert order.index(parts[2]) <= order.index(own), f"{path.relative_to(PACKAGE)} imports {module}"


def imports_of(path: Path) -> set[str]:
    """Every module of the package that a file imports, in functions and for typing too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner if inner in MODULES else node.module} & MODULES.keys()
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imports_of(path) - {name} for name, path in MODULES.items()}
    reached = {name: _reachable(graph, name) for name in graph}
    circles = {frozenset((one, other)) for one in graph for other in graph[one] if one in reached[other]}
    assert not circles, sorted(map(sorted, circles))


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def test_the_demo_calls_no_other_command() -> None:
    from_cli = {module for module in imported_modules(PACKAGE / "cli" / "demo.py") if module.startswith("mmcli.cli")}
    own = {"mmcli.cli.demo_view", "mmcli.cli.chart"}
    assert from_cli <= {"mmcli.cli.options", "mmcli.cli.console", "mmcli.cli.progress", "mmcli.cli.help", *own}
