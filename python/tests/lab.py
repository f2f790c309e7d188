"""The built binaries, and a vCenter and a daemon to use them with."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
from collections import deque
from typing import Deque, Dict, List, Mapping, Optional

# Where `make test` built them. It sets this; without it, tests that need them
# are left out if they are not there.
BUILD = os.environ.get("H2KVM_BUILD") or os.path.join(os.path.dirname(__file__), "..", "..", "build")
BUILD = os.path.abspath(BUILD)

# How long a program may take to begin or to end, in seconds.
PATIENCE = 60.0


def binary(name: str) -> str:
    """The path of a built binary. Where there is none, the tests are skipped, unless they were to be there."""
    path = os.path.join(BUILD, name)
    if not os.access(path, os.X_OK):
        if os.environ.get("H2KVM_BUILD"):
            raise AssertionError(f"{path} is not there; `make test` builds it")
        raise unittest.SkipTest(f"{path} is not there; `make test` builds it")
    return path


def missing(what: str) -> None:
    """Skips a test for want of a program or a module that not everybody has; CI installs it, so there it is a failure."""
    if os.environ.get("CI"):
        raise AssertionError(f"there is no {what} here; .ci/run installs it")
    raise unittest.SkipTest(f"there is no {what} here")


def environment(**settings: str) -> Dict[str, str]:
    """The environment without what would lead to another vCenter or daemon, with these settings."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith(("H2KVM", "GOVC"))}, **settings}


class Server:
    """A program that serves until it is stopped. What it prints is read line by line."""

    def __init__(self, *argv: str, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lines: Deque[str] = deque(maxlen=500)
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as out:
            for line in out:
                with self._news:
                    self._lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """The first line that has the pattern; waits for it."""
        end = time.monotonic() + PATIENCE
        with self._news:
            while True:
                for line in self._lines:
                    match = re.search(pattern, line)
                    if match:
                        return match
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"{self._process.args!r} did not print {pattern!r}:\n" + "\n".join(self._lines))
                self._news.wait(left)

    def lines(self) -> List[str]:
        """What it has printed so far."""
        with self._news:
            return list(self._lines)

    def stop(self) -> None:
        """Asks it to end, and waits for that."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(PATIENCE)


class Lab:
    """A simulated vCenter, a daemon that exports from it, and a folder for what comes of it."""

    def __init__(self, *flags: str) -> None:
        self.ctl = binary("h2kvmctl")
        self._daemon_binary = binary("hyper2kvmd")
        lab_binary = binary("h2kvm-lab")
        self.folder = tempfile.mkdtemp(prefix="h2kvm-test-")
        self._servers: List[Server] = []
        self.url = ""
        try:
            vcenter = Server(lab_binary, "-small", *flags, env=environment())
            self._servers.append(vcenter)
            vcenter.wait_for("VMs worth trying")
            exports = (shlex.split(line) for line in vcenter.lines() if line.startswith("export "))
            self.govc = dict(words[1].split("=", 1) for words in exports)
            self.daemon = self.start_daemon()
        except BaseException:
            self.close()
            raise

    def start_daemon(self, address: str = "127.0.0.1:0") -> Server:
        """Starts the daemon and waits until it serves; url is where."""
        daemon = Server(self._daemon_binary, "-addr", address, "-state", os.path.join(self.folder, "state"), env=environment(**self.govc))
        self._servers.append(daemon)
        self.url = "http://" + daemon.wait_for(r"daemon started.*addr=([0-9.:]+)").group(1)
        return daemon

    def output(self, name: str) -> str:
        """A folder for an export."""
        return os.path.join(self.folder, "export", name)

    def env(self, **settings: str) -> Dict[str, str]:
        """The environment of a program that is to use the daemon."""
        path = BUILD + os.pathsep + os.environ.get("PATH", "")
        return environment(**{"H2KVMD_URL": self.url, "H2KVMCTL_PATH": self.ctl, "PATH": path, **settings})

    def close(self) -> None:
        """Ends everything."""
        for server in reversed(self._servers):
            server.stop()
        shutil.rmtree(self.folder)


def run(*argv: str, env: Mapping[str, str], data: Optional[str] = None) -> "subprocess.CompletedProcess[str]":
    """Runs a program to its end, both of its outputs in one."""
    return subprocess.run(argv, env=dict(env), input=data or "", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
