"""The picture of the README is what the demo shows today of what it kept."""

from __future__ import annotations

import importlib.util
import xml.dom.minidom
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "docs" / "images"


def maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_picture", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_from_what_is_kept() -> None:
    drawn = maker().picture()
    assert drawn == (FOLDER / "demo.svg").read_text(encoding="utf-8"), "draw it again: python docs/images/make.py"
    xml.dom.minidom.parseString(drawn)
    assert "url(http" not in drawn and "href=" not in drawn  # nothing comes from the network
