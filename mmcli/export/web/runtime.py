"""The two files of ONNX Runtime Web that a web export needs: from a folder, or from npm's registry."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from mmcli.errors import MmcliError, UserError
from mmcli.stage import Reporter

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # of the .tgz
TARBALL_BYTES = 33_106_585
# name in the npm package's dist/ -> name in the export. `.js`, as some static servers do not know `.mjs`.
FILES = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm"}
BY_HAND = f"--runtime FOLDER with what `npm pack onnxruntime-web@{VERSION}` holds"
HOW = f"give --download (33 MB from npm's registry), or {BY_HAND}"
CHUNK = 1 << 18


def copy_runtime(folder: Path | None, *, download: bool, into: Path, report: Reporter) -> None:
    """Write ort.js and ort.wasm into `into`.

    Args:
        folder: the npm package onnxruntime-web, a node_modules that holds it, or its dist/.
        download: fetch the package instead; its checksum is fixed, whatever registry sends it (NPM_CONFIG_REGISTRY).

    Raises:
        UserError: neither or both are asked for, or the folder lacks the files.
        MmcliError: the registry cannot be reached, or sends something else.
    """
    refuse_unclear(folder, download=download)
    into.mkdir()
    if folder is not None:
        dist = _dist(folder)
        for source, target in FILES.items():
            shutil.copyfile(dist / source, into / target)
        return
    with tempfile.TemporaryFile() as file:
        _fetch(file, report)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for source, target in FILES.items():
                member = archive.extractfile(f"package/dist/{source}")
                assert member is not None  # the checksum is that of a package that holds it
                with open(into / target, "wb") as out:
                    shutil.copyfileobj(member, out)


def refuse_unclear(folder: Path | None, *, download: bool) -> None:
    """Raise UserError unless exactly one source of the runtime is given, and holds it."""
    if folder is None and not download:
        raise UserError(f"a web export needs onnxruntime-web {VERSION}, which mmcli does not carry", HOW)
    if folder is not None and download:
        raise UserError("--runtime and --download are two sources of the same files", "give one of them")
    if folder is not None:
        _dist(folder)


def _dist(folder: Path) -> Path:
    for place in (folder, folder / "dist", folder / "package" / "dist", folder / "onnxruntime-web" / "dist"):
        if all((place / name).is_file() for name in FILES):
            return place
    raise UserError(f"{folder} has no {' and '.join(FILES)}", HOW)


def _fetch(file: IO[bytes], report: Reporter) -> None:
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or "https://registry.npmjs.org"
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    if not url.startswith("https://"):
        raise UserError(
            f"NPM_CONFIG_REGISTRY = {registry} is not an https address", "give one, or use --runtime FOLDER"
        )
    digest, loaded = hashlib.sha512(), 0
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                loaded += file.write(chunk)
                report.progress("onnxruntime-web", loaded, TARBALL_BYTES, "bytes")
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        fix = f"try again, set NPM_CONFIG_REGISTRY to a mirror, or give {BY_HAND}"
        raise MmcliError(f"cannot download {url}: {reason}", fix) from None
    if base64.b64encode(digest.digest()).decode() != SHA512:
        what = f"{url} sent another file than onnxruntime-web {VERSION} (SHA-512 differs)"
        raise MmcliError(what, "try again or use another registry; nothing of it was kept")
