"""`mmcli export web`: the exported model, its tokenizer, the engine and the page, in a folder for any static server.

The model lies as transformers.js looks for it too: config.json and tokenizer.json at the top, the graph in `onnx/`.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.export.locate import RECORD_FILE, Dtype, graph_file, read_record, refuse_foreign
from mmcli.export.onnx_export import fill_folder, plan_export
from mmcli.export.proof import Proof
from mmcli.export.web.runtime import copy_runtime, refuse_unclear
from mmcli.export.web.tokenizer_form import description, refuse_unreadable
from mmcli.export.web.turns import Turns, find_turns
from mmcli.files import atomic_folder, write_json
from mmcli.generate.conversation import is_chat_model
from mmcli.generate.sampler import SamplingConfig
from mmcli.model.formats.hf_config import read_model_config
from mmcli.stage import Reporter, Silent
from mmcli.text.chat import stop_ids
from mmcli.text.tokenizer import Tokenizer

FORMAT = "web"
PAGE = Path(__file__).parents[2] / "serve" / "page" / "index.html"
ENGINE = Path(__file__).parent / "engine"
SERVER_MARK, BROWSER_MARK = (f'<meta name="mmcli-backend" content="{kind}">' for kind in ("server", "browser"))
MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class WebExport:
    """A folder that a browser runs, its graph verified against torch."""

    folder: Path
    proof: Proof
    graph_bytes: int
    bytes: int  # of all files


def export_web(
    source: Path,
    out: Path,
    *,
    name: str,
    dtype: Dtype = "fp32",
    stage: str | None = None,
    runtime: Path | None = None,
    download: bool = False,
    report: Reporter | None = None,
) -> WebExport:
    """Write the model in `source`, the page and all that runs it into `out`, which is replaced if it is such an export.

    Args:
        name: the model's name on the page.
        stage: of the run that the model came from.
        runtime: folder of the npm package onnxruntime-web.
        download: fetch that package.

    Raises:
        UserError: no model there, a tokenizer or chat template that the browser's engine cannot follow, a model too
            large for a browser, no source of the runtime, or `out` is something else.
        MmcliError: the export differs from torch, or the runtime cannot be fetched; nothing is left of it.
    """
    report = report or Silent()
    refuse_unclear(runtime, download=download)
    refuse_foreign(out, FORMAT)
    tokenizer = Tokenizer.load(source)
    refuse_unreadable(tokenizer)
    turns = find_turns(tokenizer) if is_chat_model(source, tokenizer, stage=stage) else None
    plan = plan_export(source, dtype=dtype, target="web")
    with atomic_folder(out) as beside:
        made = fill_folder(beside, plan, out=out, force=False, stage=stage, report=report)
        write_json(beside / RECORD_FILE, {**read_record(beside), "format": FORMAT})
        graph = graph_file(beside).relative_to(beside).as_posix()
        copy_runtime(runtime, download=download, into=beside / "runtime", report=report)
        shutil.copytree(ENGINE, beside / "engine")
        (beside / "index.html").write_text(browser_page(), encoding="utf-8")
        write_json(beside / "web.json", web_config(source, tokenizer, turns, name=name, graph=graph, size=made.bytes))
        size = sum(path.stat().st_size for path in beside.rglob("*") if path.is_file())
    return WebExport(out, made.proof, made.bytes, size)


def browser_page() -> str:
    """The chat page, set to run the model of its own folder."""
    page = PAGE.read_text(encoding="utf-8")
    assert SERVER_MARK in page
    return page.replace(SERVER_MARK, BROWSER_MARK)


def web_config(
    source: Path, tokenizer: Tokenizer, turns: Turns | None, *, name: str, graph: str, size: int
) -> dict[str, Any]:
    """What engine/worker.js reads first.

    Args:
        turns: of a chat model; None for one that only continues a text.
        graph: its path in the folder.
        size: of the graph in bytes.
    """
    sampling = {key: value for key, value in dataclasses.asdict(SamplingConfig()).items() if key != "seed"}
    return {
        "name": name,
        "graph": graph,
        "bytes": size,
        "context": read_model_config(source).max_seq_len,
        "bos": tokenizer.bos_id,
        "stop": sorted(stop_ids(tokenizer)),
        "chat": None if turns is None else dataclasses.asdict(turns),
        "sampling": {**sampling, "max_tokens": MAX_NEW_TOKENS},
        **description(tokenizer),
    }
