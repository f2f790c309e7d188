"""What the daemon answers, as values with types.

The fields are those of docs/scripting.md. Fields that are not known here are
ignored; Job.raw holds the answer as it came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Type, TypeVar

from .errors import BadAnswer

T = TypeVar("T")

FINAL = frozenset({"completed", "failed", "cancelled"})
STATUSES = FINAL | {"pending", "running"}


@dataclass(frozen=True)
class DaemonStatus:
    """Version, uptime and counts of jobs of a daemon."""

    version: str
    uptime: timedelta
    total_jobs: int
    pending_jobs: int
    running_jobs: int
    completed_jobs: int
    failed_jobs: int
    cancelled_jobs: int
    timestamp: datetime  # the daemon's clock, UTC

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> DaemonStatus:
        """Reads the answer of `h2kvmctl status -json`."""
        r = _Reader("status", answer)
        return cls(
            version=r.required("version", str),
            uptime=r.duration("uptime") or timedelta(),
            total_jobs=r.number("total_jobs"),
            pending_jobs=r.number("pending_jobs"),
            running_jobs=r.number("running_jobs"),
            completed_jobs=r.number("completed_jobs"),
            failed_jobs=r.number("failed_jobs"),
            cancelled_jobs=r.number("cancelled_jobs"),
            timestamp=time_of(r.required("timestamp", str), "status: timestamp"),
        )


@dataclass(frozen=True)
class FileProgress:
    """One file's share of a job. position and capacity are bytes of the guest's disk, bytes those of the stream."""

    name: str
    state: str  # waiting, downloading, retrying, checking, done, kept, failed
    position: int
    capacity: int
    bytes: int
    attempt: int
    problem: str

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> FileProgress:
        """Reads one element of progress.files."""
        r = _Reader("file", answer)
        return cls(
            name=r.text("name"), state=r.text("state"), position=r.number("position"), capacity=r.number("capacity"),
            bytes=r.number("bytes"), attempt=r.number("attempt"), problem=r.text("problem"),
        )


@dataclass(frozen=True)
class Progress:
    """Where a job stands.

    percent_complete (0 to 100) comes from the position in the disks.
    total_bytes is an upper bound of bytes_downloaded until every stream has
    ended.
    """

    phase: str  # connecting, discovering, preparing, exporting, verifying, finalizing
    percent_complete: float
    bytes_downloaded: int
    total_bytes: int
    bytes_per_second: int
    estimated_remaining: Optional[timedelta]  # None while it is not known
    current_file: str
    files_downloaded: int
    total_files: int
    files: Tuple[FileProgress, ...]

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Progress:
        """Reads a job's progress."""
        r = _Reader("progress", answer)
        return cls(
            phase=r.text("phase"), percent_complete=r.share("percent_complete"),
            bytes_downloaded=r.number("bytes_downloaded"), total_bytes=r.number("total_bytes"),
            bytes_per_second=r.number("bytes_per_second"), estimated_remaining=r.duration("estimated_remaining"),
            current_file=r.text("current_file"), files_downloaded=r.number("files_downloaded"),
            total_files=r.number("total_files"), files=r.each("files", dict, FileProgress.parse),
        )


@dataclass(frozen=True)
class ExportResult:
    """What an export left behind. Paths are those of the daemon's machine, sizes are bytes.

    verified says that every disk agreed with a hash the ESXi host gave. False
    does not mean damaged: there was no hash, and the disks were checked by
    their own checksums (with govc: by nothing).
    """

    vm_name: str
    output_dir: str
    ovf_path: str
    files: Tuple[str, ...]
    total_size: int
    duration: timedelta
    verified: bool
    warnings: Tuple[str, ...] = ()
    method: str = "h2kvmctl"  # or govc
    job_id: str = ""  # empty with govc

    @classmethod
    def parse(cls, answer: Mapping[str, Any], job_id: str) -> ExportResult:
        """Reads a completed job's result."""
        r = _Reader("result", answer)
        return cls(
            vm_name=r.text("vm_name"), output_dir=r.text("output_dir"), ovf_path=r.text("ovf_path"),
            files=r.each("files", str, str), total_size=r.number("total_size"),
            duration=r.duration("duration") or timedelta(), verified=r.flag("verified"),
            warnings=r.each("warnings", str, str), job_id=job_id,
        )


@dataclass(frozen=True)
class Job:
    """One export, as the daemon saw it when it was asked. Times are UTC, None while they have not come."""

    id: str
    status: str  # pending, running, completed, failed, cancelled
    name: str
    vm_path: str
    output_path: str
    options: Mapping[str, Any]  # with the daemon's defaults filled in
    progress: Optional[Progress]
    result: Optional[ExportResult]
    error: str  # why it failed; the daemon's text
    created_at: Optional[datetime]
    started_at: Optional[datetime]
    completed_at: Optional[datetime]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Job:
        """Reads one job of the daemon's answers."""
        r = _Reader("job", answer)
        job_id, status = r.required("id", str), r.required("status", str)
        if status not in STATUSES:
            raise BadAnswer(f"job {job_id[:64]}: status is {status[:64]!r}, want one of {', '.join(sorted(STATUSES))}")
        definition = _Reader("definition", r.required("definition", dict))
        progress, result = r.optional("progress", dict), r.optional("result", dict)
        return cls(
            id=job_id, status=status,
            name=definition.text("name"), vm_path=definition.text("vm_path"), output_path=definition.text("output_path"),
            options=definition.optional("options", dict) or {},
            progress=None if progress is None else Progress.parse(progress),
            result=None if result is None else ExportResult.parse(result, job_id),
            error=r.text("error"), created_at=r.time("created_at"), started_at=r.time("started_at"),
            completed_at=r.time("completed_at"), raw=answer,
        )


class _Reader:
    """Takes fields of known types out of an object. A field that is absent or null has its zero value."""

    def __init__(self, what: str, answer: Mapping[str, Any]) -> None:
        self._what = what
        self._answer = answer

    def optional(self, key: str, want: Type[T]) -> Optional[T]:
        value = self._answer.get(key)
        if value is None:
            return None
        # A bool is an int to Python.
        if not isinstance(value, want) or (isinstance(value, bool) and want is not bool):
            raise BadAnswer(f"{self._what}: {key} is of type {type(value).__name__}, want {want.__name__}")
        return value

    def required(self, key: str, want: Type[T]) -> T:
        value = self.optional(key, want)
        if value is None or value == "":
            raise BadAnswer(f"{self._what}: {key} is missing")
        return value

    def text(self, key: str) -> str:
        return self.optional(key, str) or ""

    def number(self, key: str) -> int:
        return self.optional(key, int) or 0

    def flag(self, key: str) -> bool:
        return self.optional(key, bool) or False

    def share(self, key: str) -> float:
        value = self._answer.get(key)
        return float(value) if type(value) is int else self.optional(key, float) or 0.0

    def time(self, key: str) -> Optional[datetime]:
        text = self.text(key)
        return time_of(text, f"{self._what}: {key}") if text else None

    def duration(self, key: str) -> Optional[timedelta]:
        text = self.text(key)
        return duration_of(text, f"{self._what}: {key}") if text else None

    def each(self, key: str, want: Type[T], make: Callable[[T], Any]) -> Tuple[Any, ...]:
        values: Any = self.optional(key, list) or []
        for value in values:
            if not isinstance(value, want):
                raise BadAnswer(f"{self._what}: {key} holds a {type(value).__name__}, want {want.__name__}")
        return tuple(make(value) for value in values)


_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def time_of(text: str, what: str) -> datetime:
    """Reads a time as RFC 3339 has it; datetime holds microseconds, what is finer is cut off."""
    match = _TIME.fullmatch(text)
    if match:
        day, clock, fraction, zone = match.groups()
        try:
            return datetime.fromisoformat(
                f"{day}T{clock}.{(fraction or '').ljust(6, '0')[:6]}{'+00:00' if zone in 'Zz' else zone}"
            ).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            pass  # a 13th month; reported like any other
    raise BadAnswer(f"{what} is {text[:64]!r}, want a time as in RFC 3339")


_SECONDS: Dict[str, float] = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d{1,19}(?:\.\d{1,19})?)(h|ms|m|s|us|µs|μs|ns)", re.ASCII)


def duration_of(text: str, what: str) -> timedelta:
    """Reads a duration as Go prints it: 1h2m3.5s."""
    if text == "0":
        return timedelta()
    parts = _PART.findall(text[:64])
    if parts and text.removeprefix("-") == "".join(number + unit for number, unit in parts):
        try:
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            return timedelta(seconds=-seconds if text.startswith("-") else seconds)
        except OverflowError:
            pass  # more than 10^9 days; reported like any other
    raise BadAnswer(f"{what} is {text[:64]!r}, want a duration like 1h2m3.5s")
