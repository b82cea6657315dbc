"""The model card of a run: README.md of a Hugging Face folder, with what the model was made of and what it reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcli.config import Layer, resolve
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.count import count_parameters
from mmcli.report.curves import is_number, last_values, read_lines
from mmcli.report.evaluations import describe_evaluation, read_evaluations
from mmcli.report.lineage import lineage
from mmcli.report.overview import plot_runs, shown_metrics
from mmcli.report.svg import svg
from mmcli.run import RESOLVED, Run

CARD, LOSS = "README.md", "loss.svg"
LIMITS = (
    "A model of this size writes fluently and does not know the world: it invents names, numbers and facts, and it is"
    " only as good as the data above. It was not made safe for use by others."
)


def model_card(run: Run, *, model_type: str, license: str | None = None) -> dict[str, bytes]:
    """The files of the card, by name: the text, and the curve of the loss where the run has one.

    Args:
        model_type: of config.json; "minimind" and other types that transformers lacks are described without it.
        license: an identifier of the Hugging Face hub, such as apache-2.0; None: the card states none.
    """
    drawn = _loss(run)
    known = model_type != "minimind"
    parts = [
        _front(known, license),
        f"# {run.name.partition('-')[2] or run.name}\n\n{_facts(run, model_type)}",
        "## How it was made\n\n" + _table(("stage", "data", "tokens", "steps", "in the end"), _made(run)),
        _section("## What it answers", _evaluations(run)),
        _section("## Loss", f"![training and held-out loss]({LOSS})" if drawn else ""),
        "## Use\n\n" + _use(known),
        "## Limits\n\n" + LIMITS,
        "" if license else "## Licence\n\nNone is stated: ask the author before you use it.",
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return {CARD: text.encode(), **({LOSS: drawn.encode()} if drawn else {})}


def _front(known: bool, license: str | None) -> str:
    """The head that the hub reads."""
    fields = [f"license: {license}"] if license else []
    fields += ["library_name: transformers"] if known else []
    return "\n".join(["---", *fields, "pipeline_tag: text-generation", "tags:", "- mmcli", "---"])


def _facts(run: Run, model_type: str) -> str:
    shape = _model(run)
    if shape is None:
        return f"A language model (`{model_type}`), trained from zero with mmcli."
    count = count_parameters(shape)
    size = f"{count.total:,} parameters" + (f", {count.active:,} active for a token" if shape.use_moe else "")
    return (
        f"A language model (`{model_type}`) with {size}: {shape.n_layers} layers, {shape.dim} wide, a vocabulary of"
        f" {shape.vocab_size:,} tokens, a context of {shape.max_seq_len:,}. Trained from zero with mmcli."
    )


def _model(run: Run) -> ModelConfig | None:
    for each in reversed(lineage(run)):
        try:
            shape = each.run.read_config(RESOLVED).get("model") if each.run is not None else None
            if shape:
                return resolve(ModelConfig, [Layer(RESOLVED, shape)]).config
        except UserError:
            continue
    return None


def _made(run: Run) -> list[list[str]]:
    """A row of each training that led here."""
    rows = []
    for each in lineage(run):
        if each.run is None or each.run.stage == "tokenizer":
            continue
        info, last, shown = each.run.info(), last_values(read_lines(each.run.metrics)), shown_metrics(each.run)
        rows.append(
            [
                each.run.stage,
                _data(each.run),
                f"{info['tokens']:,}" if is_number(info.get("tokens")) else "",
                f"{info['steps_done']:,}" if is_number(info.get("steps_done")) else "",
                ", ".join(metric.text(last[metric.name]) for metric in shown if is_number(last.get(metric.name))),
            ]
        )
    return rows


def _data(run: Run) -> str:
    """What it was trained on, without the folders of the machine."""
    try:
        found: Any = run.read_config("config.toml").get("data", {}).get("sources")
    except UserError:
        return ""
    names = found if isinstance(found, list) else []
    shown = [
        str(name) if str(name).startswith("hf:") else str(name).replace("\\", "/").rpartition("/")[2] for name in names
    ]
    return ", ".join(shown) or "the built-in corpus"


def _evaluations(run: Run) -> str:
    found = [describe_evaluation(run, result) for result in read_evaluations(run)]
    rows = [[each[key] for key in ("name", "score", "families", "notes")] for each in found]
    return _table(("suite", "score (95 % interval)", "families", "measured"), rows) if rows else ""


def _loss(run: Run) -> str:
    """The curves as SVG; empty where there are none."""
    try:
        return svg(plot_runs([run]))
    except UserError:
        return ""


def _use(known: bool) -> str:
    command = "```sh\nmmcli chat FOLDER\n```"
    if not known:
        return command
    return (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'messages = [{"role": "user", "content": "Who are you?"}]\n'
        "asked = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        "print(tokenizer.decode(model.generate(**asked, max_new_tokens=64)[0]))\n"
        f"```\n\nor with mmcli:\n\n{command}"
    )


def _section(title: str, content: str) -> str:
    return f"{title}\n\n{content}" if content else ""


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
