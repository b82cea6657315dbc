"""The Python program of docs/guides/serve.md runs against a server as it stands there, but for the port."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "serve.md"


def test_the_program_of_the_guide_runs(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    [program] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert "127.0.0.1:8000" in program
    exec(program.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), {})
    assert re.search(r'\{"kind": "(gas|water)"\}$', capsys.readouterr().out.strip())
