"""The Modelfile with which Ollama takes a GGUF file. https://docs.ollama.com/modelfile"""

from __future__ import annotations

from pathlib import Path

from mmcli.files import write_atomic
from mmcli.text.chat import stop_ids
from mmcli.text.template import CHATML
from mmcli.text.tokenizer import Tokenizer

MARK = "# Written by mmcli"
# `template.CHATML` without its tools, in Go's templates: Ollama does not run the Jinja template of a file.
CHATML_IN_GO = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


def write_modelfile(gguf: Path, tokenizer: Tokenizer, context: int) -> Path:
    """Write `NAME.Modelfile` beside `NAME.gguf`, and return its path; one that somebody else wrote is left as it is.

    Args:
        context: of the model, in tokens.
    """
    path = gguf.with_suffix(".Modelfile")
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        return path
    lines = [f"{MARK}: ollama create NAME -f {path.name}", f"FROM ./{gguf.name}"]
    if tokenizer.chat_template == CHATML:
        lines.append(f'TEMPLATE """{CHATML_IN_GO}"""')
    lines.append(f"PARAMETER num_ctx {context}")
    stops = (tokenizer.control_token(id) for id in sorted(stop_ids(tokenizer)))
    lines += [f'PARAMETER stop "{token}"' for token in stops if token is not None and '"' not in token]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
    return path
