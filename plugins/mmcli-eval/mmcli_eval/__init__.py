"""Benchmarks: `mmcli eval --suite lm-eval:TASK` and `--suite code:FILE`. Their work is elsewhere (no torch here)."""

from __future__ import annotations

from mmcli.api import Suite

LM_EVAL = Suite(
    name="lm-eval",
    summary="Tasks of lm-evaluation-harness, or of a YAML file of your own.",
    measure="mmcli_eval.harness:measure",
)
CODE = Suite(
    name="code",
    summary="pass@k: how many of the programs that a model writes pass their tests.",
    measure="mmcli_eval.code:measure",
)
