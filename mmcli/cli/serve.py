"""`mmcli serve`: models behind the HTTP interface of OpenAI. The address is on stdout, the rest on stderr."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcli.cli.help import App
from mmcli.cli.options import Backend, Device, RunsDir
from mmcli.errors import MmcliError, UserError
from mmcli.serve.hosts import is_loopback

if TYPE_CHECKING:
    from mmcli.run import ModelRef

app = App()
NEEDED = ("fastapi", "uvicorn")


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Run numbers or names, model folders, latest (the default)."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Adapter of the model, served under NAME beside it; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs --api-key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="MMCLI_API_KEY", show_envvar=True, help="Key that every request must bring."),
    ] = None,
    slots: Annotated[int, typer.Option(help="Replies that each model writes at once.")] = 8,
    queue: Annotated[int, typer.Option(help="Replies that may wait for a slot; beyond that 429 is answered.")] = 64,
    max_len: Annotated[
        int | None, typer.Option(help="Tokens of prompt and reply together; default: the model's context.")
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Most that weights, keys and values may take; default: what is available."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Origin whose web pages may use the server; repeatable."),
    ] = None,
    backend: Backend = "torch",
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Serve models over HTTP, as OpenAI's API does, with a chat page.

    Replies of several clients are written together (continuous batching). Ctrl-C lets them finish for a few seconds.

    Example: mmcli serve; mmcli serve 7 latest:sft --port 8080; mmcli serve --host 0.0.0.0 --api-key SECRET
    """
    _check(host, api_key, slots, queue, max_len, cors or [])
    if max_memory is not None and not max_memory > 0:
        raise UserError(f"--max-memory {max_memory:g} is not above 0", "give gigabytes, such as 2 or 0.5")
    from mmcli.find import find_language_model

    refs = {word: find_language_model(word, runs_dir) for word in models or ["latest"]}
    adapters = _read_adapters(adapter or [], refs)
    _need_packages()
    _serve(refs, adapters, host, port, api_key, slots, queue, max_len, max_memory, cors or [], backend, device)


def _check(host: str, api_key: str | None, slots: int, queue: int, max_len: int | None, cors: list[str]) -> None:
    """Refuse what cannot be, and what would be open to everyone."""
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise UserError("--api-key is empty, or has blanks around it or characters beyond ASCII", "give another key")
    if not is_loopback(host) and api_key is None:
        raise UserError(
            f"--host {host} lets other machines in, and there is no key",
            "give --api-key KEY, or leave --host out to serve this machine alone",
        )
    for name, value, least in (("--slots", slots, 1), ("--queue", queue, 0), ("--max-len", max_len, 2)):
        if value is not None and value < least:
            raise UserError(f"{name} {value} is below {least}", f"give {least} or more")
    for origin in cors:
        if origin != "*" and ("://" not in origin or origin.endswith("/")):
            raise UserError(f"--cors {origin} is not an origin", "give one such as https://example.com, or *")


def _read_adapters(arguments: list[str], refs: dict[str, ModelRef]) -> dict[str, Path]:
    """The folders of adapters, by the names under which they are served."""
    found: dict[str, Path] = {}
    for argument in arguments:
        name, _, folder = argument.partition("=")
        if not name or not folder:
            what = f"--adapter {argument} is not NAME=DIR"
            raise UserError(what, "write it like: --adapter tutor=runs/0004-sft/adapter")
        if name in found or name in refs:
            raise UserError(f'--adapter {argument}: there is a "{name}" already', "give each a name of its own")
        found[name] = Path(folder).expanduser()
    if found and len(refs) != 1:
        raise UserError(f"--adapter goes with one model, and {len(refs)} are named", "name the model of the adapters")
    return found


def _need_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MmcliError(f"mmcli serve needs {' and '.join(missing)}", 'install them: pip install "mmcli[serve]"')


def _serve(
    refs: dict[str, ModelRef],
    adapters: dict[str, Path],
    host: str,
    port: int,
    api_key: str | None,
    slots: int,
    queue: int,
    max_len: int | None,
    max_memory: float | None,
    cors: list[str],
    backend: str,
    device: str,
) -> None:
    from mmcli.cli.console import reporter
    from mmcli.serve.app import create_app
    from mmcli.serve.models import check_memory, footprint, open_adapter, open_model, refuse_same_names
    from mmcli.serve.server import Server, listen

    report = reporter()
    unique = list({ref.path.resolve(): ref for ref in refs.values()}.values())
    refuse_same_names(unique, adapters)
    footprints = [footprint(ref, slots=slots, max_len=max_len) for ref in unique]
    footprints += [replace(footprints[0], name=name, weights=0) for name in adapters]
    bytes_needed = check_memory(footprints, None if max_memory is None else max_memory * 1e9)
    bound = listen(host, port)
    served = {
        ref.path.resolve(): open_model(
            ref, backend, device=device, slots=slots, max_len=max_len, queue=queue, report=report
        )
        for ref in unique
    }
    [base_ref, *_] = unique
    base = served[base_ref.path.resolve()]
    opened = [
        *served.values(),
        *(open_adapter(base, base_ref, name, folder, queue=queue) for name, folder in adapters.items()),
    ]
    names = {each.name: each for each in opened}
    names |= {word: served[ref.path.resolve()] for word, ref in refs.items()}
    for each in opened:
        kind = "" if each.chat else ", only continues text: /v1/completions"
        report.note(f"serving {each.name}: {slots} slots of {each.engine.max_len:,} tokens{kind}")
    report.note(f"memory: up to {bytes_needed / 1e9:.2f} GB for weights, keys and values; Ctrl-C stops")
    address = f"[{host}]" if ":" in host.strip("[]") else host
    typer.echo(f"http://{address}:{bound.getsockname()[1]}")
    Server(create_app(names, api_key=api_key, cors=cors), opened).run(sockets=[bound])
