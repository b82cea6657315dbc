"""What `mmcli demo` says: what it is going to do, and in the end what it made and how to go on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from mmcli.generate.engine import Engine
    from mmcli.report.scale import Chart
    from mmcli.run import ModelRef
    from mmcli.text.tokenizer import Tokenizer

PARTS = ("tokenizer", "pretrain", "sft", "dpo", "ONNX export", "held-out questions")
# (title, system tools?, what the person asks)
ASKED = (
    ("a story", False, "Tell me a short story about Lily."),
    ("一个故事", False, "讲一个小明的小故事吧。"),
    ("a sum", False, "How much is 7 plus 6?"),
    ("a fact, told in the text and never asked", False, "小梅住在哪里？"),
    ("a tool call, which is run", True, "What is 23 * 47?"),
)
MOST_TOKENS = 160  # of a reply
PRODUCT = re.compile(r"\s*(\d{1,6})\s*([-+*])\s*(\d{1,6})\s*")


@dataclass(frozen=True)
class Said:
    """A question to the model and its replies: a tool call and its result come between."""

    title: str
    prompt: str
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What a demo made."""

    runs: Mapping[str, str]  # stage -> name
    scores: Mapping[str, Mapping[str, Any]]  # model -> {"score", "interval", "questions", "families"}
    preferred: Mapping[str, float]  # model -> share of held-out pairs whose better reply is likelier
    said: Sequence[Said]
    parameters: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "said": [asdict(each) for each in self.said]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Facts:
        said = [Said(each["title"], each["prompt"], tuple(each["replies"])) for each in value["said"]]
        return cls(**{**value, "said": said})


def announcement(seconds: float, parameters: int) -> str:
    """What is going to happen, and how long it takes."""
    from mmcli.train.config import duration

    count = f"{parameters / 1e6:.1f}M"
    return (
        f"mmcli demo: a model of {count} parameters, trained from zero on the built-in\n"
        f"corpus in English and Chinese: {', '.join(PARTS)}.\n"
        f"About {duration(30 * max(1, round(seconds / 30)))} on this machine. Ctrl-C saves; the same command goes on.\n"
    )


def converse(model: ModelRef) -> list[Said]:
    """What the model replies (greedily) to what is shown of it."""
    from mmcli.data.demo.skills import CALCULATOR
    from mmcli.evaluation.engines import load_engine
    from mmcli.text.tokenizer import Tokenizer

    engine, tokenizer = load_engine(model), Tokenizer.load(model.path)
    said = []
    for title, with_tools, prompt in ASKED:
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        tools = [CALCULATOR] if with_tools else None
        replies = [_reply(engine, tokenizer, messages, tools)]
        if with_tools and (result := calculate(replies[0])) is not None:
            call = json.loads(replies[0].removeprefix("<tool_call>").removesuffix("</tool_call>"))
            asked = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
            messages += [asked, {"role": "tool", "content": result}]
            replies += [f"calculator: {result}", _reply(engine, tokenizer, messages, tools)]
        said.append(Said(title, prompt, tuple(replies)))
    return said


def _reply(
    engine: Engine, tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    from mmcli.generate.generate import generate
    from mmcli.generate.reply import read_reply
    from mmcli.generate.sampler import SamplingConfig
    from mmcli.text.chat import stop_ids
    from mmcli.text.prompt import encode_prompt

    ids = encode_prompt(tokenizer, messages, tools=tools)
    greedy = SamplingConfig(temperature=0.0, repetition_penalty=1.0)
    written = list(generate(engine, 0, ids, greedy, max_new_tokens=MOST_TOKENS, stop_ids=stop_ids(tokenizer)))
    return str(read_reply(tokenizer, written)["content"]).strip()


def calculate(reply: str) -> str | None:
    """What the calculator gives for a reply that is a call of it with a sum, difference or product; else None."""
    match = re.fullmatch(r"<tool_call>\s*(\{.*\})\s*</tool_call>", reply, re.DOTALL)
    try:
        found = PRODUCT.fullmatch(json.loads(match[1])["arguments"]["expression"]) if match else None
    except (ValueError, KeyError, TypeError):
        return None
    if found is None:
        return None
    a, b = int(found[1]), int(found[3])
    return str(a + b if found[2] == "+" else a - b if found[2] == "-" else a * b)


def show(facts: Facts, runs_dir: Path) -> None:
    """What was made, and the commands that go on from here, as they can be typed."""
    from mmcli.cli.console import out
    from mmcli.find import find_run
    from mmcli.report.overview import plot_runs

    chart = plot_runs([find_run(facts.runs["pretrain"], runs_dir)], None, "steps")
    draw(
        out(), facts, chart, _program(), "" if runs_dir == Path("runs") else f" --runs-dir {shlex.quote(str(runs_dir))}"
    )


def draw(console: Console, facts: Facts, chart: Chart, program: str = "mmcli", where: str = "") -> None:
    """The loss, the table of scores, what the model says, and the next commands."""
    from rich.table import Table

    from mmcli.cli.chart import print_chart
    from mmcli.cli.progress import one_line
    from mmcli.train.config import duration

    console.print("\nthe loss of pretraining", style="bold")
    print_chart(chart, None, height=10, console=console)
    table = Table(box=None, pad_edge=False)
    table.add_column("\ncorrect answers")
    for name in facts.scores:
        table.add_column(name.replace(", ", "\n") if "," in name else f"\n{name}", justify="right", no_wrap=True)
    for family in next(iter(facts.scores.values()))["families"]:
        table.add_row(family, *(f"{score['families'][family]:.0%}" for score in facts.scores.values()))
    table.add_row("all", *(f"{score['score']:.1%}" for score in facts.scores.values()), style="bold")
    if facts.preferred:
        shown = (f"{facts.preferred[name]:.0%}" if name in facts.preferred else "" for name in facts.scores)
        table.add_row("better reply likelier", *shown)
    console.print(table, soft_wrap=False)
    for each in facts.said:
        console.print(f"\n{each.title}", style="bold")
        console.print(f"> {each.prompt}", markup=False)
        for reply in each.replies:
            console.print(one_line(reply, 400), markup=False)
    last = list(facts.scores.values())[-1]
    made = f"your own model: {facts.parameters / 1e6:.1f}M parameters, {duration(facts.seconds)}"
    console.print(f"\n{made}, {last['score']:.0%} of {last['questions']:,} questions", style="bold")
    number = facts.runs["dpo"].split("-")[0].lstrip("0")
    for what, command in (
        ("talk to it", "chat"),
        ("see what it gets wrong", "eval --show wrong"),
        ("read its report", f"runs report {number}"),
    ):
        console.print(f"{what}: {program} {command}{where}", markup=False, soft_wrap=True)


def _program() -> str:
    """How a person calls mmcli: `make demo` has it in a folder of its own, which is not on PATH."""
    here = Path(sys.argv[0])
    return "mmcli" if shutil.which("mmcli") or here.name != "mmcli" else shlex.quote(str(here))
