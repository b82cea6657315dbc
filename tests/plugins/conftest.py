"""Packages for tests: the real ones of plugins/, installed, and made-up ones of metadata and one module."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from mmcli.cli import run
from mmcli.plugins import installed

ROOT = Path(__file__).parents[2]


class Site:
    """A folder of installed packages, in the way of `pip install --target`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, package: str, entries: Mapping[str, Mapping[str, str]], code: str = "", version: str = "1.0") -> str:
        """Install a package with one module of its name and these entry points; the module's name."""
        module = package.replace("-", "_")
        (self.path / f"{module}.py").write_text(code, encoding="utf-8")
        info = self.path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = [line for group, names in entries.items() for line in (f"[{group}]", *map(" = ".join, names.items()))]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        return module

    def add_stage(self, package: str, name: str, code: str, version: str = "1.0") -> None:
        module = package.replace("-", "_")
        self.add(package, {"mmcli.stages": {name: f"{module}:STAGE"}}, code, version)

    def mmcli(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run mmcli in a process that sees these packages."""
        path = os.pathsep.join(filter(None, [str(self.path), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run([sys.executable, "-m", "mmcli", *argv], env=variables, capture_output=True, text=True)

    def mmcli_here(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """The same in this very process, which has imported torch already."""
        out, err = io.StringIO(), io.StringIO()
        with self.visible(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(list(argv))
        return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def visible(self) -> Iterator[None]:
        """Let this process see these packages; what it imports of them is forgotten at the end."""
        sys.path.insert(0, str(self.path))
        importlib.invalidate_caches()
        installed.cache_clear()
        try:
            yield
        finally:
            sys.path.remove(str(self.path))
            installed.cache_clear()
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None)).startswith(str(self.path)):
                    del sys.modules[name]


@pytest.fixture(scope="session")
def new_site() -> type[Site]:
    """`new_site(folder)`: a site in a folder that exists."""
    return Site


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The packages of plugins/, built and installed by pip."""
    folder = tmp_path_factory.mktemp("real")
    packages = [str(path.parent) for path in sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q", "--target", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Site(folder)


@pytest.fixture
def see() -> Iterator[Callable[[Site], None]]:
    """Make the packages of a site visible in this process until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda site: stack.enter_context(site.visible())
