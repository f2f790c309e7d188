"""The wrapper with the real h2kvmctl, a real daemon and the simulated vCenter."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import unittest
from typing import Any, Dict, List
from unittest import mock

import hyper2kvm
from hyper2kvm.vmware.transports import (
    DaemonUnreachable, ExportResult, H2KVMCtlRunner, H2KVMError, Job, JobCancelled, JobFailed, JobTimeout, UsageError,
    create_h2kvmctl_runner, export_vm_h2kvmctl,
)

from .lab import BUILD, PATIENCE, Lab, binary, environment, run

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(hyper2kvm.__file__)))

# Goes on for minutes unless it is cancelled.
SLOW = "/DC0/vm/Lab/incompressible"

lab: Lab


def setUpModule() -> None:
    global lab
    lab = Lab("-fault", "BytesPerSecond=20000@incompressible", "-fault", "BytesPerSecond=2000000@db01")
    unittest.addModuleCleanup(lab.close)


def runner(**settings: Any) -> H2KVMCtlRunner:
    return create_h2kvmctl_runner(lab.url, lab.ctl, **settings)


def receipt(folder: str) -> Dict[str, Any]:
    with open(os.path.join(folder, "hyper2kvm.json"), encoding="utf-8") as f:
        answer = json.load(f)
    assert isinstance(answer, dict)
    return answer


class Exports(unittest.TestCase):
    def test_status(self) -> None:
        status = runner().check_daemon_status()
        self.assertEqual(status.version, hyper2kvm.__version__)

    def test_whole_and_proved(self) -> None:
        out = lab.output("web01")
        result = runner().export_vm("/DC0/vm/Production/web01", out, timeout=PATIENCE)
        self.assertEqual((result.vm_name, result.output_dir, result.method, result.verified), ("web01", out, "h2kvmctl", True))
        self.assertEqual(result.ovf_path, os.path.join(out, "web01.ovf"))
        self.assertEqual(result.total_size, sum(os.path.getsize(path) for path in result.files))
        verified = run(binary("hyper2kvm"), "verify", out, env=environment())
        self.assertEqual(verified.returncode, 0, verified.stdout)

    def test_options_reach_the_job(self) -> None:
        client = runner()
        options: Dict[str, Any] = dict(parallel_downloads=3, remove_cdrom=True, include_media=True, show_individual_progress=True)
        job_id = client.submit_export_job("uefi01", lab.output("uefi01"), name="nightly", **options)
        job = client.wait_for_job_completion(job_id, timeout=PATIENCE)
        self.assertEqual({key: job.options[key] for key in options}, options)
        self.assertEqual((job.name, client.query_job(job_id[:8]).id), ("nightly", job_id))
        self.assertEqual(len(receipt(job.output_path)["hardware"]["removed_devices"]), 1)

    def test_format(self) -> None:
        result = runner().export_vm("win2022", lab.output("qcow2"), format="qcow2", compress=True, timeout=PATIENCE)
        self.assertEqual([os.path.basename(path) for path in result.files if path.endswith(".qcow2")], ["win2022-disk-0.qcow2"])
        self.assertEqual(receipt(result.output_dir)["format"], "qcow2")

    def test_remove_cdrom_makes_the_difference(self) -> None:
        with self.assertRaisesRegex(JobFailed, "(?i)cd-?rom") as caught:
            runner().export_vm("cdrom-gone", lab.output("cdrom-gone"), timeout=PATIENCE)
        self.assertEqual(caught.exception.exit_code, 4)
        result = export_vm_h2kvmctl("cdrom-gone", lab.output("cdrom-gone"), daemon_url=lab.url, h2kvmctl_path=lab.ctl,
                                    remove_cdrom=True, parallel_downloads=1, timeout=PATIENCE)
        self.assertTrue(receipt(result.output_dir)["hardware"]["removed_devices"])

    def test_progress(self) -> None:
        seen: List[Job] = []
        runner().export_vm("db01", lab.output("db01"), timeout=PATIENCE, poll_interval=0.2, progress_callback=seen.append)
        progress = [job.progress for job in seen if job.progress is not None]
        percents = [p.percent_complete for p in progress]
        self.assertEqual(percents, sorted(percents))
        self.assertGreater(len({p for p in percents if 0 < p < 100}), 1, percents)
        last = progress[-1]
        self.assertEqual((last.percent_complete, last.bytes_downloaded, len(last.files)), (100, last.total_bytes, 4))

    def test_names_of_all_kinds(self) -> None:
        for i, name in enumerate(("/DC0/vm/国際/日本語サーバー", "file server 01", "build [old] (2)", "/DC0/vm/Staging/web%2fproxy")):
            with self.subTest(name):
                self.assertTrue(runner().export_vm(name, lab.output(f"name {i}"), timeout=PATIENCE).verified)

    def test_vcenter_of_the_job(self) -> None:
        vcenter = {"server": lab.govc["GOVC_URL"], "username": lab.govc["GOVC_USERNAME"], "password": lab.govc["GOVC_PASSWORD"], "insecure": True}
        client = runner()
        job_id = client.submit_export_job("snapshots01", lab.output("vcenter"), vcenter=vcenter)
        job = client.wait_for_job_completion(job_id, timeout=PATIENCE)
        self.assertNotIn("password", job.raw["definition"]["vcenter"])

    def test_threads_share_a_runner(self) -> None:
        client = runner()
        results: List[ExportResult] = []
        names = ["odd-capacity", "mixed-buses", "empty-thin"]

        def export(name: str) -> None:
            results.append(client.export_vm(name, lab.output(name), timeout=PATIENCE))

        threads = [threading.Thread(target=export, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
        self.assertEqual(sorted(result.vm_name for result in results), sorted(names))


class Failures(unittest.TestCase):
    def test_no_such_vm(self) -> None:
        with self.assertRaisesRegex(JobFailed, 'find VM "nope": no such VM') as caught:
            runner().export_vm("nope", lab.output("nope"), timeout=PATIENCE)
        self.assertEqual(caught.exception.stderr, caught.exception.job.error)

    def test_refused(self) -> None:
        with self.assertRaisesRegex(UsageError, 'unknown key "bogus"') as caught:
            runner().submit_export_job("web01", lab.output("x"), bogus=True)
        self.assertEqual(caught.exception.exit_code, 2)
        with self.assertRaisesRegex(UsageError, "output_path.*absolute"):
            runner().submit_export_job("web01", "x")
        with self.assertRaisesRegex(UsageError, "parallel_downloads"):
            runner().submit_export_job("web01", lab.output("x"), parallel_downloads=99)

    def test_no_such_job(self) -> None:
        with self.assertRaisesRegex(H2KVMError, "no such job"):
            runner().wait_for_job_completion("00000000-0000-0000-0000-000000000000")

    def test_unreachable(self) -> None:
        # A port that is taken and does not listen.
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            client = create_h2kvmctl_runner(f"http://127.0.0.1:{taken.getsockname()[1]}", lab.ctl, retry_for=0.5)
            with self.assertRaisesRegex(DaemonUnreachable, "connection refused.*start hyper2kvmd") as caught:
                client.export_vm("web01", lab.output("x"))
        self.assertEqual(caught.exception.exit_code, 3)

    def test_wrong_certificates(self) -> None:
        with self.assertRaisesRegex(UsageError, "read CA certificates /nowhere"):
            runner(ca_cert="/nowhere").check_daemon_status()
        with self.assertRaisesRegex(UsageError, "read token file /nowhere"):
            runner(token_file="/nowhere").check_daemon_status()

    def test_timeout_then_cancel(self) -> None:
        client = runner()
        with self.assertRaises(JobTimeout) as caught:
            client.export_vm(SLOW, lab.output("slow"), timeout=0.5)
        job_id = caught.exception.job_id
        self.assertFalse(client.query_job(job_id).final)
        client.cancel_job(job_id)
        with self.assertRaises(JobCancelled):
            client.wait_for_job_completion(job_id, timeout=PATIENCE)
        with self.assertRaisesRegex(H2KVMError, "cancelled already"):
            client.cancel_job(job_id)

    def test_ctrl_c(self) -> None:
        program = (
            "import logging, signal, sys\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind a shell ignores it\n"
            "from hyper2kvm.vmware.transports import export_vm_h2kvmctl\n"
            "logging.basicConfig()\n"
            "export_vm_h2kvmctl(sys.argv[1], sys.argv[2], cancel_on_interrupt=sys.argv[3] == 'yes',\n"
            "    poll_interval=0.2, progress_callback=lambda job: print(job.id, job.status, flush=True))\n"
        )
        for cancel in ("yes", "no"):
            with self.subTest(cancel), subprocess.Popen(
                [sys.executable, "-c", program, SLOW, lab.output("interrupted " + cancel), cancel],
                env=lab.env(PYTHONPATH=PACKAGE), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ) as child:
                assert child.stdout
                late = threading.Timer(PATIENCE, child.kill)
                late.start()
                self.addCleanup(late.cancel)
                job_id, status = "", ""
                while status != "running":
                    job_id, status = child.stdout.readline().split()
                child.send_signal(signal.SIGINT)
                _, errors = child.communicate(timeout=PATIENCE)
                self.assertEqual(child.returncode, -signal.SIGINT, errors)
                client = runner()
                if cancel == "no":
                    self.assertIn(f"job {job_id} goes on in the daemon", errors)
                    self.assertEqual(client.query_job(job_id).status, "running")
                    client.cancel_job(job_id)
                else:
                    self.assertIn(f"job {job_id} was cancelled", errors)
                with self.assertRaises(JobCancelled):
                    client.wait_for_job_completion(job_id, timeout=PATIENCE)


class Absence(unittest.TestCase):
    def test_daemon_that_comes_late(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % probe.getsockname()[1]
        late = Lab()
        self.addCleanup(late.close)
        late.daemon.stop()
        client = create_h2kvmctl_runner("http://" + address, late.ctl)
        results: List[ExportResult] = []
        missed = threading.Event()
        with mock.patch("hyper2kvm.vmware.transports.h2kvmctl_runner.log.debug", lambda *_: missed.set()):
            export = threading.Thread(target=lambda: results.append(client.export_vm("web01", late.output("web01"), timeout=PATIENCE)))
            export.start()
            self.assertTrue(missed.wait(PATIENCE))
            late.start_daemon(address)
            export.join(2 * PATIENCE)
        self.assertEqual([result.verified for result in results], [True])

    def test_daemon_that_goes_and_comes(self) -> None:
        # The real h2kvmctl, led to a port where nobody listens while the file is there.
        wrapper, away = os.path.join(lab.folder, "h2kvmctl-away"), os.path.join(lab.folder, "away")
        with open(wrapper, "w", encoding="utf-8") as f:
            f.write('#!/bin/sh\n[ -e "$AWAY" ] && rm "$AWAY" && export H2KVMD_URL=http://127.0.0.1:1\nexec "$CTL" "$@"\n')
        os.chmod(wrapper, 0o755)
        os.environ.update(AWAY=away, CTL=lab.ctl)
        self.addCleanup(lambda: (os.environ.pop("AWAY"), os.environ.pop("CTL")))
        absences = 0

        def leave(job: Job) -> None:
            nonlocal absences
            if not job.final:
                absences += 1
                with open(away, "w", encoding="utf-8"):
                    pass

        result = create_h2kvmctl_runner(lab.url, wrapper).export_vm(
            "win2022", lab.output("win2022"), timeout=PATIENCE, progress_callback=leave)
        self.assertTrue(result.verified)
        self.assertGreater(absences, 0)


class Import(unittest.TestCase):
    def test_available(self) -> None:
        program = "import hyper2kvm.vmware.transports as t; print(t.H2KVMCTL_AVAILABLE)"
        for env, want in (
            ({"H2KVMCTL_PATH": lab.ctl}, "True"), ({"H2KVMCTL_PATH": "/nowhere"}, "False"), ({"PATH": BUILD}, "True"), ({"PATH": "/nowhere"}, "False"),
        ):
            with self.subTest(env):
                done = run(sys.executable, "-c", program, env=environment(PYTHONPATH=PACKAGE, **env))
                self.assertEqual(done.stdout.strip(), want)


if __name__ == "__main__":
    unittest.main()
