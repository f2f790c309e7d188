from __future__ import annotations

import os
import tempfile
import unittest
import warnings
from typing import Any
from unittest import mock

from hyper2kvm.vmware.transports import (
    BadAnswer, ExportResult, FallbackWarning, H2KVMCtlNotFound, H2KVMError, UsageError, export_vm_h2kvmctl,
)

from .fake import ACCEPTED, ID, STATUS, Fake, job, jobs, says

DEVICES = "ide-200       VirtualIDEController  IDE 0\ncdrom-3000    VirtualCdrom  Remote device\ncdrom-3001    VirtualCdrom  ISO\n"


class GovcTest(unittest.TestCase):
    def setUp(self) -> None:
        self.govc = Fake(self, "govc")
        folder = tempfile.TemporaryDirectory(prefix="h2kvm-test-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.ovf = os.path.join(self.folder, "web01", "web01.ovf")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("H2KVM", "GOVC"))}
        patch = mock.patch.dict(os.environ, {**clean, "PATH": self.govc.folder}, clear=True)
        patch.start()
        self.addCleanup(patch.stop)

    def export(self, **options: Any) -> ExportResult:
        with self.assertWarnsRegex(FallbackWarning, "exporting with govc instead") as caught:
            return export_vm_h2kvmctl("/DC0/vm/web01", self.folder, **options)

    def test_export(self) -> None:
        self.govc.answers({"touch": [self.ovf.replace(".ovf", "-disk-0.vmdk"), self.ovf]})
        result = self.export(parallel_downloads=4, remove_cdrom=False, format="ovf")
        call, = self.govc.calls()
        self.assertEqual(call["argv"], ["export.ovf", "-vm", "/DC0/vm/web01", self.folder])
        self.assertEqual((result.method, result.vm_name, result.ovf_path), ("govc", "web01", self.ovf))
        self.assertEqual([os.path.basename(path) for path in result.files], ["web01-disk-0.vmdk", "web01.ovf"])
        self.assertEqual((result.total_size, result.verified, result.job_id), (10, False, ""))
        self.assertIn("NVRAM", " ".join(result.warnings))

    def test_options(self) -> None:
        self.govc.answers({"out": DEVICES}, {}, {"touch": [self.ovf]})
        result = self.export(remove_cdrom=True, overwrite=True, include_media=True)
        self.assertEqual([call["argv"] for call in self.govc.calls()], [
            ["device.ls", "-vm", "/DC0/vm/web01"],
            ["device.remove", "-vm", "/DC0/vm/web01", "cdrom-3000", "cdrom-3001"],
            ["export.ovf", "-vm", "/DC0/vm/web01", "-f", "-i", self.folder],
        ])
        self.assertIn("removed from the VM: cdrom-3001", result.warnings)

    def test_no_drive_to_remove(self) -> None:
        self.govc.answers({"out": "disk-1000  VirtualDisk  x\n\n"}, {"touch": [self.ovf]})
        self.export(remove_cdrom=True)
        self.assertEqual([call["argv"][0] for call in self.govc.calls()], ["device.ls", "export.ovf"])

    def test_options_beyond_govc(self) -> None:
        with self.assertRaisesRegex(UsageError, "govc cannot honour compress, format, snapshot, vcenter"):
            self.export(compress=True, format="qcow2", snapshot=True, vcenter={"name": "berlin"}, shutdown=False)
        self.assertEqual(self.govc.calls(), [])

    def test_relative_folder(self) -> None:
        self.folder = "export"
        with self.assertRaisesRegex(UsageError, "not absolute"):
            self.export()

    def test_failure_tells_no_secret(self) -> None:
        self.govc.answers({"code": 1, "err": 'govc: parse "https://me:sesame@vc:x/sdk": invalid port, open sesame2\x1b[2J\n'})
        os.environ.update(GOVC_URL="https://me:sesame@vc:x/sdk", GOVC_PASSWORD="sesame2")
        with self.assertRaises(H2KVMError) as caught:
            self.export()
        self.assertEqual(caught.exception.exit_code, 1)
        self.assertIn("govc export.ovf ended with code 1: govc: parse", str(caught.exception))
        for text in (str(caught.exception), caught.exception.stderr):
            self.assertNotIn("sesame", text)
            self.assertNotIn("\x1b", text)

    def test_nothing_written(self) -> None:
        self.govc.answers({})
        with self.assertRaisesRegex(BadAnswer, "left 0 new descriptors"):
            self.export()

    def test_an_earlier_export_is_not_taken_for_this_one(self) -> None:
        self.govc.answers({"touch": [self.ovf]}, {}, {"touch": [self.ovf.replace("web01", "db01")]})
        self.export()
        with self.assertRaises(BadAnswer):
            self.export()
        self.assertEqual(self.export().vm_name, "db01")

    def test_timeout(self) -> None:
        self.govc.answers({"hang": True})
        with self.assertRaisesRegex(H2KVMError, "no end after 0.3 seconds; what lies in the output folder is not whole"):
            self.export(timeout=0.3)

    def test_neither(self) -> None:
        os.environ["PATH"] = "/nowhere"
        with self.assertRaisesRegex(H2KVMCtlNotFound, "no h2kvmctl on PATH.*no govc on PATH"):
            export_vm_h2kvmctl("/DC0/vm/web01", self.folder)

    def test_h2kvmctl_goes_first(self) -> None:
        ctl = Fake(self)
        ctl.answers(says(STATUS), says(ACCEPTED), jobs(job("completed")))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = export_vm_h2kvmctl("/DC0/vm/web01", self.folder, h2kvmctl_path=ctl.path, parallel_downloads=2,
                                        token="sesame", retry_for=5)
        for call in ctl.calls():  # it is no option of the job
            self.assertEqual(call["env"]["H2KVMD_TOKEN"], "sesame")
            self.assertNotIn("sesame", str(call["argv"]) + str(call.get("stdin")))
        self.assertEqual((result.method, result.job_id), ("h2kvmctl", ID))
        self.assertEqual(self.govc.calls(), [])


if __name__ == "__main__":
    unittest.main()
