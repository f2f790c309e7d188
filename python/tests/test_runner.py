from __future__ import annotations

import ast
import inspect
import json
import os
import pickle
import subprocess
import time
import typing
import unittest
from typing import Any, Dict, List
from unittest import mock

from hyper2kvm.vmware import transports
from hyper2kvm.vmware.transports import (
    BadAnswer, DaemonUnreachable, H2KVMCtlNotFound, H2KVMCtlRunner, H2KVMError, Job, JobCancelled, JobFailed, JobTimeout,
    NotAuthorised, UsageError, create_h2kvmctl_runner, find_h2kvmctl, govc, h2kvmctl_runner, models, process,
)

from .fake import ACCEPTED, AWAY, ID, STATUS, Fake, job, jobs, says


class RunnerTest(unittest.TestCase):
    def setUp(self) -> None:
        self.fake = Fake(self)
        # Only the lengths of the pauses are made short, not their number.
        for name, value in {"FIRST_DELAY": 0.001, "MAX_DELAY": 0.002, "FIRST_POLL": 0.001}.items():
            patch = mock.patch.object(h2kvmctl_runner, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("H2KVM", "GOVC"))}
        patch_env = mock.patch.dict(os.environ, {**clean, "H2KVMCTL_PATH": self.fake.path}, clear=True)
        patch_env.start()
        self.addCleanup(patch_env.stop)

    def runner(self, **settings: Any) -> H2KVMCtlRunner:
        settings.setdefault("timeout", 20)
        return create_h2kvmctl_runner(**settings)


class Settings(RunnerTest):
    def test_found_by_environment(self) -> None:
        self.assertEqual(find_h2kvmctl(), self.fake.path)
        self.assertEqual(self.runner().h2kvmctl_path, self.fake.path)

    def test_found_on_path(self) -> None:
        del os.environ["H2KVMCTL_PATH"]
        os.environ["PATH"] = self.fake.folder
        self.assertEqual(self.runner().h2kvmctl_path, self.fake.path)

    def test_path_given(self) -> None:
        other = Fake(self)
        self.assertEqual(self.runner(h2kvmctl_path=other.path).h2kvmctl_path, other.path)

    def test_missing(self) -> None:
        with self.assertRaisesRegex(H2KVMCtlNotFound, "h2kvmctl_path names '/nowhere'"):
            self.runner(h2kvmctl_path="/nowhere")
        os.environ["H2KVMCTL_PATH"] = self.fake.folder
        self.assertIsNone(find_h2kvmctl())
        with self.assertRaisesRegex(H2KVMCtlNotFound, "H2KVMCTL_PATH names"):
            self.runner()
        del os.environ["H2KVMCTL_PATH"]
        os.environ["PATH"] = "/nowhere"
        with self.assertRaisesRegex(H2KVMCtlNotFound, "no h2kvmctl on PATH"):
            self.runner()

    def test_gone_or_broken_since(self) -> None:
        runner = self.runner()
        with open(self.fake.path, "w", encoding="utf-8") as f:
            f.write("#!/nowhere/interpreter\n")
        with self.assertRaisesRegex(H2KVMCtlNotFound, "No such file"):
            runner.check_daemon_status()

    def test_daemon_and_token_travel_in_the_environment(self) -> None:
        self.fake.answers(says(STATUS))
        self.runner(daemon_url="http://10.0.0.1:8080", token="sesame").check_daemon_status()
        call, = self.fake.calls()
        self.assertEqual(call["argv"], ["status", "-json"])
        self.assertEqual(call["env"]["H2KVMD_URL"], "http://10.0.0.1:8080")
        self.assertEqual(call["env"]["H2KVMD_TOKEN"], "sesame")

    def test_environment_is_honoured(self) -> None:
        self.fake.answers(says(STATUS))
        os.environ["H2KVMD_URL"] = "http://10.0.0.2:8080"
        self.runner(token_file="/etc/token", ca_cert="/etc/ca.pem").check_daemon_status()
        call, = self.fake.calls()
        self.assertEqual(call["argv"], ["status", "-json", "-token-file", "/etc/token", "-ca-cert", "/etc/ca.pem"])
        self.assertEqual(call["env"]["H2KVMD_URL"], "http://10.0.0.2:8080")

    def test_secrets_are_not_shown(self) -> None:
        runner = self.runner(daemon_url="http://me:sesame@h", token="sesame")
        self.assertNotIn("sesame", repr(runner))
        with self.assertRaises(UsageError) as caught:
            self.runner(token="ses\0ame").check_daemon_status()
        self.assertNotIn("ses", str(caught.exception))
        self.assertIsNone(caught.exception.__cause__)

    def test_nonsense(self) -> None:
        bad: List[Dict[str, Any]] = [
            {"timeout": 0}, {"timeout": float("nan")}, {"retry_for": -1}, {"token": " "}, {"token": "a", "token_file": "b"}]
        for settings in bad:
            with self.subTest(settings), self.assertRaises(UsageError):
                self.runner(**settings)


class Calls(RunnerTest):
    def test_status(self) -> None:
        self.fake.answers(says(STATUS))
        self.assertEqual(self.runner().check_daemon_status().running_jobs, 1)

    def test_exit_codes(self) -> None:
        for code, kind in {1: H2KVMError, 2: UsageError, 3: DaemonUnreachable, 6: NotAuthorised, 130: H2KVMError, 77: H2KVMError}.items():
            self.fake.answers({"code": code, "err": "ERROR: find job: what\x1b[31m went wrong\n       do this\n"})
            with self.subTest(code), self.assertRaises(H2KVMError) as caught:
                self.runner().check_daemon_status()
            self.assertIs(type(caught.exception), kind)
            self.assertEqual(caught.exception.exit_code, code)
            self.assertEqual(str(caught.exception), "find job: what\ufffd[31m went wrong (do this)")
            self.assertEqual(caught.exception.stderr, "ERROR: find job: what\ufffd[31m went wrong\n       do this\n")

    def test_silent_and_killed(self) -> None:
        self.fake.answers({"code": 1})
        with self.assertRaisesRegex(H2KVMError, "without a word: exit code 1"):
            self.runner().check_daemon_status()
        self.fake.answers({"kill": True})
        with self.assertRaisesRegex(H2KVMError, "killed by signal 9"):
            self.runner().check_daemon_status()

    def test_junk(self) -> None:
        for out in ("", "junk", "{", "[1]", "7", "null", '{"version":"1"}', "[" * 100_000, '{"jobs":7}', '"\\ud800"'):
            self.fake.answers({"out": out})
            with self.subTest(out[:20]), self.assertRaises(BadAnswer):
                self.runner().check_daemon_status()

    def test_bytes_that_are_no_text(self) -> None:
        with open(self.fake.path, "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\nprintf '\\377\\376\\200'; printf '\\377bad' >&2\n")
        with self.assertRaises(BadAnswer):
            self.runner().check_daemon_status()

    def test_too_much(self) -> None:
        self.fake.answers({"out": "x" * 1000, "times": 1000})
        with mock.patch.object(h2kvmctl_runner, "MAX_ANSWER", 10_000), self.assertRaisesRegex(BadAnswer, "more than 10000 bytes"):
            self.runner().check_daemon_status()

    def test_messages_are_cut_at_their_beginning(self) -> None:
        self.fake.answers({"code": 1, "err": "x" * 200_000 + " the end"})
        with self.assertRaises(H2KVMError) as caught:
            self.runner().check_daemon_status()
        self.assertLessEqual(len(caught.exception.stderr), process.MAX_MESSAGES)
        self.assertTrue(str(caught.exception).endswith("the end"))

    def test_hanging(self) -> None:
        self.fake.answers({"hang": True})
        began = time.monotonic()
        with self.assertRaisesRegex(DaemonUnreachable, "no end after 0.3 seconds"):
            self.runner(timeout=0.3).check_daemon_status()
        self.assertLess(time.monotonic() - began, 8)

    def test_interrupt_ends_the_program(self) -> None:
        self.fake.answers({"hang": True})
        started: List[Any] = []

        class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
            def wait(self, timeout: Any = None) -> int:
                if not started:
                    started.append(self)
                    raise KeyboardInterrupt
                return int(super().wait(timeout))

        with mock.patch("subprocess.Popen", Interrupted), self.assertRaises(KeyboardInterrupt):
            self.runner().check_daemon_status()
        self.assertIsNotNone(started[0].returncode)

    def test_input_that_nobody_reads(self) -> None:
        self.fake.answers(says(STATUS), says(ACCEPTED, deaf=True))
        self.assertEqual(self.runner().submit_export_job("web01", "/srv/x", name="n" * 500_000), ID)


class Submission(RunnerTest):
    def submitted(self, *args: Any, **options: Any) -> Any:
        self.fake.answers(says(STATUS), says(ACCEPTED))
        self.assertEqual(self.runner().submit_export_job(*args, **options), ID)
        asked, call = self.fake.calls()[-2:]
        self.assertEqual(asked["argv"], ["status", "-json"])
        self.assertEqual(call["argv"], ["submit", "-file", "-", "-json"])
        return json.loads(call["stdin"])

    def test_defaults_are_the_daemons(self) -> None:
        self.assertEqual(self.submitted("/DC0/vm/web01", "/srv/web01"),
                         {"vm_path": "/DC0/vm/web01", "output_path": "/srv/web01", "options": {}})

    def test_every_option_arrives(self) -> None:
        options = dict(format="qcow2", compress=True, parallel_downloads=7, remove_cdrom=True, snapshot=True, shutdown=True,
                       overwrite=True, include_media=True, skip_space_check=False, show_individual_progress=True)
        vcenter = {"server": "vc", "username": "me", "password": "sesame"}
        got = self.submitted("日本語サーバー", os.path.join("/srv", "x"), name="nightly", vcenter=vcenter, **options)
        self.assertEqual(got, {"name": "nightly", "vm_path": "日本語サーバー", "output_path": "/srv/x", "options": options, "vcenter": vcenter})
        self.assertNotIn("sesame", json.dumps([call["argv"] for call in self.fake.calls()]))

    def test_values_that_cannot_be_sent(self) -> None:
        self.fake.answers(says(STATUS), says(ACCEPTED))
        bad: List[Dict[str, Any]] = [{"name": "\udc80sesame"}, {"more": {1, 2}}, {"more": float("nan")}]
        for options in bad:
            with self.subTest(options), self.assertRaises(UsageError) as caught:
                self.runner().submit_export_job("web01", "/srv/x", **options)
            self.assertNotIn("sesame", str(caught.exception))

    def test_refused(self) -> None:
        self.fake.answers(says(STATUS), {"code": 2, "err": "ERROR: submit job: unknown key \"bogus\" in options\n"})
        with self.assertRaisesRegex(UsageError, 'unknown key "bogus"'):
            self.runner().submit_export_job("web01", "/srv/x", bogus=1)

    def test_answers_without_an_id(self) -> None:
        for answer in ({}, {"job_ids": []}, {"job_ids": [ID, ID]}, {"job_ids": [7]}, {"job_ids": ["-all"]}, {"job_ids": "abcd"}):
            self.fake.answers(says(STATUS), says(answer))
            os.remove(os.path.join(self.fake.folder, "calls.jsonl")) if self.fake.calls() else None
            with self.subTest(answer), self.assertRaisesRegex(BadAnswer, "job_ids"):
                self.runner().submit_export_job("web01", "/srv/x")

    def test_daemon_away_at_first(self) -> None:
        self.fake.answers(AWAY, AWAY, says(STATUS), says(ACCEPTED))
        self.assertEqual(self.runner().submit_export_job("web01", "/srv/x"), ID)

    def test_lost_answer_is_not_sent_again(self) -> None:
        self.fake.answers(says(STATUS), AWAY, AWAY, jobs(job("running")))
        self.assertEqual(self.runner().submit_export_job("/DC0/vm/web01", "/srv/web01"), ID)
        self.assertEqual([call["argv"][0] for call in self.fake.calls()], ["status", "submit", "query", "query"])

    def test_lost_submission_is_sent_again(self) -> None:
        other = "bbfd6c12-0a97-4f3b-ab92-61a1fccba6fb"
        earlier = job("completed", id=other, created_at="2026-11-23T02:55:03Z")
        elsewhere = job("running", id=other)
        elsewhere["definition"] = {**elsewhere["definition"], "output_path": "/srv/other"}
        self.fake.answers(says(STATUS), AWAY, jobs(earlier, elsewhere), says(ACCEPTED))
        self.assertEqual(self.runner().submit_export_job("/DC0/vm/web01", "/srv/web01"), ID)
        self.assertEqual([call["argv"][0] for call in self.fake.calls()], ["status", "submit", "query", "submit"])


class Waiting(RunnerTest):
    def test_progress_reaches_the_callback(self) -> None:
        self.fake.answers(jobs(job("pending")), jobs(job("pending")), jobs(job("running", 10)), AWAY, jobs(job("running", 60.5)),
                          jobs(job("completed", 100)))
        seen: List[Job] = []
        done = self.runner().wait_for_job_completion(ID, poll_interval=0.002, progress_callback=seen.append)
        self.assertEqual([(j.status, j.progress and j.progress.percent_complete) for j in seen],
                         [("pending", None), ("running", 10), ("running", 60.5), ("completed", 100)])
        self.assertEqual(done, seen[-1])
        self.assertEqual(self.fake.calls()[0]["argv"], ["query", "-id", ID, "-json"])

    def test_failed(self) -> None:
        self.fake.answers(jobs(job("failed", error="find VM \"x\": no such VM \x1b[2J among 24 (list the VMs)")))
        with self.assertRaises(JobFailed) as caught:
            self.runner().wait_for_job_completion(ID)
        self.assertEqual((caught.exception.exit_code, caught.exception.job_id), (4, ID))
        self.assertIn('no such VM \ufffd[2J among 24 (list the VMs)', str(caught.exception))
        self.assertEqual(caught.exception.job.status, "failed")

    def test_errors_travel_between_processes(self) -> None:
        self.fake.answers(jobs(job("failed", error="why")))
        with self.assertRaises(JobFailed) as caught:
            self.runner().wait_for_job_completion(ID)
        again = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((type(again), str(again), again.job, again.stderr, again.exit_code),
                         (JobFailed, str(caught.exception), caught.exception.job, "why", 4))

    def test_cancelled(self) -> None:
        self.fake.answers(jobs(job("cancelled")))
        with self.assertRaises(JobCancelled) as caught:
            self.runner().wait_for_job_completion(ID)
        self.assertEqual(caught.exception.exit_code, 5)

    def test_timeout(self) -> None:
        self.fake.answers(jobs(job("running", 10)))
        with self.assertRaisesRegex(JobTimeout, "is running after 0.2 seconds; it goes on") as caught:
            self.runner().wait_for_job_completion(ID, timeout=0.2, poll_interval=0.01)
        self.assertEqual(caught.exception.job.id, ID)

    def test_timeout_while_the_daemon_is_away(self) -> None:
        self.fake.answers(jobs(job("running", 10)), AWAY)
        with self.assertRaises(JobTimeout) as caught:
            self.runner().wait_for_job_completion(ID, timeout=0.3)
        self.assertIsInstance(caught.exception.__cause__, DaemonUnreachable)

    def test_away_too_long(self) -> None:
        self.fake.answers(AWAY)
        with self.assertRaisesRegex(DaemonUnreachable, r"connection refused \(start hyper2kvmd\)"):
            self.runner(retry_for=0.2).wait_for_job_completion(ID)
        self.assertGreater(len(self.fake.calls()), 2)

    def test_one_attempt(self) -> None:
        self.fake.answers(AWAY)
        with self.assertRaises(DaemonUnreachable):
            self.runner(retry_for=0).query_job(ID)
        self.assertEqual(len(self.fake.calls()), 1)

    def test_unknown_job(self) -> None:
        self.fake.answers({"code": 1, "err": "ERROR: query jobs: no such job: \"abcdef12\"\n"})
        with self.assertRaisesRegex(H2KVMError, "no such job"):
            self.runner().wait_for_job_completion("abcdef12")

    def test_ids_that_are_none(self) -> None:
        self.fake.answers(jobs(job("completed")))
        ids: List[Any] = ["", "abc", "-all", f"{ID},{ID}", "a b c d", "x" * 65, None, 7]
        for bad in ids:
            for call in ("query_job", "cancel_job", "wait_for_job_completion"):
                with self.subTest(bad), self.assertRaises(UsageError):
                    getattr(self.runner(), call)(bad)
        self.assertEqual(self.fake.calls(), [])

    def test_more_jobs_than_asked_for(self) -> None:
        self.fake.answers(jobs(job("running"), job("running")))
        with self.assertRaisesRegex(BadAnswer, "2 jobs"):
            self.runner().query_job(ID)

    def test_nonsense(self) -> None:
        bad: List[Dict[str, Any]] = [{"timeout": -1}, {"poll_interval": 0}]
        for settings in bad:
            with self.subTest(settings), self.assertRaises(UsageError):
                self.runner().wait_for_job_completion(ID, **settings)


class Export(RunnerTest):
    def test_whole(self) -> None:
        self.fake.answers(says(STATUS), says(ACCEPTED), jobs(job("running", 1)), jobs(job("completed", 100)))
        result = self.runner().export_vm("/DC0/vm/web01", "/srv/web01", poll_interval=0.01, remove_cdrom=True)
        self.assertEqual((result.job_id, result.output_dir, result.total_size), (ID, "/srv/web01", 5120))

    def test_completed_without_result(self) -> None:
        self.fake.answers(says(STATUS), says(ACCEPTED), jobs(job("completed", result=None)))
        with self.assertRaisesRegex(BadAnswer, "result is missing"):
            self.runner().export_vm("/DC0/vm/web01", "/srv/web01")

    def interrupted(self, **options: Any) -> List[str]:
        def interrupt(_: Job) -> None:
            raise KeyboardInterrupt

        with self.assertLogs("hyper2kvm", "WARNING") as logged, self.assertRaises(KeyboardInterrupt):
            self.runner().export_vm("/DC0/vm/web01", "/srv/web01", progress_callback=interrupt, **options)
        return logged.output

    def test_interrupt_leaves_the_job(self) -> None:
        self.fake.answers(says(STATUS), says(ACCEPTED), jobs(job("running", 1)))
        self.assertIn(f"job {ID} goes on in the daemon", self.interrupted()[0])
        self.assertEqual([call["argv"][0] for call in self.fake.calls()], ["status", "submit", "query"])

    def test_interrupt_cancels_when_asked(self) -> None:
        self.fake.answers(says(STATUS), says(ACCEPTED), jobs(job("running", 1)), says({"cancelled": [ID]}))
        self.assertIn(f"job {ID} was cancelled", self.interrupted(cancel_on_interrupt=True)[0])
        self.assertEqual(self.fake.calls()[-1]["argv"], ["cancel", "-id", ID, "-json"])

    def test_interrupt_that_cannot_cancel(self) -> None:
        self.fake.answers(says(STATUS), says(ACCEPTED), jobs(job("running", 1)), {"code": 1, "err": "ERROR: it is completed already\n"})
        self.assertIn("could not be cancelled: it is completed already", self.interrupted(cancel_on_interrupt=True)[0])


class Types(unittest.TestCase):
    def test_everything_is_annotated(self) -> None:
        for module in (transports.errors, govc, h2kvmctl_runner, models, process):
            for node in ast.walk(ast.parse(inspect.getsource(module))):
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                given = [*node.args.args, *node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
                with self.subTest(f"{module.__name__}: {node.name}"):
                    self.assertEqual([arg.arg for arg in given if arg.annotation is None and arg.arg not in ("self", "cls")], [])
                    self.assertIsNotNone(node.returns)

    def test_annotations_have_a_meaning(self) -> None:
        for owner in (H2KVMCtlRunner, process._Reader, models._Reader):
            for name, member in inspect.getmembers(owner, inspect.isfunction):
                if member.__module__.startswith("hyper2kvm"):
                    with self.subTest(f"{owner.__qualname__}.{name}"):
                        typing.get_type_hints(member)
        for value in (transports.export_vm_h2kvmctl, create_h2kvmctl_runner, process.run, Job, transports.ExportResult):
            typing.get_type_hints(value)


if __name__ == "__main__":
    unittest.main()
