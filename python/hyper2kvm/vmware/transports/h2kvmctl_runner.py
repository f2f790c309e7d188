"""Exports through a daemon, by its command line h2kvmctl."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, TypeVar, Union

from . import process
from .errors import (
    BadAnswer, DaemonUnreachable, H2KVMCtlNotFound, H2KVMError, JobCancelled, JobFailed, JobTimeout, NotAuthorised,
    UsageError,
)
from .models import DaemonStatus, ExportResult, Job

T = TypeVar("T")
Path = Union[str, "os.PathLike[str]"]
ProgressCallback = Callable[[Job], None]

log = logging.getLogger("hyper2kvm")

# h2kvmctl itself reads no more of the daemon than 64 MiB; printed with
# indentation that is more.
MAX_ANSWER = 256 << 20

# Pauses between two attempts to reach the daemon, in seconds.
FIRST_DELAY = 0.25
MAX_DELAY = 5.0

# The pause between two looks at a job begins here and grows up to poll_interval,
# so that short jobs end promptly. In seconds.
FIRST_POLL = 0.1

_JOB_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{3,63}")


def find_h2kvmctl() -> Optional[str]:
    """The absolute path of h2kvmctl: what H2KVMCTL_PATH names, else what PATH has; None when that is no program."""
    found = shutil.which(os.environ.get("H2KVMCTL_PATH") or "h2kvmctl")
    return None if found is None else os.path.abspath(found)


class H2KVMCtlRunner:
    """Submits, watches and cancels the jobs of one daemon. Threads may share one; each call runs h2kvmctl anew.

    daemon_url      address of the daemon; default: H2KVMD_URL, else http://localhost:8080
    h2kvmctl_path   the program; default: H2KVMCTL_PATH, else the h2kvmctl on PATH
    timeout         seconds that one run of h2kvmctl may take
    retry_for       seconds to go on trying while the daemon is away; 0 is one attempt
    token           access token; it travels in h2kvmctl's environment, never in its arguments
    token_file      file that holds the access token; default: H2KVMD_TOKEN, H2KVMD_TOKEN_FILE
    ca_cert         file with the certificates (PEM) that an https daemon is verified by

    Raises H2KVMCtlNotFound when there is no such program, UsageError for
    arguments that make no sense.
    """

    def __init__(
        self, daemon_url: Optional[str] = None, h2kvmctl_path: Optional[Path] = None, *, timeout: float = 60.0,
        retry_for: float = 60.0, token: Optional[str] = None, token_file: Optional[Path] = None,
        ca_cert: Optional[Path] = None,
    ) -> None:
        if not 0 < timeout < math.inf:
            raise UsageError(f"timeout is {timeout}, want seconds above 0")
        if not 0 <= retry_for < math.inf:
            raise UsageError(f"retry_for is {retry_for}, want seconds, 0 for one attempt")
        if token is not None and token_file is not None:
            raise UsageError("token and token_file are both given, want one")
        if token is not None and not token.strip():
            raise UsageError("token is empty")
        self.h2kvmctl_path = _program(h2kvmctl_path)
        self.timeout = timeout
        self.retry_for = retry_for
        self._flags: List[str] = []
        if token_file is not None:
            self._flags += ["-token-file", os.fspath(token_file)]
        if ca_cert is not None:
            self._flags += ["-ca-cert", os.fspath(ca_cert)]
        # By the environment also because an address may, against advice, hold
        # credentials: arguments can be read by everybody on the machine.
        self._env: Dict[str, str] = {}
        if daemon_url is not None:
            self._env["H2KVMD_URL"] = daemon_url
        if token is not None:
            self._env["H2KVMD_TOKEN"] = token

    def __repr__(self) -> str:
        return f"H2KVMCtlRunner(h2kvmctl_path={self.h2kvmctl_path!r})"

    def check_daemon_status(self) -> DaemonStatus:
        """Asks the daemon for its version, uptime and counts of jobs, once.

        Raises DaemonUnreachable when it is away, NotAuthorised.
        """
        return DaemonStatus.parse(self._call("status"))

    def submit_export_job(
        self, vm_path: str, output_path: Path, *, name: Optional[str] = None, format: Optional[str] = None,
        compress: Optional[bool] = None, parallel_downloads: Optional[int] = None, remove_cdrom: Optional[bool] = None,
        snapshot: Optional[bool] = None, shutdown: Optional[bool] = None, overwrite: Optional[bool] = None,
        vcenter: Optional[Mapping[str, Any]] = None, **more: Any,
    ) -> str:
        """Gives the daemon one job and returns its id.

        vm_path             inventory path, unique name, moref:vm-123 or instance UUID
        output_path         absolute path of the output folder on the daemon's machine
        name                of the job; default: the VM's
        format              what lies in the folder at the end: ovf and what else the daemon offers
        compress            compress what is written
        parallel_downloads  disks in transfer at once, 1 to 16
        remove_cdrom        take CD-ROM drives out of the VM first
        snapshot            export a running VM from a temporary snapshot
        shutdown            shut a running VM down first
        overwrite           replace an earlier export in the folder
        vcenter             {"name": …} of the daemon's configuration, or server, username, password, insecure
        more                further options by their keys in job files: include_media, skip_space_check, …

        What is None is left to the daemon's defaults. A daemon that is away is
        waited for (retry_for). When the connection breaks off, the daemon is
        asked whether it has the job before it is sent again.

        Raises UsageError when the daemon refuses the job, DaemonUnreachable,
        NotAuthorised.
        """
        options = dict(
            format=format, compress=compress, parallel_downloads=parallel_downloads, remove_cdrom=remove_cdrom,
            snapshot=snapshot, shutdown=shutdown, overwrite=overwrite, **more,
        )
        job: Dict[str, Any] = {
            "vm_path": vm_path, "output_path": os.fspath(output_path),
            "options": {key: value for key, value in options.items() if value is not None},
        }
        if name is not None:
            job["name"] = name
        if vcenter is not None:
            job["vcenter"] = dict(vcenter)
        # On standard input: the job may hold a password.
        data = _encode(job)
        since = self._patiently(self.check_daemon_status).timestamp
        sent = False

        def attempt() -> str:
            nonlocal sent
            if sent:
                for seen in self._jobs("-all", "-limit", "100"):
                    if (
                        seen.vm_path == job["vm_path"] and seen.output_path == job["output_path"]
                        and seen.created_at is not None and seen.created_at >= since
                    ):
                        return seen.id
            sent = True
            return self._submit(data)

        job_id = self._patiently(attempt)
        log.info("submitted job %s: %s to %s", job_id, vm_path, job["output_path"])
        return job_id

    def query_job(self, job_id: str) -> Job:
        """Asks for one job, by its id or an unambiguous beginning of it. A daemon that is away is waited for (retry_for).

        Raises H2KVMError when there is no such job, DaemonUnreachable, NotAuthorised.
        """
        _check_id(job_id)
        return self._patiently(lambda: self._job(job_id))

    def cancel_job(self, job_id: str) -> None:
        """Stops a job; partial files are kept for a later run. A daemon that is away is waited for (retry_for).

        Raises H2KVMError when there is no such job or it has ended, DaemonUnreachable, NotAuthorised.
        """
        _check_id(job_id)
        self._patiently(lambda: self._call("cancel", "-id", job_id))

    def wait_for_job_completion(
        self, job_id: str, *, timeout: Optional[float] = None, poll_interval: float = 2.0,
        progress_callback: Optional[ProgressCallback] = None,
    ) -> Job:
        """Waits until a job has completed, and returns it as it ended.

        timeout            seconds to wait; None is as long as it takes
        poll_interval      most seconds between two looks
        progress_callback  is called in this thread with the job, as it is found first and whenever it has changed,
                           the end included. What it raises ends the waiting, not the job.

        A daemon that is away, as while it restarts, is waited for (retry_for,
        anew each time).

        Raises JobFailed with the daemon's text, JobCancelled, JobTimeout (the
        job goes on), H2KVMError when there is no such job, DaemonUnreachable,
        NotAuthorised.
        """
        _check_id(job_id)
        if timeout is not None and not 0 <= timeout < math.inf:
            raise UsageError(f"timeout is {timeout}, want seconds or None")
        if not 0 < poll_interval < math.inf:
            raise UsageError(f"poll_interval is {poll_interval}, want seconds above 0")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        pause = min(FIRST_POLL, poll_interval)
        last: Optional[Job] = None
        while True:
            try:
                job = self._patiently(lambda: self._job(job_id), deadline)
            except DaemonUnreachable as err:
                if last is not None and time.monotonic() >= deadline:
                    raise _timed_out(last, timeout) from err
                raise
            if progress_callback is not None and job != last:
                progress_callback(job)
            last = job
            if job.final:
                return _completed(job)
            left = deadline - time.monotonic()
            if left <= 0:
                raise _timed_out(job, timeout)
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, poll_interval)

    def export_vm(
        self, vm_path: str, output_path: Path, *, timeout: Optional[float] = None, poll_interval: float = 2.0,
        progress_callback: Optional[ProgressCallback] = None, cancel_on_interrupt: bool = False, **options: Any,
    ) -> ExportResult:
        """Submits a job and waits for it: submit_export_job, whose options it takes, and wait_for_job_completion.

        Ctrl-C ends the waiting; the job goes on in the daemon, as with
        `h2kvmctl watch`, unless cancel_on_interrupt is set. So do a timeout and
        an exception of the callback end the waiting only.
        """
        job_id = self.submit_export_job(vm_path, output_path, **options)
        try:
            job = self.wait_for_job_completion(
                job_id, timeout=timeout, poll_interval=poll_interval, progress_callback=progress_callback)
        except KeyboardInterrupt:
            if cancel_on_interrupt:
                self._cancel_interrupted(job_id)
            else:
                log.warning("interrupted: job %s goes on in the daemon", job_id)
            raise
        if job.result is None:
            raise BadAnswer(f"job {job_id} completed, but its result is missing")
        return job.result

    def _cancel_interrupted(self, job_id: str) -> None:
        try:
            self._call("cancel", "-id", job_id)
            log.warning("interrupted: job %s was cancelled", job_id)
        except H2KVMError as err:
            # Who pressed Ctrl-C gets that, not this.
            log.error("interrupted: job %s could not be cancelled: %s", job_id, err)

    def _submit(self, data: bytes) -> str:
        answer = self._call("submit", "-file", "-", data=data)
        ids = answer.get("job_ids")
        if not isinstance(ids, list) or len(ids) != 1 or not isinstance(ids[0], str) or not _JOB_ID.fullmatch(ids[0]):
            raise BadAnswer("submit: job_ids is not a list of one job id")
        return ids[0]

    def _job(self, job_id: str) -> Job:
        jobs = self._jobs("-id", job_id)
        if len(jobs) != 1:
            raise BadAnswer(f"query: {len(jobs)} jobs for id {job_id}, want 1")
        return jobs[0]

    def _jobs(self, *which: str) -> List[Job]:
        jobs = self._call("query", *which).get("jobs")
        if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
            raise BadAnswer("query: jobs is not a list of objects")
        return [Job.parse(job) for job in jobs]

    def _patiently(self, call: Callable[[], T], deadline: float = math.inf) -> T:
        """Calls until the daemon is there: with growing pauses, for retry_for seconds, and not beyond the deadline."""
        give_up = min(time.monotonic() + self.retry_for, deadline)
        delay = FIRST_DELAY
        while True:
            try:
                return call()
            except DaemonUnreachable as err:
                left = give_up - time.monotonic()
                if left <= 0:
                    raise
                log.debug("the daemon is away: %s", err)
            # Not all of it, so that many who wait do not return in the same instant.
            time.sleep(min(delay * random.uniform(0.5, 1), left))
            delay = min(2 * delay, MAX_DELAY)

    def _call(self, *args: str, data: bytes = b"") -> Mapping[str, Any]:
        """Runs h2kvmctl and returns the object it prints."""
        argv = [self.h2kvmctl_path, *args, "-json", *self._flags]
        try:
            done = process.run(
                argv, env={**os.environ, **self._env}, data=data, timeout=self.timeout, max_output=MAX_ANSWER)
        except process.TimedOut as err:
            raise DaemonUnreachable(f"h2kvmctl {args[0]}: {err}") from None
        except process.OutputTooLarge as err:
            raise BadAnswer(f"h2kvmctl {args[0]}: {err}") from None
        except OSError as err:
            raise H2KVMCtlNotFound(f"run {self.h2kvmctl_path}: {err.strerror or err}") from None
        except ValueError:
            # The error would repeat the argument.
            raise UsageError(f"h2kvmctl {args[0]}: a path, an address or a token holds a NUL") from None
        if done.code != 0:
            raise _error(args[0], done)
        try:
            answer = json.loads(done.output)
        except (ValueError, RecursionError) as err:
            raise BadAnswer(f"h2kvmctl {args[0]} -json: {len(done.output)} bytes that are no JSON: {err}", exit_code=0,
                            stderr=done.messages) from None
        if not isinstance(answer, dict):
            raise BadAnswer(f"h2kvmctl {args[0]} -json: a {type(answer).__name__}, want an object", exit_code=0)
        return answer


def create_h2kvmctl_runner(
    daemon_url: Optional[str] = None, h2kvmctl_path: Optional[Path] = None, *, timeout: float = 60.0,
    retry_for: float = 60.0, token: Optional[str] = None, token_file: Optional[Path] = None, ca_cert: Optional[Path] = None,
) -> H2KVMCtlRunner:
    """A runner with the settings of H2KVMCtlRunner; without any, those of the environment. Raises as it does."""
    return H2KVMCtlRunner(daemon_url, h2kvmctl_path, timeout=timeout, retry_for=retry_for, token=token,
                          token_file=token_file, ca_cert=ca_cert)


def _program(given: Optional[Path]) -> str:
    if given is not None:
        found = shutil.which(os.fspath(given))
        if found is None:
            raise H2KVMCtlNotFound(f"h2kvmctl_path names {os.fspath(given)!r}, which is no program that can be run")
        return os.path.abspath(found)
    found = find_h2kvmctl()
    if found is None:
        named = os.environ.get("H2KVMCTL_PATH")
        if named:
            raise H2KVMCtlNotFound(f"H2KVMCTL_PATH names {named!r}, which is no program that can be run")
        raise H2KVMCtlNotFound("there is no h2kvmctl on PATH: install it, or set H2KVMCTL_PATH to where it is")
    return found


def _check_id(job_id: str) -> None:
    # A comma would name several jobs, a dash begin a flag.
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise UsageError(f"{str(job_id)[:64]!r} is no job id")


def _encode(job: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(job, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as err:
        # Not chained, and without the values: a password may be among them.
        raise UsageError(f"a value of the job cannot be sent: {type(err).__name__}; want text in UTF-8, numbers, booleans") from None


_KINDS: Dict[int, Callable[..., H2KVMError]] = {2: UsageError, 3: DaemonUnreachable, 6: NotAuthorised}


def _error(command: str, done: process.Finished) -> H2KVMError:
    """The error for a run that ended with a code other than 0."""
    errors: List[str] = []  # each with the line below it, which says what to do
    for line in done.messages.splitlines():
        text = " ".join(line.split())
        if text.startswith("ERROR: "):
            errors.append(text[len("ERROR: "):])
        elif text and errors and line.startswith("  "):
            errors[-1] += f" ({text})"
        elif text:
            errors.append(text)
    said = "; ".join(errors)
    if not said:
        how = f"exit code {done.code}" if done.code >= 0 else f"killed by signal {-done.code}"
        said = f"h2kvmctl {command} ended without a word: {how}"
    return _KINDS.get(done.code, H2KVMError)(said, exit_code=done.code, stderr=done.messages)


def _title(job: Job) -> str:
    return f"job {job.id} ({job.name or job.vm_path})"


def _completed(job: Job) -> Job:
    """The job, if it completed; raises how it ended otherwise. The codes are those of `h2kvmctl watch`."""
    if job.status == "failed":
        raise JobFailed(f"{_title(job)} failed: {job.error or 'the daemon gave no reason'}", job, exit_code=4)
    if job.status == "cancelled":
        raise JobCancelled(f"{_title(job)} was cancelled" + (f": {job.error}" if job.error else ""), job, exit_code=5)
    return job


def _timed_out(job: Job, timeout: Optional[float]) -> JobTimeout:
    return JobTimeout(f"{_title(job)} is {job.status} after {timeout:g} seconds; it goes on in the daemon", job)
