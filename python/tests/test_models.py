from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone
from typing import Any, Dict

from hyper2kvm.vmware.transports import BadAnswer, Job
from hyper2kvm.vmware.transports.models import DaemonStatus, duration_of, time_of

from .fake import ID, STATUS, job


class Values(unittest.TestCase):
    def test_durations(self) -> None:
        for text, want in {
            "0s": timedelta(), "0": timedelta(), "1m5s": timedelta(seconds=65), "1h2m3.5s": timedelta(seconds=3723.5),
            "1.5ms": timedelta(milliseconds=1.5), "250µs": timedelta(microseconds=250), "-2s": timedelta(seconds=-2),
            "2562047h47m16.854775807s": timedelta(hours=2562047, minutes=47, seconds=16.854775807),
        }.items():
            with self.subTest(text):
                self.assertEqual(duration_of(text, "x"), want)

    def test_no_durations(self) -> None:
        for text in ("", "5", "s", "--5s", "-", "5 s", "5s ", "1m5", "1x", "five", "1e9s", "9" * 19 + "h", "1s" * 40, "١s"):
            with self.subTest(text), self.assertRaisesRegex(BadAnswer, "^x is .*want a duration"):
                duration_of(text, "x")

    def test_times(self) -> None:
        want = datetime(2026, 11, 23, 2, 55, 4, tzinfo=timezone.utc)
        for text, microseconds in {
            "2026-11-23T02:55:04Z": 0, "2026-11-23t02:55:04.5z": 500000, "2026-11-23T02:55:04.281897529Z": 281897,
            "2026-11-23T04:55:04+02:00": 0,
        }.items():
            with self.subTest(text):
                self.assertEqual(time_of(text, "x"), want.replace(microsecond=microseconds))

    def test_no_times(self) -> None:
        for text in ("", "now", "2026-11-23", "2026-13-23T02:55:04Z", "2026-11-23T02:55:04", "0001-01-01T00:00:00+23:00"):
            with self.subTest(text), self.assertRaisesRegex(BadAnswer, "^x is .*want a time"):
                time_of(text, "x")


class Answers(unittest.TestCase):
    def test_job(self) -> None:
        got = Job.parse(job("running", 25, a_field_of_later="x"))
        self.assertEqual((got.id, got.status, got.final, got.vm_path), (ID, "running", False, "/DC0/vm/web01"))
        self.assertEqual(got.options, {"format": "ovf"})
        assert got.progress is not None
        self.assertEqual(got.progress.percent_complete, 25)  # an int in JSON
        self.assertEqual(got.progress.estimated_remaining, timedelta(seconds=15))
        self.assertEqual(got.progress.files[0].attempt, 2)
        self.assertIsNone(got.started_at)
        self.assertEqual(got.raw["a_field_of_later"], "x")

    def test_result(self) -> None:
        result = Job.parse(job("completed", 100)).result
        assert result is not None
        self.assertEqual((result.ovf_path, result.job_id, result.method), ("/srv/web01/web01.ovf", ID, "h2kvmctl"))
        self.assertEqual(result.duration, timedelta(seconds=62.5))
        self.assertEqual(result.warnings, ("a sentence",))
        self.assertIs(result.verified, True)

    def test_status(self) -> None:
        got = DaemonStatus.parse(STATUS)
        self.assertEqual((got.version, got.uptime, got.running_jobs, got.failed_jobs), ("1.0.0", timedelta(seconds=65), 1, 0))

    def test_junk(self) -> None:
        changes: Dict[str, Dict[str, Any]] = {
            "id is of type int, want str": {"id": 7},
            "id is missing": {"id": ""},
            "status is missing": {"status": None},
            "status is 'exploded', want one of cancelled, completed": {"status": "exploded"},
            "definition is of type str, want dict": {"definition": "x"},
            "progress is of type list, want dict": {"progress": []},
            "progress: percent_complete is of type str, want float": {"progress": {"percent_complete": "7"}},
            "progress: percent_complete is of type bool, want float": {"progress": {"percent_complete": True}},
            "progress: total_bytes is of type bool, want int": {"progress": {"total_bytes": True}},
            "progress: total_bytes is of type float, want int": {"progress": {"total_bytes": 1.5}},
            "progress: files holds a int, want dict": {"progress": {"files": [1]}},
            "progress: estimated_remaining is 'soon'": {"progress": {"estimated_remaining": "soon"}},
            "result: files holds a dict, want str": {"result": {"files": [{}]}},
            "job: created_at is 'then'": {"created_at": "then"},
        }
        for what, change in changes.items():
            with self.subTest(what), self.assertRaisesRegex(BadAnswer, what):
                Job.parse({**job("running"), **change})


if __name__ == "__main__":
    unittest.main()
