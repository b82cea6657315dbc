"""Experiment trackers (`--log tensorboard,wandb,trackio,swanlab`), which get the values of metrics.jsonl and samples.

Each tracker works in a thread of its own behind a bounded queue: a slow or broken one loses values, never time.
Nothing is sent anywhere unless the tracker was asked for; without an account wandb and swanlab write files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmcli.errors import UserError
from mmcli.stage import Reporter

PROJECT = "mmcli"
QUEUED = 1000  # steps and samples that wait for a slow tracker; more are dropped
CLOSE_SECONDS = 15.0  # to send the rest at the end


@dataclass(frozen=True)
class LogRun:
    """What a tracker is told of a run: equal whenever it is resumed, so that the same curves go on."""

    folder: Path
    name: str
    id: str  # 21 lower-case hexadecimal digits
    config: Mapping[str, Any]  # {"optim.lr": 5e-4}
    step: int = 0  # the first that comes; a tracker that can take back what it has of this and later ones does so


class Logger(Protocol):
    """A tracker that is open. All calls come from one thread."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, all finite."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A text that the model wrote."""

    def finish(self) -> None:
        """Send what is left, and end."""


class TensorBoardLogger:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: LogRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step or None)
        rows = "\n".join(f"| {key} | {value} |" for key, value in run.config.items())
        self._writer.add_text("config", f"| key | value |\n|---|---|\n{rows}", run.step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        indented = "\n".join("    " + line for line in (prompt + text).splitlines())  # as code: shown as it is
        self._writer.add_text("sample", indented, step)

    def finish(self) -> None:
        self._writer.close()


class WandbLogger:
    """Weights & Biases; offline in RUN/wandb without an account (`wandb sync` sends that later)."""

    def __init__(self, run: LogRun) -> None:
        import wandb

        chosen = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            mode=chosen,
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._table: Callable[..., Any] = wandb.Table

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._run.log({"sample": self._table(columns=["prompt", "text"], data=[[prompt, text]])}, step=step)

    def finish(self) -> None:
        self._run.finish()


class TrackioLogger:
    """Trackio: a local database, or the Hugging Face Space that TRACKIO_SPACE_ID names."""

    def __init__(self, run: LogRun) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(project, name=run.name, config=dict(run.config), resume="allow", embed=False)
        self._markdown: Callable[..., Any] = trackio.Markdown

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._run.log({"sample": self._markdown(prompt + text)}, step=step)

    def finish(self) -> None:
        self._run.finish()


class SwanLabLogger:
    """SwanLab; files in RUN/swanlab without an account (`swanlab sync` sends them later)."""

    def __init__(self, run: LogRun) -> None:
        import swanlab

        chosen = os.environ.get("SWANLAB_MODE") or ("online" if swanlab.Settings().api_key else "offline")
        (run.folder / "swanlab").mkdir(exist_ok=True)
        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", PROJECT),
            experiment_name=run.name,
            id=run.id,
            resume="allow",
            logdir=str(run.folder / "swanlab"),
            mode=chosen,
            config=dict(run.config),
            settings=swanlab.Settings(terminal={"proxy_type": "none"}),
        )
        self._text: Callable[..., Any] = swanlab.Text

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._run.log({"sample": self._text(prompt + text)}, step=step)

    def finish(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[[LogRun], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "trackio": TrackioLogger,
    "swanlab": SwanLabLogger,
}


def missing_logger(name: str) -> UserError | None:
    """The refusal of a tracker whose package, named like it, is not installed; None if it is."""
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return None
    return UserError(f"--log {name} needs the package {name}, which is not installed", f"pip install 'mmcli[{name}]'")


def check_loggers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be used, before anything is made.

    Raises:
        UserError: a package is not installed.
    """
    for name in names:
        if (missing := missing_logger(name)) is not None:
            raise missing


class MainThreadOnly:
    """Standard output while trackers are open: what they print in their threads is dropped, as it is the result's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread() is threading.main_thread():
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Background:
    """A tracker in a thread. What it raises is warned of once; then it is left alone."""

    def __init__(self, name: str, run: LogRun, report: Reporter) -> None:
        self.name = name
        self._report = report
        self._queue: queue.Queue[Callable[[Logger], None] | None] = queue.Queue(QUEUED)
        self._problem: str | None = None
        self._told = False
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"log-{name}", daemon=True)
        self._thread.start()

    def _work(self, run: LogRun) -> None:
        try:
            logger = LOGGERS[self.name](run)
            while (send := self._queue.get()) is not None:
                send(logger)
            logger.finish()
        except BaseException as error:  # also the SystemExit of a package that gives up
            self._problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]

    def put(self, send: Callable[[Logger], None]) -> None:
        """Let the tracker do this when it comes to it."""
        if self._problem is not None:
            self._tell(f"--log {self.name} stopped: {self._problem}; the training goes on without it")
            return
        try:
            self._queue.put_nowait(send)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Send what waits, for a while."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._tell(f"--log {self.name} is too slow: the last values were not sent; metrics.jsonl has them")
        elif self._problem is not None:
            self._tell(f"--log {self.name} stopped: {self._problem}; metrics.jsonl has all values")
        elif self._dropped:
            self._tell(f"--log {self.name} was too slow for {self._dropped:,} values; metrics.jsonl has them")

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            self._report.warn(what)
