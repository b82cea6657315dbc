"""`mmcli data`: preview records as the model sees them, and validate a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcli.cli.data_view import detail, heading, print_histogram, print_text, print_tokens
from mmcli.cli.help import App
from mmcli.cli.options import AsJson, Columns, RunsDir
from mmcli.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mmcli.data.check import DataCheck
    from mmcli.data.preview import PackedRow, PackedRows, TokenSequence
    from mmcli.data.record import Rejected
    from mmcli.data.sources.sources import Sources
    from mmcli.text.tokenizer import Tokenizer

app = App(help="Preview and validate data.")
Files = Annotated[
    list[str],
    typer.Argument(help="Files, folders, globs, hf:OWNER/NAME, or demo; all with :WEIGHT or none.", show_default=False),
]
StageOption = Annotated[
    str | None,
    typer.Option(
        metavar="[pretrain|sft|dpo|...]", help="Target stage, also a plugin's. Default: by the kind of the records."
    ),
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Run, model folder or tokenizer.json. Default: the newest run's.")
]

SIDES = ("chosen", "rejected")  # of a preference pair
SEQ_LEN = 512  # tokens in a row, the default of training
PACKED_RECORDS = 1_000  # records whose rows --packed shows
LISTED = 20  # rejected records shown; --json has more, a quarantine file all


@app.command()
def preview(
    files: Files,
    stage: StageOption = None,
    columns: Columns = None,
    tokenizer: TokenizerOption = None,
    limit: Annotated[int, typer.Option(help="Records, or rows, to show.")] = 3,
    train_on: Annotated[
        Literal["all", "last"] | None, typer.Option(help="sft: train on all assistant turns, or the last. [all]")
    ] = None,
    train_reasoning: Annotated[
        bool | None,
        typer.Option(
            "--train-reasoning/--no-train-reasoning",
            help="sft: train on the reasoning before a reply too, or not. [yes]",
            show_default=False,
        ),
    ] = None,
    packed: Annotated[bool, typer.Option("--packed", help="Packed rows, as the model reads them.")] = False,
    seq_len: Annotated[int | None, typer.Option(help=f"Tokens in a packed row. [{SEQ_LEN}]")] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Preview records as the model sees them: their tokens and the loss mask.

    Trained tokens are green; without colour they are in ⟦ ⟧, with ¦ between tokens. ⏎ is a line end.

    Example: mmcli data preview conversations.jsonl --stage sft
    """
    from mmcli.cli.console import print_json
    from mmcli.text.find import find_tokenizer

    if limit < 1:
        raise UserError(f"--limit {limit} shows nothing", "give 1 or more")
    if seq_len is not None and not packed:
        raise UserError("--seq-len is the length of packed rows", "add --packed, or leave it out")
    sources = _open(files, stage, columns or [])
    for flag, value in (("--train-on", train_on), ("--train-reasoning", train_reasoning)):
        if value is not None and (sources.kind != "chat" or packed):
            raise UserError(f"{flag} is for conversations, record by record", "leave it out")
    loaded = find_tokenizer(tokenizer, runs_dir)
    if packed:
        rows = _packed_rows(sources, loaded, SEQ_LEN if seq_len is None else seq_len, limit)
        if json:
            print_json([_row_json(row, loaded) for row in rows.rows])
        else:
            _print_rows(rows, loaded)
        return
    options = {"train_on": train_on or "all", "train_reasoning": train_reasoning is not False}
    records = _records(sources, loaded, limit, options if sources.kind == "chat" else {})
    if json:
        print_json([{key: value for key, value in record.items() if key != "sequences"} for record in records])
    else:
        _print_records(records, loaded)


def _open(files: Sequence[str], stage: str | None, columns: Sequence[str]) -> Sources:
    from mmcli.data.sources.sources import MIXED, open_any, open_sources

    if stage is None:
        return open_any(files, columns=columns)
    kind = _kind_of_stage(stage)
    return open_sources(files, kind=kind, columns=columns, mixed=kind in MIXED)


def _kind_of_stage(stage: str) -> str:
    """The record kind that a stage trains on.

    Raises:
        UserError: no record kind is for this stage.
    """
    from mmcli.data.records.kinds import all_kinds

    kinds: dict[str, str] = {}
    for name, kind in all_kinds().items():
        kinds.setdefault(kind.stage, name)
    if stage not in kinds:
        raise UserError(f'--stage {stage}: there is no record kind for "{stage}"', did_you_mean(stage, list(kinds)))
    return kinds[stage]


def _stage(sources: Sources) -> str:
    """The stage that trains on records of this kind."""
    from mmcli.data.records.kinds import find_kind

    return find_kind(sources.kind).stage


def _records(sources: Sources, tokenizer: Tokenizer, limit: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The first usable records; those rejected on the way are reported on stderr."""
    from mmcli.cli.console import reporter
    from mmcli.data.preview import read_examples
    from mmcli.data.records.account import RecordAccount

    report, found, account = reporter(), [], RecordAccount()
    for item in read_examples(sources, tokenizer, account, **options):
        sides = [{"ids": each.ids, "trained": each.trained, "text": _text(tokenizer, each)} for each in item.sequences]
        values = sides[0] if len(sides) == 1 else dict(zip(SIDES, sides, strict=True))
        found.append({"file": item.record.file, "line": item.record.line, **values, "sequences": item.sequences})
        if len(found) == limit:
            break
    for rejected in account.rejections[:LISTED]:
        report.warn(f"rejected: {_place(rejected)}")
    if not found:
        first = f", the first: {_place(account.rejections[0])}" if account.rejections else ""
        what = f"no usable {_stage(sources)} record: {account.tally.rejected:,} rejected{first}"
        raise UserError(what, f"see all of them: mmcli data check --stage {_stage(sources)} ...")
    return found


def _text(tokenizer: Tokenizer, sequence: TokenSequence) -> str:
    return tokenizer.decode(sequence.ids, keep_special=True)


def _place(item: Rejected) -> str:
    from mmcli.data.preview import printable

    return printable(f"{item.file}:{item.line} {item.reason}")


def _print_records(records: list[dict[str, Any]], tokenizer: Tokenizer) -> None:
    for number, record in enumerate(records, 1):
        heading(f"record {number}  {record['file']}:{record['line']}")
        sequences: tuple[TokenSequence, ...] = record["sequences"]
        for side, sequence in zip(SIDES, sequences, strict=False):
            name = f"{side}: " if len(sequences) > 1 else ""
            detail(f"{name}{len(sequence.ids):,} tokens, {sum(sequence.trained):,} trained")
            print_tokens(tokenizer, sequence.ids, sequence.trained)


def _packed_rows(sources: Sources, tokenizer: Tokenizer, seq_len: int, limit: int) -> PackedRows:
    """The first packed rows; rejected records are reported on stderr."""
    from mmcli.cli.console import reporter
    from mmcli.data.preview import read_rows

    if seq_len < 2:
        raise UserError(f"--seq-len {seq_len} is below 2", f"give 2 or more, such as {SEQ_LEN}")
    rows = read_rows(sources, tokenizer, seq_len=seq_len, most=PACKED_RECORDS, limit=limit)
    report = reporter()
    for line in rows.tally.lines():
        report.warn(line)
    return rows


def _row_json(row: PackedRow, tokenizer: Tokenizer) -> dict[str, Any]:
    """One row of the batch that the model is given, as lists."""
    batch = row.batch
    names = {"ids": batch.ids_BT, "labels": batch.labels_BT, "positions": batch.positions_BT}
    values = {name: array[0].tolist() for name, array in names.items()}
    segments = batch.segments_BT[0].tolist()
    return {**values, "segments": segments, "text": tokenizer.decode(values["ids"], keep_special=True)}


def _print_rows(packed: PackedRows, tokenizer: Tokenizer) -> None:
    from mmcli.data.pack.batches import NO_LABEL

    detail(f"{packed.tally.kept:,} records in {packed.packing.describe()} (at most {PACKED_RECORDS:,} are read)")
    for number, row in enumerate(packed.rows, 1):
        ids, labels = row.batch.ids_BT[0].tolist(), row.batch.labels_BT[0]
        heading(f"row {number}: {len(row.segments)} segments, {row.batch.tokens:,} of {len(ids):,} places filled")
        at = 0
        for segment, (document, start, length) in enumerate(row.segments):
            targets = labels[at : at + length]
            where = f" from token {start:,}" if start else ""
            detail(
                f"segment {segment}: record {document + 1:,}{where}, {length:,} tokens, "
                f"{int((targets != NO_LABEL).sum()):,} predictions trained"
            )
            # A token is trained where the place before it has it as its label.
            trained = [0, *(targets[:-1] != NO_LABEL).astype(int).tolist()]
            print_tokens(tokenizer, ids[at : at + length], trained)
            at += length
        if at < len(ids):
            detail(f"{len(ids) - at:,} places of padding")


@app.command()
def check(
    files: Files,
    stage: StageOption = None,
    columns: Columns = None,
    tokenizer: TokenizerOption = None,
    quarantine: Annotated[Path | None, typer.Option(help="Write the rejected records to this file (JSONL).")] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Validate a data set: records kept and rejected, with reasons; lengths; exact duplicates.

    Without a tokenizer, lengths and tokens are left out, and duplicates are those of texts.

    Example: mmcli data check corpus.jsonl --stage pretrain
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.data.check import check_data
    from mmcli.text.find import find_tokenizer, has_tokenizer

    if quarantine is not None and quarantine.exists():
        raise UserError(f"{quarantine} exists", "give --quarantine the name of a new file")
    sources = _open(files, stage, columns or [])
    report = reporter()
    if tokenizer is None and not has_tokenizer(runs_dir):
        report.note(f"no tokenizer in {runs_dir} yet: tokens are not counted (mmcli tokenizer train, or --tokenizer)")
        loaded = None
    else:
        loaded = find_tokenizer(tokenizer, runs_dir)
    report.note(f"data: {sources.describe}")
    found = check_data(sources, loaded, quarantine=quarantine, report=report)
    written = quarantine if found.tally.rejected else None
    if json:
        print_json(_as_json(found, _stage(sources), written))
    else:
        _print_check(found, _stage(sources), written)
    if found.unusable is not None:
        raise found.unusable


def _as_json(found: DataCheck, stage: str, quarantine: Path | None) -> dict[str, Any]:
    tally = found.tally
    return {
        "stage": stage,
        "kept": tally.kept,
        "rejected": tally.rejected,
        "total": tally.total,
        "reasons": tally.reasons,
        "kinds": found.kinds,
        "duplicates": found.duplicates,
        "sequences": len(found.lengths) if found.tokenized else None,
        "tokens": found.tokens if found.tokenized else None,
        "trained_tokens": found.trained if found.tokenized else None,
        "text_bytes": found.text_bytes,
        "lengths": _percentiles(found),
        "mixture": found.mixture
        and [{"name": name, "tokens": count, "epoch_tokens": used} for name, used, count in found.mixture],
        "course": found.course and [{"start": start, "end": end} for start, end in found.course],
        "histogram": [{"from": low, "to": high, "sequences": count} for low, high, count in found.histogram()],
        "rejections": [{"file": each.file, "line": each.line, "reason": each.reason} for each in found.rejections],
        "quarantine": None if quarantine is None else str(quarantine),
    }


def _percentiles(found: DataCheck) -> dict[str, int]:
    """The shortest, middle, 95th percentile and longest sequence, in tokens."""
    ordered = sorted(found.lengths.tolist())
    if not ordered:
        return {}
    places = {"shortest": 0.0, "median": 0.5, "p95": 0.95, "longest": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in places.items()}


def _print_check(found: DataCheck, stage: str, quarantine: Path | None) -> None:
    tally = found.tally
    heading(f"{tally.total:,} records for {stage}: {tally.kept:,} kept, {tally.rejected:,} rejected")
    if found.kinds:
        detail("kinds: " + ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.items()))
    if tally.kept:
        what = "tokens" if found.tokenized else "texts"
        detail(f"duplicates: {found.duplicates:,} kept records with exactly the {what} of an earlier one")
    if tally.kept and not found.tokenized:
        detail(f"{found.text_bytes:,} bytes of text")
    elif tally.kept:
        share = found.trained / found.tokens
        detail(f"{found.tokens:,} tokens, {found.trained:,} trained ({share:.0%}), of {found.text_bytes:,} bytes")
        detail("lengths in tokens: " + ", ".join(f"{name} {n:,}" for name, n in _percentiles(found).items()))
        if found.mixture is not None:
            from mmcli.data.pack.selection import describe_mixture

            names, taken, tokens = zip(*found.mixture, strict=True)
            detail(describe_mixture(names, taken, tokens, found.course))
        print_histogram(found.histogram())
    if tally.rejected:
        heading("rejected")
        for reason, count in tally.reasons.items():
            print_text(f"{count:>8,}  {reason}")
        for item in found.rejections[:LISTED]:
            detail(_place(item))
        if tally.rejected > LISTED:
            more = "" if quarantine else " (--quarantine FILE writes them all)"
            detail(f"... and {tally.rejected - LISTED:,} more{more}")
        if quarantine is not None:
            detail(f"all of them are in {quarantine}")
