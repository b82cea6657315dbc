"""What a training leaves on the disk: checkpoints and `model/`, only of finite numbers, and where there is room."""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from typing import Any

import torch
from safetensors import SafetensorError

from mmcli.errors import MmcliError, Stopped, UserError
from mmcli.files import atomic_folder, size
from mmcli.ranks import Ranks
from mmcli.run import RESOLVED, Run
from mmcli.stage import Metric, Reporter
from mmcli.train.checkpoint import Progress, list_checkpoints, save_checkpoint
from mmcli.train.config import TrainConfig
from mmcli.train.finite import Diverged, non_finite
from mmcli.train.shard import gathered
from mmcli.train.task import Task

SLACK_BYTES = 1 << 20  # for what is small: JSON, the tokenizer, metrics
DISK_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM")
    if hasattr(errno, name)
}


class Saver:
    """Saves a training into its run folder."""

    def __init__(
        self,
        run: Run,
        task: Task,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        report: Reporter,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._run, self._task, self._optimizer, self._config, self._report = run, task, optimizer, config, report
        self.saved_at: int | None = None
        self.best: dict[str, Any] | None = self._ranks.broadcast(run.info().get("best"))  # {"step", name of the metric}
        parameters = list(task.model.parameters())
        trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        self.checkpoint_bytes = 3 * trained  # weights and two moments
        self.model_bytes = sum(p.numel() * p.element_size() for p in parameters)

    @property
    def save_bytes(self) -> int:
        """What a save needs, since what it replaces is removed only when it is there."""
        return self.checkpoint_bytes + self.model_bytes + SLACK_BYTES

    @property
    def kept_bytes(self) -> int:
        """The most that a run takes: what it keeps, and a save that is being written."""
        models = 1 + self._config.keep_best
        return self.save_bytes + self._config.keep_checkpoints * self.checkpoint_bytes + models * self.model_bytes

    def check_room(self, *, resume: bool) -> None:
        """Refuse to start where the disk cannot hold what the run will keep: checkpoints, one being written, models.

        Args:
            resume: only ask for room for one save; what is kept is there already, or can be removed.

        Raises:
            UserError: it cannot.
            Stopped: it cannot, and the run is resumed.
        """
        needed, free = self.save_bytes if resume else self.kept_bytes, self._free()
        if free >= needed:
            return
        what = f"not enough disk space in {self._run.path}: {size(needed)} needed, {size(free)} free"
        if resume:
            raise Stopped(what, f"free space there, then: mmcli resume {self._run.reference}")
        raise UserError(what, "free space there, give another --runs-dir, or --set train.keep_checkpoints=1")

    def save(self, progress: Progress, *, prune: bool = True) -> None:
        """A checkpoint, then the model in Hugging Face format; older checkpoints that are not kept are removed.

        Args:
            prune: remove them; False while it is not known whether the new one is good.

        Raises:
            Diverged: a weight or a moment is not finite; nothing is saved.
            Stopped: the disk is full, or cannot be written; what was saved before stays.
        """
        if self.saved_at == progress.step:
            return
        names = self._ranks.gather(non_finite(self._task.model, self._optimizer))
        if (name := next((each for each in names if each is not None), None)) is not None:
            what = f"the weights became NaN or infinite ({name}) before step {progress.step}; they are not saved"
            raise Diverged(what, lower_rate(self._run))
        with gathered(self._task.model, self._optimizer, self._ranks):
            if self._ranks.is_writer:
                self._save(progress, prune)
        self.saved_at = progress.step

    def _save(self, progress: Progress, prune: bool) -> None:
        while self._free() < self.save_bytes and self._remove_oldest():
            pass
        free = self._free()
        if free < self.save_bytes:
            raise self._stopped(progress, f"{size(self.save_bytes)} needed, {size(free)} free")
        try:
            self._write(progress, prune)
        except (OSError, MmcliError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            self._report.warn(f"cannot save step {progress.step}: {_reason(error)}; trying once more")
            self._remove_oldest()
            self._write_again(progress, prune)

    def _write(self, progress: Progress, prune: bool) -> None:
        keep = self._config.keep_checkpoints if prune else len(list_checkpoints(self._run.checkpoints)) + 1
        save_checkpoint(self._run.checkpoints, self._task.model, self._optimizer, progress, keep)
        with atomic_folder(self._run.model) as beside:
            self._task.save_model(beside)
        if self._task.save_adapter is not None:
            self._task.save_adapter()
        self._run.update(steps_done=progress.step, tokens=progress.tokens)

    def _write_again(self, progress: Progress, prune: bool) -> None:
        try:
            self._write(progress, prune)
        except (OSError, MmcliError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            needed = f"{size(self.save_bytes)} needed, {size(self._free())} free"
            raise self._stopped(progress, f"{needed} ({_reason(error)})") from None

    def keep_best(self, step: int, metric: Metric, value: float, *, ended: bool) -> None:
        """Keep the model as `best/` where no step before had as good a held-out `value`; all ranks come here.

        Args:
            ended: the training has ended, and saved this model: `model/` is the best, and no `best/` is needed.
        """
        if not self._config.keep_best or step == 0 or not math.isfinite(value):
            return
        known = None if self.best is None else self.best.get(metric.name)
        if known is not None and (value <= known if metric.higher_is_better else value >= known):
            return
        best = {"step": step, metric.name: value}
        whole = contextlib.nullcontext() if ended else gathered(self._task.model, self._optimizer, self._ranks)
        with whole:
            written = self._ranks.is_writer and self._write_best(best, ended)
        if self._ranks.broadcast(written):
            self.best = best

    def _write_best(self, best: dict[str, Any], ended: bool) -> bool:
        """Whether it was written. What a full disk has no room for is told, and the training goes on."""
        needed = self.save_bytes + (0 if self._run.best.is_dir() else self.model_bytes)  # room for the next checkpoint
        try:
            if ended:
                shutil.rmtree(self._run.best, ignore_errors=True)
            elif self._free() < needed:
                raise OSError(errno.ENOSPC, f"{size(needed)} needed, {size(self._free())} free")
            else:
                with atomic_folder(self._run.best) as beside:
                    self._task.save_model(beside)
            self._run.update(best=best)
        except (OSError, MmcliError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            self._report.warn(f"cannot keep the best model so far, of step {best['step']}: {_reason(error)}")
            return False
        return True

    def _remove_oldest(self) -> bool:
        """Remove the oldest checkpoint but the newest; False if there is none."""
        stored = list_checkpoints(self._run.checkpoints)
        if len(stored) < 2:
            return False
        shutil.rmtree(stored[0], ignore_errors=True)
        self._report.warn(f"removed {stored[0]} to free space")
        return True

    def _free(self) -> int:
        return shutil.disk_usage(self._run.path).free

    def _stopped(self, progress: Progress, why: str) -> Stopped:
        saved = list_checkpoints(self._run.checkpoints)
        kept = f"{saved[-1].name} is kept" if saved else "nothing was saved before"
        what = f"cannot save step {progress.step} in {self._run.path}: {why}; {kept}"
        return Stopped(what, f"free space there, then: mmcli resume {self._run.reference}")


def lower_rate(run: Run) -> str:
    """Advice for a training that diverged: half of the rate that it had."""
    scale = 0.5 * float(run.read_config(RESOLVED).get("lr_scale", 1.0))
    return f"resume at half the learning rate: mmcli resume {run.reference} --lr-scale {scale:g}"


def is_disk_error(error: BaseException | None) -> bool:
    """True of an error that comes of a disk that is full or cannot be written, or of one raised while handling that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        if isinstance(error, SafetensorError) and "(os error" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Any) -> str:
    return str(error.what if isinstance(error, MmcliError) else error)
