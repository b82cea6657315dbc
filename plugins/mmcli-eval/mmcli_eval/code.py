"""`mmcli eval --suite code:FILE.jsonl`: programs that a model writes, run against their tests (pass@k).

A line of the file is a problem, in the shape of HumanEval (`prompt`, `entry_point`, `test`) or of MBPP (`text`,
`test_list`). pass@k is the share of problems of which one of k programs passes, by the unbiased estimator of Chen et
al. 2021 (arXiv:2107.03374, equation 1).
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.api import (
    ConfigError,
    Figure,
    SamplingConfig,
    SuiteRequest,
    Tokenizer,
    UserError,
    encode_chat,
    generate_batch,
    is_chat_model,
    load_engine,
    option,
    read_reply,
    stop_ids,
)
from mmcli_eval.argument import read_argument
from mmcli_eval.sandbox import Limits, protection, run_program

EXAMPLE = "code:HumanEval.jsonl,samples=20"
AT = (1, 10, 100)  # the k of pass@k that are shown, as far as there are samples
SLOTS = 32
WORKERS = 4  # programs that run at a time
MAX_NEW_TOKENS = 512
AFTER_A_FUNCTION = ("\nclass ", "\ndef ", "\n#", "\n@", "\nprint(", "\nif ", "\n```", "\nassert ")  # Chen et al. 2021
AFTER_A_PROGRAM = ("\n```", "\nassert ", "\nprint(", "\nif __name__", '\n"""')
_BLOCK = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """What may follow the file."""

    samples: int = option(1, "programs of each problem")
    temperature: float | None = option(None, "of the sampler; default: greedy for one sample, 0.8 for more")
    seconds: float = option(5.0, "CPU seconds of a program")
    memory: int = option(512, "MB of a program")
    unsandboxed: bool = option(False, "run programs although the system cannot keep them from your files")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError("samples", f"samples = {self.samples} is below 1", "give 1 or more")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            what = f"temperature = {self.temperature} is not 0 or more"
            raise ConfigError("temperature", what, "give a number such as 0.8")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError("temperature", "with temperature = 0 all samples are equal", "give samples=1, or 0.8")
        if not 0 < self.seconds <= 3600:
            raise ConfigError("seconds", f"seconds = {self.seconds} is not above 0", "give seconds such as 5")
        if not 64 <= self.memory <= 10**6:
            raise ConfigError("memory", f"memory = {self.memory} MB is not 64 or more", "give MB such as 512")

    @property
    def sampling(self) -> SamplingConfig:
        """How programs are drawn."""
        temperature = (0.0 if self.samples == 1 else 0.8) if self.temperature is None else self.temperature
        return SamplingConfig(temperature=temperature, top_p=0.95, top_k=0, repetition_penalty=1.0)


@dataclass(frozen=True)
class Problem:
    """What a program has to do.

    Attributes:
        text: the task in words; "" where the code says it.
        code: how the program begins: imports, the head of the function and its docstring; "" for nothing.
        tests: a program that fails unless the one before it is right.
    """

    id: str
    text: str
    code: str
    tests: str


def measure(request: SuiteRequest) -> list[Figure]:
    """pass@k for k = 1, 10, 100, as far as there are samples.

    Raises:
        UserError: a file that cannot be used, a wrong setting, or a system that cannot hold programs.
    """
    names, config = read_argument("code", request.argument, CodeConfig, EXAMPLE)
    if len(names) > 1:
        raise UserError(f"--suite code takes one file, and got {' and '.join(names)}", "give several --suite")
    limits = Limits(config.seconds, config.memory, files=not config.unsandboxed)
    held = protection(limits)
    problems = read_problems(Path(names[0]))[: request.limit]
    request.report.note(f"{request.model.label}: {len(problems):,} problems, {config.samples} programs each; {held}")
    programs = write_programs(request, problems, config)
    passed = [0] * len(problems)
    with ThreadPoolExecutor(WORKERS) as pool:
        tested = [f"{program}\n{problems[number].tests}" for number, program in programs]
        outcomes = pool.map(lambda program: run_program(program, limits), tested)
        for done, ((number, _), outcome) in enumerate(zip(programs, outcomes, strict=True), 1):
            passed[number] += outcome.passed
            request.report.progress("programs", done, len(programs), "run")
    return figures(passed, config.samples)


def figures(passed: Sequence[int], samples: int) -> list[Figure]:
    """pass@k with its standard error over the problems.

    Args:
        passed: of each problem, how many of its `samples` programs passed.
    """
    found = []
    for k in sorted({*(k for k in AT if k <= samples), samples}):
        values = [pass_at_k(samples, count, k) for count in passed]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        value = statistics.fmean(values)
        found.append(Figure(task="", name=f"pass@{k}", value=value, error=error, questions=len(passed)))
    return found


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k programs passes, of which c of n passed: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, equation 1, as the product that stays in range.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"{c} of {n} passed, k = {k}")
    return 1.0 if n - c < k else 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def read_problems(file: Path) -> list[Problem]:
    """The problems of a JSONL file.

    Raises:
        UserError: it cannot be read, or a line is no problem.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{file}: {why}", "name a JSONL file of problems, such as HumanEval.jsonl") from None
    problems = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                problems.append(_read_problem(json.loads(line), number))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                why = f"no field {error}" if isinstance(error, KeyError) else str(error)
                what = f"{file}:{number} is no problem: {why}"
                raise UserError(what, "give prompt, entry_point and test, or text and test_list") from None
    if not problems:
        raise UserError(f"{file} has no problem", "give a JSON object a line")
    return problems


def _read_problem(value: Mapping[str, Any], number: int) -> Problem:
    if not isinstance(value, Mapping):
        raise TypeError("it is no JSON object")
    id = str(value.get("task_id", number))
    if "test_list" in value:
        setup = str(value.get("test_setup_code") or "\n".join(value.get("test_imports") or ()))
        tests = [str(test) for test in value["test_list"]]
        if not tests:
            raise ValueError("test_list is empty")
        words = value["text"] if "text" in value else value["prompt"]
        return Problem(id, f"{words}\nIt has to pass this test:\n{tests[0]}", "", "\n".join([setup, *tests]))
    check = f"{value['test']}\ncheck({value['entry_point']})"
    return Problem(id, "", str(value["prompt"]), check)


def write_programs(request: SuiteRequest, problems: Sequence[Problem], config: CodeConfig) -> list[tuple[int, str]]:
    """(number of the problem, program) of every sample."""
    ref = request.model
    tokenizer = Tokenizer.load(ref.path)
    chat = is_chat_model(ref.path, tokenizer, stage=ref.stage)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    if chat:
        asked = [[{"role": "user", "content": _question(each)}] for each in problems]
        prompts = [encode_chat(tokenizer, messages, add_generation_prompt=True).ids for messages in asked]
    else:
        prompts = [[*bos, *tokenizer.encode_text(_opening(each))] for each in problems]
    engine = load_engine(ref, request.backend, slots=SLOTS, device=request.device, report=request.report)
    programs = []
    count = min(request.max_new_tokens or MAX_NEW_TOKENS, engine.max_len)
    for each in generate_batch(
        engine, prompts, config.sampling, max_new_tokens=count, stop_ids=stop_ids(tokenizer), n=config.samples
    ):
        problem = problems[each.prompt]
        if chat:
            program = program_of_reply(str(read_reply(tokenizer, each.ids)["content"]), problem)
        else:
            program = program_of_text(tokenizer.decode(each.ids), problem)
        programs.append((each.prompt, program))
        request.report.progress("programs", len(programs), len(problems) * config.samples, "written")
    return sorted(programs, key=lambda each: each[0])


def _question(problem: Problem) -> str:
    """What a chat model is asked."""
    if problem.code:
        return f"Complete this Python function. Answer with the code alone.\n\n```python\n{problem.code.rstrip()}\n```"
    return f"{problem.text}\n\nAnswer with Python code alone."


def _opening(problem: Problem) -> str:
    """What a model that continues texts is given."""
    return problem.code or f'"""\n{problem.text}\n"""\n'


def program_of_reply(reply: str, problem: Problem) -> str:
    """The program in a reply: its first code block, else all of it, after the beginning where it goes on from that."""
    block = _BLOCK.search(reply)
    code = block[1] if block is not None else reply
    names = re.findall(r"^def (\w+)", problem.code, re.MULTILINE)
    if not names or re.search(rf"^\s*(async )?def {re.escape(names[-1])}\b", code, re.MULTILINE):
        imports = re.findall(r"^(?:import|from) .*$", problem.code, re.MULTILINE)
        return "\n".join([*imports, code])
    return problem.code + code


def program_of_text(text: str, problem: Problem) -> str:
    """The beginning and its continuation, up to where the function is over."""
    cuts = [text.find(end) for end in (AFTER_A_FUNCTION if problem.code else AFTER_A_PROGRAM) if end in text]
    return problem.code + text[: min(cuts, default=len(text))]
