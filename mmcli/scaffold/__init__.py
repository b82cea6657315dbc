"""The beginning of a plugin: an installable package of a few files, whose tests pass.

The files lie beside this one with `.txt` after their names; `${name}` and the like stand for what a person chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from mmcli.errors import UserError, did_you_mean
from mmcli.plugins import Plugin, conflict, installed

HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Kind:
    """What packages of a kind have in common."""

    group: str  # of their entry point
    summary: str
    command: str  # to try it
    files: dict[str, str]  # of the package -> of this folder


_SINGLE = {"${module}.py": "module.py.txt", "tests/test_${word}.py": "test.py.txt"}
_KINDS = {
    "stage": _Kind(
        "mmcli.stages",
        "mmcli ${name}: pretraining with the focal loss.",
        "mmcli ${name} --preset tiny --steps 100",
        _SINGLE,
    ),
    "adapter": _Kind(
        "mmcli.adapters",
        "mmcli sft --adapter ${name}: scales for the features of linear layers.",
        "mmcli sft --adapter ${name} --adapter-set targets=k,v --lr 1e-2",
        {
            "${module}/__init__.py": "module.py.txt",
            "${module}/transform.py": "transform.py.txt",
            "tests/test_${word}.py": "test.py.txt",
        },
    ),
    "suite": _Kind(
        "mmcli.suites", "mmcli eval --suite ${name}: colours of things.", "mmcli eval --suite ${name}", _SINGLE
    ),
    "reward": _Kind(
        "mmcli.rewards", "mmcli grpo --reward ${name}: short replies.", "mmcli grpo --reward ${name}", _SINGLE
    ),
}
KINDS = tuple(_KINDS)


def package_name(name: str) -> str:
    """The name of the package that a new plugin lies in."""
    return f"mmcli-{name.replace('_', '-')}"


def write_package(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a package with a plugin of this kind and name; its files.

    Raises:
        UserError: no such kind, a name that no plugin can have or that is taken, or a folder that is not empty.
    """
    if kind not in _KINDS:
        raise UserError(f'there is no kind "{kind}" to begin', did_you_mean(kind, list(KINDS)))
    _check_name(kind, name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and nothing is overwritten", "give another folder with --out")
    chosen = _KINDS[kind]
    word = name.replace("-", "_")  # as Python writes it
    words = {
        **{"name": name, "word": word, "NAME": word.upper(), "Name": word.title().replace("_", "")},
        **{"package": package_name(name), "module": f"mmcli_{word}", "group": chosen.group},
    }
    words |= {key: Template(getattr(chosen, key)).substitute(words) for key in ("summary", "command")}
    sources = {name: HERE / f"{name}.txt" for name in ("pyproject.toml", "README.md")}
    sources |= {target: HERE / kind / source for target, source in chosen.files.items()}
    written = []
    for target, source in sources.items():
        path = folder / Template(target).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(source.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        written.append(path)
    return written


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that a plugin of this kind cannot have."""
    clash = conflict(Plugin(kind, name, package_name(name), "", ""))
    others = [each.package for each in installed() if (each.kind, each.name) == (kind, name) and not each.built_in]
    if others:
        raise UserError(f'the name "{name}" is taken by {others[0]}', "choose another name")
    if clash is not None:
        raise UserError(clash.cause, "choose another name, such as my_stage")
