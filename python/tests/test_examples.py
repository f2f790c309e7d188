"""The files in examples/, run as a reader would run them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import unittest
from typing import Any, Dict, List, Tuple

from .lab import PATIENCE, Lab, missing, run

EXAMPLES = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "examples"))
SLOW = "/DC0/vm/Lab/incompressible"

lab: Lab


def setUpModule() -> None:
    global lab
    lab = Lab("-fault", "BytesPerSecond=20000@incompressible")
    unittest.addModuleCleanup(lab.close)


def options(folder: str) -> Any:
    """What the daemon was asked for, for the export in this folder."""
    answer = json.loads(run(lab.ctl, "query", "-all", "-json", env=lab.env()).stdout)
    found, = (job["definition"] for job in answer["jobs"] if job["definition"]["output_path"] == folder)
    return found["options"]


class Bash(unittest.TestCase):
    def example(self, *args: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return run(os.path.join(EXAMPLES, "export.sh"), *args, env=lab.env(**{"EVERY": "0.2", **settings}))

    def test_export(self) -> None:
        done = self.example(lab.output("bash"), "web01", "/DC0/vm/Production/uefi01")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(done.stdout.count(" completed\n"), 2, done.stdout)
        self.assertTrue(options(lab.output("bash/uefi01"))["remove_cdrom"])

    def test_failed_job(self) -> None:
        done = self.example(lab.output("bash-failed"), "nope", "web01")
        self.assertEqual(done.returncode, 4, done.stdout)
        self.assertIn('find VM "nope": no such VM', done.stdout)
        self.assertIn(" completed\n", done.stdout)

    def test_usage_and_refusal(self) -> None:
        self.assertEqual(self.example().returncode, 2)
        done = self.example("relative", "web01")
        self.assertEqual(done.returncode, 2)
        self.assertIn("absolute", done.stdout)

    def test_daemon_away(self) -> None:
        self.assertEqual(self.example(lab.output("x"), "web01", H2KVMD_URL="http://127.0.0.1:1").returncode, 3)

    def test_interrupt_cancels(self) -> None:
        with subprocess.Popen(
            [os.path.join(EXAMPLES, "export.sh"), lab.output("bash-slow"), SLOW], env=lab.env(EVERY="0.2"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        ) as child:
            assert child.stdout
            child.stdout.readline()
            os.killpg(child.pid, signal.SIGTERM)
            rest, _ = child.communicate(timeout=PATIENCE)
        self.assertEqual(child.returncode, 130, rest)
        self.assertIn("Cancelled Jobs: 1", rest)


class Rest(unittest.TestCase):
    def example(self, *args: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return run(sys.executable, os.path.join(EXAMPLES, "export_rest.py"), *args, env=lab.env(**settings))

    def test_export(self) -> None:
        done = self.example("cdrom01", lab.output("rest"), "parallel_downloads=2", "remove_cdrom=true")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("cdrom01.ovf: ", done.stdout)
        self.assertIn("verified: True", done.stdout)
        self.assertEqual([options(lab.output("rest"))[key] for key in ("parallel_downloads", "remove_cdrom")], [2, True])

    def test_failed_job(self) -> None:
        done = self.example("nope", lab.output("rest-failed"))
        self.assertEqual(done.returncode, 4, done.stdout)
        self.assertIn('find VM "nope": no such VM', done.stdout)

    def test_errors(self) -> None:
        cases: List[Tuple[int, str, Tuple[str, ...], Dict[str, str]]] = [
            (2, "examples/export_rest.py VM FOLDER", (), {}),
            (2, 'unknown key "bogus"', ("web01", lab.output("x"), "bogus=1"), {}),
            (3, "reach daemon at http://127.0.0.1:1: ", ("web01", lab.output("x")), {"H2KVMD_URL": "127.0.0.1:1"}),
            (2, "would travel unencrypted", ("web01", lab.output("x")), {"H2KVMD_URL": "http://192.0.2.1", "H2KVMD_TOKEN": "sesame"}),
        ]
        for code, what, args, settings in cases:
            with self.subTest(what):
                done = self.example(*args, **settings)
                self.assertEqual(done.returncode, code, done.stdout)
                self.assertIn(what, done.stdout)
                self.assertNotIn("sesame", done.stdout)


class Ansible(unittest.TestCase):
    def playbooks(self) -> List[str]:
        folder = os.path.join(EXAMPLES, "ansible")
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]

    def test_syntax(self) -> None:
        try:
            import yaml
        except ImportError:
            missing("module yaml")
        for path in self.playbooks():
            with self.subTest(path), open(path, encoding="utf-8") as f:
                for play in yaml.safe_load(f):
                    self.assertEqual(play["hosts"], "all")
                    for task in play["tasks"]:
                        self.assertEqual(len([key for key in task if key.startswith("ansible.builtin.")]), 1, task)

    def test_run(self) -> None:
        if not shutil.which("ansible-playbook"):
            missing("ansible-playbook")
        for path in self.playbooks():
            folder = lab.output(os.path.basename(path))
            settings = {"daemon": lab.url, "h2kvmctl": lab.ctl, "folder": folder, "every": 1, "ansible_python_interpreter": sys.executable}
            with self.subTest(path):
                done = run("ansible-playbook", "-i", "localhost,", "-c", "local", "-e", json.dumps(settings), path, env=lab.env())
                self.assertEqual(done.returncode, 0, done.stdout)
                self.assertIn(os.path.join(folder, "web01", "web01.ovf"), done.stdout)
                self.assertEqual([options(os.path.join(folder, "uefi01"))[key] for key in ("parallel_downloads", "remove_cdrom")], [4, True])


if __name__ == "__main__":
    unittest.main()
