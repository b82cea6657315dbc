"""What only Unix has is not needed, text is UTF-8 whatever the locale, and a closed stream costs nothing."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_UNIX = Path(__file__).with_name("without_unix.py")
SOURCES = sorted([*(ROOT / "mmcli").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
TINY = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.vocab_size=320", "train.checkpoint_every=2"]
SETS = [word for setting in TINY for word in ("--set", setting)]
SHAPE = ["--seq-len", "32", "--batch-size", "2", "--steps", "3"]
BINARY_OPEN = ("os", "bz2", "gzip", "lzma", "tarfile", "codec")  # whose `open` gives bytes unless it is asked for text
LOCALES = {
    "C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "cp1252": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},
    "gbk": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "gbk"},
}


def write_data(folder: Path) -> None:
    facts = [(name, place) for name in ("Ada", "Bo", "小明", "小红") for place in ("Rome", "Oslo", "北京")]
    (folder / "text.txt").write_text("\n".join(f"{n} lives in {p}." for n, p in facts * 3), encoding="utf-8")
    lines = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": p}]} for n, p in facts
    ]
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def run(folder: Path, *argv: str, program: tuple[str, ...] = ("-m", "mmcli"), **environment: str) -> str:
    """The stdout of a command, which must end well, in UTF-8."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *program, *argv], cwd=folder, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "surrogateescape")


def test_the_main_commands_need_nothing_that_only_unix_has(tmp_path: Path) -> None:
    write_data(tmp_path)
    commands = [
        ["tokenizer", "train", "--data", "text.txt", "--vocab-size", "320"],
        ["pretrain", "--data", "text.txt", *SHAPE, *SETS],
        ["resume", "2"],
        ["sft", "--data", "chat.jsonl", *SHAPE],
        ["chat", "--prompt", "Ada?", "--max-new-tokens", "4", "--temperature", "0", "--json"],
        ["export", "onnx"],
        ["runs", "list"],
    ]
    script = [
        "import json, pathlib, shutil, sys",
        f"sys.path.insert(0, {str(WITHOUT_UNIX.parent)!r})",
        "import without_unix",
        "without_unix.take_away()",
        "import mmcli.cli, mmcli.find",
        "for argv in json.loads(sys.argv[1]):",
        "    if argv[0] == 'resume':  # as if it had been stopped after its first checkpoint",
        "        run = mmcli.find.find_run('2', pathlib.Path('runs'))",
        "        run.update(state='stopped')",
        "        shutil.rmtree(run.checkpoints / 'step-000003')",
        "    sys.argv = ['mmcli', *argv]",
        "    code = mmcli.cli.run(argv)",
        "    assert code == 0, (argv, code)",
    ]
    out = run(tmp_path, json.dumps(commands), program=("-c", "\n".join(script)))
    assert '"reply"' in out
    runs = {path.name.split("-")[1] for path in (tmp_path / "runs").iterdir() if path.name[0].isdigit()}
    assert runs == {"tokenizer", "pretrain", "sft"}
    assert list((tmp_path / "runs").glob("*-sft-*/export/*/*.onnx"))


def test_locks_of_windows_hold_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Windows half of mmcli.lock, over a stand-in of msvcrt that locks as Windows does: by open file."""
    fcntl = pytest.importorskip("fcntl")

    def locking(descriptor: int, mode: int, size: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("lock_of_windows", ROOT / "mmcli" / "lock.py")
    assert spec is not None and spec.loader is not None
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    path = tmp_path / "run.lock"
    with lock.file_lock(path) as held:
        assert held
        assert lock.is_locked(path)
        with pytest.raises(lock.Locked), lock.file_lock(path):
            pass
    assert not path.exists()
    assert not lock.is_locked(path)


def test_every_text_file_is_opened_as_utf_8() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in _without_encoding(path)]
    assert not found


def _without_encoding(path: Path) -> list[int]:
    """Lines of a source that read or write text in the locale's encoding."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        value = getattr(node.func, "value", None)
        owner = getattr(value, "id", getattr(value, "attr", "")).lstrip("_")
        given = {keyword.arg for keyword in node.keywords}
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        texts += [k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        binary = any("b" in text and len(text) <= 3 for text in texts)
        is_open = name == "open" and owner not in BINARY_OPEN and not binary
        is_text = name in ("read_text", "write_text") and owner not in ("distribution", "formatter")
        is_process = owner == "subprocess" and bool({"text", "universal_newlines"} & given)
        if (is_open or is_text or is_process) and "encoding" not in given:
            lines.append(node.lineno)
    return lines


def test_processes_are_fresh_interpreters() -> None:
    """Nothing depends on fork or on a start method: workers are commands, the same on every system."""
    found = [
        f"{path.relative_to(ROOT)}: {alias.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in [*node.names, ast.alias(getattr(node, "module", None) or "")]
        if alias.name.partition(".")[0] == "multiprocessing"
    ]
    assert not found


GUARDED = {
    "os": {"register_at_fork", "fork", "sched_getaffinity", "geteuid", "getuid", "setsid", "killpg", "mkfifo"}
    | {"O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "statvfs", "pread", "sysconf", "posix_fadvise", "getpgid"},
    "signal": {"SIGHUP", "SIGKILL", "SIGALRM", "SIGPIPE", "SIGUSR1", "setitimer", "pthread_sigmask", "SIGXFSZ"},
}


def test_what_only_unix_has_stands_behind_a_guard() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}" for path in SOURCES if "tests" not in path.parts for name in _bare(path)
    ]
    assert not found


def _bare(path: Path) -> list[str]:
    """Names that only Unix has, in a source that asks neither for them nor for the platform."""
    text = path.read_text(encoding="utf-8")
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            asked = f'hasattr({module}, "{name}")' in text or "sys.platform" in text or "AttributeError" in text
            if name in GUARDED.get(module, ()) and not asked:
                found.append(f"{module}.{name}")
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("数据")
    write_data(folder)
    run(folder, "pretrain", "--data", "text.txt", *SHAPE, *SETS)
    return folder


@pytest.mark.parametrize("name", LOCALES)
def test_any_locale(trained: Path, name: str) -> None:
    """Chinese and emoji in paths, data, notes and answers; JSON is UTF-8."""
    data = trained / "对话 🙂.txt"
    data.write_text("猫在屋里睡觉。🙂 Café\n" * 4, encoding="utf-8")
    shown = run(trained, "data", "preview", str(data), **LOCALES[name])
    assert shown
    said = run(trained, "chat", "--prompt", "猫🙂", "--max-new-tokens", "4", "--json", **LOCALES[name])
    assert json.loads(said)["tokens"] if "tokens" in json.loads(said) else json.loads(said)["reply"] is not None
    ids = run(trained, "runs", "list", "--json", **LOCALES[name])
    assert json.loads(ids)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.skipif(os.name != "posix", reason="the shell's way to close a stream")
def test_a_closed_stream_costs_nothing(trained: Path, tmp_path: Path, closed: str) -> None:
    options = " ".join(SHAPE + SETS)
    command = f'"{sys.executable}" -m mmcli pretrain --data text.txt {options} --runs-dir "{tmp_path}" {closed}'
    done = subprocess.run(command, shell=True, cwd=trained, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert json.loads(next(tmp_path.glob("0001-*/run.json")).read_text(encoding="utf-8"))["state"] == "finished"
