"""A program that answers as a test wants it to, in place of h2kvmctl or govc."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import unittest
from typing import Any, Dict, List, Mapping, Optional

# Each run writes down how it was called and gives the next answer; the last
# answer is given again and again. "touch" is a file to make, its folder too.
# "hang" goes on until it is killed.
PROGRAM = """#!%s -IS
import json, os, signal, sys
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "answers.json")) as f:
    answers = json.load(f)
env = {k: v for k, v in os.environ.items() if k.startswith(("H2KVM", "GOVC"))}
with open(os.path.join(here, "calls.jsonl"), "a+") as f:
    f.seek(0)
    answer = answers[min(len(f.readlines()), len(answers) - 1)]
    f.write(json.dumps({"argv": sys.argv[1:], "stdin": "" if answer.get("deaf") else sys.stdin.read(), "env": env}) + "\\n")
if answer.get("hang"):
    signal.pause()
for path in answer.get("touch", []):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write("whole")
for _ in range(answer.get("times", 1)):
    sys.stdout.write(answer.get("out", ""))
sys.stdout.flush()
sys.stderr.write(answer.get("err", ""))
sys.stderr.flush()
if answer.get("kill"):
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(answer.get("code", 0))
"""


class Fake:
    """A fake program called name, in a folder of its own that goes with the test."""

    def __init__(self, test: unittest.TestCase, name: str = "h2kvmctl") -> None:
        self.folder = tempfile.mkdtemp(prefix="h2kvm-test-")
        test.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, name)
        with open(self.path, "w", encoding="utf-8") as f:
            f.write(PROGRAM % sys.executable)
        os.chmod(self.path, 0o755)

    def answers(self, *answers: Mapping[str, Any]) -> None:
        """Sets what the next runs do."""
        with open(os.path.join(self.folder, "answers.json"), "w", encoding="utf-8") as f:
            json.dump(answers, f)

    def calls(self) -> List[Dict[str, Any]]:
        """How it was called: argv, stdin and the settings in its environment."""
        try:
            with open(os.path.join(self.folder, "calls.jsonl"), encoding="utf-8") as f:
                return [json.loads(line) for line in f]
        except FileNotFoundError:
            return []


def says(answer: Any, **more: Any) -> Dict[str, Any]:
    """An answer in JSON."""
    return {"out": json.dumps(answer), **more}


ID = "aafd6c12-0a97-4f3b-ab92-61a1fccba6fb"
STATUS = {"version": "1.0.0", "uptime": "1m5s", "total_jobs": 1, "running_jobs": 1, "timestamp": "2026-11-23T02:55:04.28189752Z"}
ACCEPTED = {"job_ids": [ID], "accepted": 1, "rejected": 0, "errors": [], "timestamp": STATUS["timestamp"]}
AWAY = {"code": 3, "err": "ERROR: query jobs: reach daemon at http://127.0.0.1:1: connection refused\n       start hyper2kvmd\n"}
RESULT = {
    "vm_name": "web01", "output_dir": "/srv/web01", "ovf_path": "/srv/web01/web01.ovf", "files": ["/srv/web01/web01.ovf"],
    "total_size": 5120, "duration": "1m2.5s", "verified": True, "warnings": ["a sentence"],
}


def job(status: str, percent: Optional[float] = None, **more: Any) -> Dict[str, Any]:
    """A job as the daemon shows it."""
    out: Dict[str, Any] = {
        "id": ID, "status": status, "created_at": "2026-11-23T02:55:05Z", "updated_at": "2026-11-23T02:55:05Z",
        "definition": {"name": "web01", "vm_path": "/DC0/vm/web01", "output_path": "/srv/web01", "options": {"format": "ovf"}},
    }
    if percent is not None:
        out["progress"] = {"phase": "exporting", "percent_complete": percent, "estimated_remaining": "15s", "files": [
            {"name": "web01-disk-0.vmdk", "state": "downloading", "position": 25, "capacity": 100, "bytes": 20, "attempt": 2}]}
    if status == "completed":
        out["result"] = RESULT
    return {**out, **more}


def jobs(*found: Dict[str, Any]) -> Dict[str, Any]:
    """The answer of `query -json`."""
    return says({"jobs": list(found), "total": len(found), "timestamp": STATUS["timestamp"]})
