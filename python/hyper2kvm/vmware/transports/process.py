"""Runs a program with bounds on its time and on what is read of it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import IO, List, Mapping, Optional, Sequence

# How long a program may take to end once it was asked to, and how long its
# pipes may stay open once it has ended, in seconds.
GRACE = 10.0

# What is kept of a program's messages, in bytes: the end, which has the error.
MAX_MESSAGES = 64 << 10


class OutputTooLarge(Exception):
    """A program wrote more than it was allowed to."""


class TimedOut(Exception):
    """A program did not end in time."""


@dataclass(frozen=True)
class Finished:
    """How a program ended. A negative code is the signal that killed it."""

    code: int
    output: bytes
    messages: str


def run(
    argv: Sequence[str], *, env: Optional[Mapping[str, str]] = None, data: bytes = b"",
    timeout: Optional[float] = None, max_output: Optional[int] = None,
) -> Finished:
    """Runs a program to its end, with data as its input.

    timeout is in seconds; None is no bound. Output beyond max_output bytes ends
    the program with OutputTooLarge; with None its last MAX_MESSAGES bytes are
    kept. The program has a session of its own, so that Ctrl-C at the terminal
    is this process's to deal with: whatever exception ends the wait, the
    program is ended first, and what it started with it.

    Raises OSError when it cannot be started, ValueError when an argument holds
    a NUL, TimedOut, OutputTooLarge.
    """
    process = subprocess.Popen(
        list(argv), env=None if env is None else dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )
    threads: List[threading.Thread] = []
    try:
        assert process.stdin and process.stdout and process.stderr
        output = _Reader(process, process.stdout, MAX_MESSAGES if max_output is None else max_output, strict=max_output is not None)
        messages = _Reader(process, process.stderr, MAX_MESSAGES, strict=False)
        for thread in (output, messages, threading.Thread(target=_feed, args=(process.stdin, data), daemon=True)):
            thread.start()
            threads.append(thread)
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise TimedOut(f"no end after {timeout:g} seconds") from None
    finally:
        _end(process)
        for thread in threads:
            # Something it left behind may hold the pipes open.
            thread.join(GRACE)
    if output.exceeded:
        raise OutputTooLarge(f"more than {max_output} bytes of output")
    return Finished(process.returncode, output.text(), messages.text().decode("utf-8", "replace"))


def _feed(stdin: IO[bytes], data: bytes) -> None:
    try:
        with stdin:
            stdin.write(data)
    except OSError:
        pass  # it ended without reading; its exit code tells more


class _Reader(threading.Thread):
    """Reads a pipe to its end and keeps at most limit bytes: when strict, more ends the program; else the last ones."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes], limit: int, *, strict: bool) -> None:
        super().__init__(daemon=True)
        self._process, self._pipe, self._limit, self._strict = process, pipe, limit, strict
        self._kept = bytearray()
        self.exceeded = False

    def run(self) -> None:
        with self._pipe as pipe:
            while True:
                chunk = os.read(pipe.fileno(), 64 << 10)
                if not chunk:
                    return
                self._kept += chunk
                if len(self._kept) <= self._limit:
                    continue
                if self._strict:
                    self.exceeded = True
                    _signal(self._process, signal.SIGKILL)
                    return
                del self._kept[: -self._limit]

    def text(self) -> bytes:
        return bytes(self._kept)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program and what it started: politely, so that it can clean up, then for good."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also when Ctrl-C comes a second time.
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is not None:
        return  # its id may be another's by now
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
