"""Errors shown to the user, in two lines: what is wrong, and what to do about it."""

from __future__ import annotations


class MmcliError(Exception):
    """A failure that is not the user's mistake (exit code 1).

    `what` names the value and the place (file:line, key, path); `fix` is an instruction in the imperative.
    """

    exit_code = 1
    of_every_rank = False  # the processes of a training raise it together: the first one alone says it

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n{fix}")
        self.what = what
        self.fix = fix


class UserError(MmcliError):
    """Invalid user input: a missing file, an unknown key, a wrong value (exit code 2)."""

    exit_code = 2


class Stopped(MmcliError):
    """A run that cannot go on for now, such as with a full disk; it can be resumed (exit code 2)."""

    exit_code = 2


class Interrupted(Stopped):
    """A run that was stopped by a signal, after saving (exit code 128 + signal: 129, 130 or 143)."""

    of_every_rank = True

    def __init__(self, what: str, fix: str, signal_number: int) -> None:
        super().__init__(what, fix)
        self.exit_code = 128 + signal_number


class Terminated(BaseException):
    """SIGTERM or SIGHUP, raised in the main thread, as SIGINT raises KeyboardInterrupt: `finally` blocks run."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def did_you_mean(word: str, known: list[str]) -> str:
    """`did you mean "x"?` for the closest of `known`, else `choose one of:` and all of them."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"choose one of: {', '.join(sorted(known))}"
