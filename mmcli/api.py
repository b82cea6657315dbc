"""The Python interface of mmcli: all that a plugin, a notebook or a benchmark needs. Nothing else is promised.

Names are looked up when they are used, so that `import mmcli.api` loads no torch. `API_VERSION` says which version of
this interface it is; a test holds every name and signature.

A command in one call each: `run_stage`, `resume_run`, `load`, `evaluate`, `measure_suite`, `measure_loss`,
`measure_preferences`, `export_onnx`, `export_hf`, `export_gguf`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mmcli.config import Layer as _Layer
from mmcli.run import ModelRef as _ModelRef
from mmcli.run import Run as _Run
from mmcli.stage import Reporter as _Reporter

if TYPE_CHECKING:
    from mmcli.config import ConfigError as ConfigError
    from mmcli.config import Layer as Layer
    from mmcli.config import option as option
    from mmcli.config import parse_set as parse_set
    from mmcli.config import resolve as resolve
    from mmcli.data.config import DataConfig as DataConfig
    from mmcli.data.encode.cache import TokenCache as TokenCache
    from mmcli.data.encode.encoders import encode_conversations as encode_conversations
    from mmcli.data.encode.encoders import encode_records as encode_records
    from mmcli.data.pack.batches import Batch as Batch
    from mmcli.data.pack.batches import Batches as Batches
    from mmcli.data.pack.batches import make_batch as make_batch
    from mmcli.data.pack.packing import Rows as Rows
    from mmcli.data.pack.packing import pack_cache as pack_cache
    from mmcli.data.pack.pairs import PairFit as PairFit
    from mmcli.data.pack.pairs import pair_rows as pair_rows
    from mmcli.data.pack.selection import Selection as Selection
    from mmcli.data.pack.selection import split_documents as split_documents
    from mmcli.data.record import EncodedRecord as EncodedRecord
    from mmcli.data.record import Record as Record
    from mmcli.data.record import RecordError as RecordError
    from mmcli.data.record import Rejected as Rejected
    from mmcli.data.records.conversations import as_chat as as_chat
    from mmcli.data.records.kinds import RecordKind as RecordKind
    from mmcli.data.records.kinds import is_chat as is_chat
    from mmcli.data.records.kinds import register_kind as register_kind
    from mmcli.data.sources.pinning import as_read as as_read
    from mmcli.data.sources.pinning import pin as pin
    from mmcli.data.sources.pinning import pin_data as pin_data
    from mmcli.data.sources.source import split_weight as split_weight
    from mmcli.data.sources.sources import OpenedData as OpenedData
    from mmcli.data.sources.sources import Sources as Sources
    from mmcli.data.sources.sources import open_data as open_data
    from mmcli.data.sources.sources import open_sources as open_sources
    from mmcli.errors import Interrupted as Interrupted
    from mmcli.errors import MmcliError as MmcliError
    from mmcli.errors import UserError as UserError
    from mmcli.errors import did_you_mean as did_you_mean
    from mmcli.evaluation.engines import load_engine as load_engine
    from mmcli.evaluation.evaluate import SuiteResult as SuiteResult
    from mmcli.evaluation.figures import Figure as Figure
    from mmcli.evaluation.figures import SuiteFigures as SuiteFigures
    from mmcli.evaluation.figures import SuiteRequest as SuiteRequest
    from mmcli.evaluation.held_out import HeldOutLoss as HeldOutLoss
    from mmcli.evaluation.keep import keep_result as keep_result
    from mmcli.evaluation.loss import TextLoss as TextLoss
    from mmcli.evaluation.loss import engine_losses as engine_losses
    from mmcli.evaluation.loss import model_losses as model_losses
    from mmcli.evaluation.loss import sum_losses as sum_losses
    from mmcli.evaluation.preferences import PreferenceAccuracy as PreferenceAccuracy
    from mmcli.evaluation.questions import Reply as Reply
    from mmcli.evaluation.scores import Score as Score
    from mmcli.evaluation.suites import Suite as Suite
    from mmcli.evaluation.suites import SuiteItem as SuiteItem
    from mmcli.evaluation.suites import find_suite as find_suite
    from mmcli.export.gguf import GgufExport as GgufExport
    from mmcli.export.huggingface import HfExport as HfExport
    from mmcli.export.onnx_export import OnnxExport as OnnxExport
    from mmcli.files import atomic_folder as atomic_folder
    from mmcli.find import find_model as find_model
    from mmcli.find import find_run as find_run
    from mmcli.generate.conversation import Conversation as Conversation
    from mmcli.generate.conversation import is_chat_model as is_chat_model
    from mmcli.generate.draft import DraftModel as DraftModel
    from mmcli.generate.engine import Engine as Engine
    from mmcli.generate.generate import Completion as Completion
    from mmcli.generate.generate import generate as generate
    from mmcli.generate.generate import generate_batch as generate_batch
    from mmcli.generate.grammar import Grammar as Grammar
    from mmcli.generate.loaded import LoadedModel as LoadedModel
    from mmcli.generate.onnx_engine import OnnxEngine as OnnxEngine
    from mmcli.generate.reply import read_reply as read_reply
    from mmcli.generate.sampler import SamplingConfig as SamplingConfig
    from mmcli.generate.sequence import TokenSequence as TokenSequence
    from mmcli.generate.speculation import Speculation as Speculation
    from mmcli.generate.step import run_sequences as run_sequences
    from mmcli.generate.torch_engine import TorchEngine as TorchEngine
    from mmcli.inputs import Input as Input
    from mmcli.inputs import pin_inputs as pin_inputs
    from mmcli.inputs import read_inputs as read_inputs
    from mmcli.manifest import damage as damage
    from mmcli.model.attention import AttnContext as AttnContext
    from mmcli.model.config import ModelConfig as ModelConfig
    from mmcli.model.count import count_parameters as count_parameters
    from mmcli.model.device import move as move
    from mmcli.model.formats.families import stored_names as stored_names
    from mmcli.model.formats.hf_config import read_model_config as read_model_config
    from mmcli.model.formats.hf_folder import load_model as load_model
    from mmcli.model.formats.hf_folder import save_model as save_model
    from mmcli.model.formats.names import Stored as Stored
    from mmcli.model.formats.read import read_model as read_model
    from mmcli.model.formats.read import save_imported as save_imported
    from mmcli.model.formats.reward_folder import RewardModel as RewardModel
    from mmcli.model.formats.reward_folder import last_scores as last_scores
    from mmcli.model.formats.reward_folder import load_reward_model as load_reward_model
    from mmcli.model.formats.reward_folder import new_score as new_score
    from mmcli.model.formats.reward_folder import save_reward_model as save_reward_model
    from mmcli.model.logps import token_logps as token_logps
    from mmcli.model.moe import Experts as Experts
    from mmcli.model.transformer import Transformer as Transformer
    from mmcli.report.evaluations import read_evaluations as read_evaluations
    from mmcli.rewards import Attempt as Attempt
    from mmcli.rewards import Reward as Reward
    from mmcli.rewards import find_reward as find_reward
    from mmcli.run import ModelRef as ModelRef
    from mmcli.run import Run as Run
    from mmcli.run import list_runs as list_runs
    from mmcli.stage import API_VERSION as API_VERSION
    from mmcli.stage import Adapter as Adapter
    from mmcli.stage import LossOutput as LossOutput
    from mmcli.stage import Metric as Metric
    from mmcli.stage import Reporter as Reporter
    from mmcli.stage import Silent as Silent
    from mmcli.stage import Stage as Stage
    from mmcli.stage import StageContext as StageContext
    from mmcli.stage import Term as Term
    from mmcli.stage import Transform as Transform
    from mmcli.stages import DpoConfig as DpoConfig
    from mmcli.stages import PretrainConfig as PretrainConfig
    from mmcli.stages import SftConfig as SftConfig
    from mmcli.stages.pairs import PairData as PairData
    from mmcli.stages.pairs import Pairs as Pairs
    from mmcli.stages.pairs import fill_reference as fill_reference
    from mmcli.stages.pairs import open_pairs as open_pairs
    from mmcli.stages.pairs import pair_task as pair_task
    from mmcli.stages.samples import continuations as continuations
    from mmcli.stages.start import Start as Start
    from mmcli.stages.start import choose_micro_batch as choose_micro_batch
    from mmcli.stages.start import find_reference as find_reference
    from mmcli.stages.start import pin_model as pin_model
    from mmcli.stages.start import prepare_start as prepare_start
    from mmcli.stages.start import save_adapter as save_adapter
    from mmcli.stages.start import save_into as save_into
    from mmcli.stages.tokens import TokenRows as TokenRows
    from mmcli.stages.tokens import open_rows as open_rows
    from mmcli.stages.tokens import open_split as open_split
    from mmcli.stages.tokens import token_task as token_task
    from mmcli.text.chat import encode_chat as encode_chat
    from mmcli.text.chat import stop_ids as stop_ids
    from mmcli.text.tokenizer import Tokenizer as Tokenizer
    from mmcli.text.train import train_tokenizer as train_tokenizer
    from mmcli.train.config import OptimConfig as OptimConfig
    from mmcli.train.config import TrainConfig as TrainConfig
    from mmcli.train.device import Accelerator as Accelerator
    from mmcli.train.device import choose_accelerator as choose_accelerator
    from mmcli.train.device import keep_freed_memory as keep_freed_memory
    from mmcli.train.device import make_deterministic as make_deterministic
    from mmcli.train.device import training_device as training_device
    from mmcli.train.lm import TokenBatch as TokenBatch
    from mmcli.train.lm import language_model_loss as language_model_loss
    from mmcli.train.loop import train as train
    from mmcli.train.optim import build_optimizer as build_optimizer
    from mmcli.train.preference import PairBatch as PairBatch
    from mmcli.train.preference import pair_output as pair_output
    from mmcli.train.preference import preference_loss as preference_loss
    from mmcli.train.preference import sequence_logps as sequence_logps
    from mmcli.train.task import MicroBatches as MicroBatches
    from mmcli.train.task import Rollouts as Rollouts
    from mmcli.train.task import StepBatch as StepBatch
    from mmcli.train.task import Task as Task

_HOMES = {  # module -> the names that it gives
    "mmcli.errors": "UserError MmcliError Interrupted did_you_mean",
    "mmcli.config": "option ConfigError Layer resolve parse_set",
    "mmcli.rewards": "Attempt Reward find_reward",
    "mmcli.stage": "API_VERSION Stage Adapter Transform StageContext Reporter Silent Term LossOutput Metric",
    "mmcli.find": "find_run find_model",
    "mmcli.run": "Run ModelRef list_runs",
    "mmcli.files": "atomic_folder",
    "mmcli.manifest": "damage",
    "mmcli.inputs": "Input pin_inputs read_inputs",
    "mmcli.report.evaluations": "read_evaluations",
    "mmcli.stages": "PretrainConfig SftConfig DpoConfig",
    "mmcli.text.tokenizer": "Tokenizer",
    "mmcli.text.chat": "encode_chat stop_ids",
    "mmcli.text.train": "train_tokenizer",
    "mmcli.data.config": "DataConfig",
    "mmcli.data.record": "Record Rejected RecordError EncodedRecord",
    "mmcli.data.records.conversations": "as_chat",
    "mmcli.data.records.kinds": "RecordKind is_chat register_kind",
    "mmcli.data.sources.source": "split_weight",
    "mmcli.data.sources.sources": "Sources open_sources open_data OpenedData",
    "mmcli.data.sources.pinning": "pin pin_data as_read",
    "mmcli.data.encode.cache": "TokenCache",
    "mmcli.data.encode.encoders": "encode_conversations encode_records",
    "mmcli.data.pack.selection": "Selection split_documents",
    "mmcli.data.pack.packing": "Rows pack_cache",
    "mmcli.data.pack.batches": "Batch Batches make_batch",
    "mmcli.data.pack.pairs": "PairFit pair_rows",
    "mmcli.model.config": "ModelConfig",
    "mmcli.model.count": "count_parameters",
    "mmcli.model.device": "move",
    "mmcli.model.transformer": "Transformer",
    "mmcli.model.attention": "AttnContext",
    "mmcli.model.logps": "token_logps",
    "mmcli.model.moe": "Experts",
    "mmcli.model.formats.families": "stored_names",
    "mmcli.model.formats.names": "Stored",
    "mmcli.model.formats.hf_folder": "load_model save_model",
    "mmcli.model.formats.hf_config": "read_model_config",
    "mmcli.model.formats.reward_folder": "RewardModel last_scores load_reward_model new_score save_reward_model",
    "mmcli.model.formats.read": "read_model save_imported",
    "mmcli.generate.engine": "Engine",
    "mmcli.generate.draft": "DraftModel",
    "mmcli.generate.speculation": "Speculation",
    "mmcli.generate.torch_engine": "TorchEngine",
    "mmcli.generate.onnx_engine": "OnnxEngine",
    "mmcli.generate.sampler": "SamplingConfig",
    "mmcli.generate.grammar": "Grammar",
    "mmcli.generate.reply": "read_reply",
    "mmcli.generate.sequence": "TokenSequence",
    "mmcli.generate.step": "run_sequences",
    "mmcli.generate.generate": "generate generate_batch Completion",
    "mmcli.generate.conversation": "Conversation is_chat_model",
    "mmcli.generate.loaded": "LoadedModel",
    "mmcli.evaluation.engines": "load_engine",
    "mmcli.evaluation.evaluate": "SuiteResult",
    "mmcli.evaluation.figures": "Figure SuiteFigures SuiteRequest",
    "mmcli.evaluation.held_out": "HeldOutLoss",
    "mmcli.evaluation.preferences": "PreferenceAccuracy",
    "mmcli.evaluation.questions": "Reply",
    "mmcli.evaluation.scores": "Score",
    "mmcli.evaluation.keep": "keep_result",
    "mmcli.evaluation.loss": "model_losses engine_losses sum_losses TextLoss",
    "mmcli.evaluation.suites": "Suite SuiteItem find_suite",
    "mmcli.train.config": "OptimConfig TrainConfig",
    "mmcli.train.device": "Accelerator choose_accelerator training_device make_deterministic keep_freed_memory",
    "mmcli.train.task": "Task MicroBatches Rollouts StepBatch",
    "mmcli.train.loop": "train",
    "mmcli.train.optim": "build_optimizer",
    "mmcli.train.lm": "TokenBatch language_model_loss",
    "mmcli.train.preference": "PairBatch pair_output preference_loss sequence_logps",
    "mmcli.stages.pairs": "Pairs PairData open_pairs fill_reference pair_task",
    "mmcli.stages.start": "Start prepare_start choose_micro_batch save_into save_adapter find_reference pin_model",
    "mmcli.stages.tokens": "TokenRows open_rows open_split token_task",
    "mmcli.stages.samples": "continuations",
    "mmcli.export.onnx_export": "OnnxExport",
    "mmcli.export.gguf": "GgufExport",
    "mmcli.export.huggingface": "HfExport",
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
_COMMANDS = (
    *("model_config", "run_stage", "resume_run", "load"),
    *("evaluate", "measure_suite", "measure_loss", "measure_preferences"),
    *("export_onnx", "export_hf", "export_gguf"),
)

__all__ = sorted([*_MODULE_OF, *_COMMANDS])

Model = str | Path | _Run  # what names a model: a run's number or name, a folder, "latest", "latest:STAGE", or a Run


def __getattr__(name: str) -> Any:
    """A name of `_HOMES`, from its module.

    Raises:
        AttributeError: it is not part of the interface.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"mmcli.api has no {name}")
    found = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)


def model_config(preset: str, values: Mapping[str, Any] | None = None) -> ModelConfig:
    """The model of a preset.

    Args:
        values: fields that differ from it, such as {"dim": 640}.

    Raises:
        UserError: no such preset, an unknown field or a wrong value.
    """
    from mmcli.config import preset_layers, resolve
    from mmcli.stages import PretrainConfig

    layers = [*preset_layers(preset, "pretrain"), _Layer("model_config", {"model": dict(values or {})})]
    model: ModelConfig = resolve(PretrainConfig, layers).config.model
    return model


def run_stage(
    stage: str,
    values: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    config_file: str | Path | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> _Run:
    """Run a stage in a new run folder, as `mmcli STAGE` does.

    Args:
        stage: a built-in stage or one of an installed plugin.
        values: configuration keys, such as {"train.steps": 20, "data.sources": ["books/"]}.
        preset: model shape; None: that of the model it starts from, else `tiny`.
        report: told what happens; None: silent.

    Raises:
        UserError: no such stage or preset, an unknown key, a wrong value, data or a model that cannot be used.
        Interrupted: it was stopped; `resume_run` continues it.
        MmcliError: it failed.
    """
    from mmcli import runner

    return runner.start(
        runner.load_stage(stage),
        [_Layer("run_stage", dict(values or {}))],
        runs_dir=Path(runs_dir),
        preset=preset,
        config_file=Path(config_file) if config_file is not None else None,
        name=name,
        report=report,
    )


def resume_run(
    run: str | _Run,
    *,
    allow: Sequence[str] = (),
    lr_scale: float | None = None,
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> _Run:
    """Continue a run from its latest valid checkpoint, as `mmcli resume` does.

    Args:
        allow: inputs that may have changed since the run began, such as "data"; it is then no longer bit-exact.
        lr_scale: factor of the learning rate from now on, such as 0.5 after a non-finite loss; kept in the run.

    Raises:
        UserError: there is no such run, it is finished or still running, or what it reads has changed.
        Interrupted: it was stopped again.
        MmcliError: it failed.
    """
    from mmcli import runner
    from mmcli.find import find_run

    found = run if isinstance(run, _Run) else find_run(run, Path(runs_dir))
    return runner.resume(found, report, allow=allow, lr_scale=lr_scale)


def load(
    model: Model = "latest",
    *,
    backend: str = "torch",
    device: str = "auto",
    max_len: int | None = None,
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> LoadedModel:
    """A model that writes: `load("latest:sft").generate("Who are you?")`.

    Args:
        backend: "torch", or "onnx" (ONNX Runtime; the fp32 export is made if there is none).
        device: auto, cpu, cuda, cuda:1 or mps.
        max_len: tokens of prompt and reply together; None: the model's context.

    Raises:
        UserError: no such model, backend or device.
    """
    from mmcli.evaluation.engines import load_engine
    from mmcli.generate.conversation import is_chat_model
    from mmcli.generate.loaded import LoadedModel
    from mmcli.text.tokenizer import Tokenizer

    ref = _find(model, runs_dir)
    tokenizer = Tokenizer.load(ref.path)
    engine = load_engine(ref, backend, device=device, max_len=max_len, report=report)
    chat = is_chat_model(ref.path, tokenizer, stage=ref.stage)
    return LoadedModel(ref.label, engine, tokenizer, chat)


def evaluate(
    model: Model = "latest",
    suite: str = "demo",
    *,
    limit: int | None = None,
    max_new_tokens: int = 64,
    shuffle_answers: bool = False,
    keep: bool = False,
    backend: str = "torch",
    device: str = "auto",
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> SuiteResult:
    """Ask a model the questions of a suite, as `mmcli eval --suite` does.

    Args:
        suite: "demo", or one of an installed plugin.
        limit: questions of each family, at most; None: all.
        max_new_tokens: a reply that does not end within them is wrong.
        shuffle_answers: as a control, judge each reply by the answers of another question.
        keep: keep the result in the run of the model, as the command does.

    Raises:
        UserError: no such model, suite, backend or device.
    """
    from mmcli.evaluation.evaluate import evaluate

    ref = _find(model, runs_dir)
    result = evaluate(
        ref,
        suite,
        limit=limit,
        max_new_tokens=max_new_tokens,
        shuffle_answers=shuffle_answers,
        backend=backend,
        device=device,
        report=report,
    )
    return _kept(ref, result, keep, report)


def measure_suite(
    model: Model,
    suite: str,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    keep: bool = False,
    backend: str = "torch",
    device: str = "auto",
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> SuiteFigures:
    """Let a suite that measures in a way of its own measure a model, as `mmcli eval --suite lm-eval:TASK` does.

    Args:
        suite: NAME or NAME:ARGUMENT of an installed plugin's suite.
        limit: questions of each task, at most; None: all.
        max_new_tokens: of a reply, at most; None: as the suite has it.
        keep: keep the result in the run of the model, as the command does.

    Raises:
        UserError: no such model, suite, argument, backend or device.
        MmcliError: the suite is broken.
    """
    from mmcli.evaluation.figures import measure_suite

    ref = _find(model, runs_dir)
    result = measure_suite(
        *(ref, suite), limit=limit, max_new_tokens=max_new_tokens, backend=backend, device=device, report=report
    )
    return _kept(ref, result, keep, report)


def measure_loss(
    model: Model,
    data: Sequence[str],
    *,
    columns: Sequence[str] = (),
    seq_len: int | None = None,
    keep: bool = False,
    device: str = "auto",
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> HeldOutLoss:
    """The loss of a model on texts or conversations, as `mmcli eval --data` does.

    Args:
        data: files, folders, globs or `hf:` data sets.
        seq_len: tokens that are read together, at most; None: as the model was trained.
        keep: keep the result in the run of the model, as the command does.

    Raises:
        UserError: no such model, or data that cannot be used.
    """
    from mmcli.evaluation.held_out import measure_loss

    ref = _find(model, runs_dir)
    result = measure_loss(ref, data, columns=columns, seq_len=seq_len, device=device, report=report)
    return _kept(ref, result, keep, report)


def measure_preferences(
    model: Model,
    data: Sequence[str] = ("demo",),
    *,
    columns: Sequence[str] = (),
    keep: bool = False,
    device: str = "auto",
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> PreferenceAccuracy:
    """How often the chosen reply is likelier than the rejected one, as `mmcli eval --suite preferences` measures it.

    Args:
        data: files, folders, globs or `hf:` data sets of pairs; "demo": the held-out pairs of the built-in corpus.
        keep: keep the result in the run of the model, as the command does.

    Raises:
        UserError: no such model, or data that cannot be used.
    """
    from mmcli.evaluation.preferences import measure_preferences

    ref = _find(model, runs_dir)
    result = measure_preferences(ref, data, columns=columns, device=device, report=report)
    return _kept(ref, result, keep, report)


_Result = TypeVar("_Result", "SuiteResult", "SuiteFigures", "HeldOutLoss", "PreferenceAccuracy")


def _kept(ref: _ModelRef, result: _Result, keep: bool, report: _Reporter | None) -> _Result:
    """The result; kept in the run of the model, if it is to be."""
    from mmcli.evaluation.keep import keep_result

    if keep:
        keep_result(ref, result, report)
    return result


def export_onnx(
    model: Model = "latest",
    *,
    dtype: Literal["fp32", "fp16", "int8", "int4"] = "fp32",
    target: Literal["cpu", "mobile", "web", "genai"] = "cpu",
    ops: Literal["fused", "standard"] = "fused",
    context: int | None = None,
    calibrate: str | Path | None = None,
    force: bool = False,
    out: str | Path | None = None,
    runs_dir: str | Path = "runs",
    report: _Reporter | None = None,
) -> OnnxExport:
    """Export a model for ONNX Runtime, as `mmcli export onnx` does: compared with torch before it is kept.

    Args:
        target: "mobile" adds an .ort file, "web" is laid out for transformers.js, "genai" also verified in
            onnxruntime-genai.
        ops: "standard": the operators of the ONNX standard alone.
        context: the longest sequence in tokens; None: the model's.
        calibrate: text or conversations that int4 is fitted to; None: built-in documents.
        force: keep an export whose perplexity rises by more than its limit.
        out: a new folder, or an earlier export; None: RUN/export/onnx-DTYPE, for other targets with their name.

    Raises:
        UserError: no such model, a context that it does not have, options that do not go together, or something else
            lies in `out`.
        MmcliError: the export differs from torch; nothing is left of it.
    """
    from mmcli.export.locate import default_folder
    from mmcli.export.onnx_export import export_onnx

    ref = _find(model, runs_dir)
    folder = Path(out) if out is not None else default_folder(ref, dtype, target, ops)
    return export_onnx(
        *(ref.path, folder),
        dtype=dtype,
        target=target,
        ops=ops,
        context=context,
        calibrate=None if calibrate is None else Path(calibrate),
        force=force,
        stage=ref.stage,
        report=report,
    )


def export_hf(
    model: Model = "latest",
    out: str | Path | None = None,
    *,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    layout: Literal["transformers", "minimind"] = "transformers",
    card: bool = False,
    license: str | None = None,
    runs_dir: str | Path = "runs",
) -> HfExport:
    """Export a model for transformers, as `mmcli export hf` does: read back and compared before it is kept.

    Args:
        out: a new folder, or an earlier export; None: RUN/export/hf.
        dtype: of the weights; None: as they are stored.
        layout: "minimind": as MiniMind2 was released, for MiniMind's own code.
        card: write a model card; only of a model that a run made.
        license: that the card states, such as "apache-2.0".

    Raises:
        UserError: no such model, one that no known family describes, a card of a model that no run made, or something
            else lies in `out`.
        MmcliError: it does not read back as the same model; nothing is left of it.
    """
    from mmcli.export.huggingface import export_huggingface
    from mmcli.export.locate import card_run, default_hf_folder

    ref = _find(model, runs_dir)
    folder = Path(out) if out is not None else default_hf_folder(ref, dtype)
    return export_huggingface(
        ref.path,
        folder,
        dtype=dtype,
        layout=layout,
        stage=ref.stage,
        card_of=card_run(ref) if card else None,
        license=license,
    )


def export_gguf(
    model: Model = "latest",
    out: str | Path | None = None,
    *,
    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "f16",
    runs_dir: str | Path = "runs",
) -> GgufExport:
    """Export a model for llama.cpp and Ollama, as `mmcli export gguf` does: read back and compared before it is kept.

    Args:
        out: a new file, or an earlier export; None: RUN/export/RUN-DTYPE.gguf.
        dtype: of the weights.

    Raises:
        UserError: no such model, one that no GGUF architecture describes, or something else lies at `out`.
        MmcliError: it does not read back as the same model; nothing is left of it.
    """
    from mmcli.export import gguf
    from mmcli.export.locate import default_gguf_file

    ref = _find(model, runs_dir)
    path = Path(out) if out is not None else default_gguf_file(ref, dtype)
    return gguf.export_gguf(ref.path, path, dtype=dtype)


def _find(model: Model, runs_dir: str | Path) -> _ModelRef:
    """The model that is named.

    Raises:
        UserError: there is none.
    """
    from mmcli.find import find_language_model

    if isinstance(model, _Run):
        return find_language_model(str(model.path), model.path.parent)
    return find_language_model(str(model), Path(runs_dir))
