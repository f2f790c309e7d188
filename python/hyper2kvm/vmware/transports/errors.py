"""The errors that exports end with. All are H2KVMError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Tuple, Type

if TYPE_CHECKING:
    from .models import Job


def clean(text: str) -> str:
    """Text without control characters other than newline and tab.

    Names of VMs and messages of servers end up on terminals, where escape
    sequences would be obeyed.
    """
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


class H2KVMError(Exception):
    """An operation failed; the base of all errors here.

    exit_code is that of the program that was run (docs/scripting.md has the
    table), None where none ended with one. stderr is what it said, or the
    daemon's own text; empty where there is none.
    """

    def __init__(self, message: str, *, exit_code: Optional[int] = None, stderr: str = "") -> None:
        super().__init__(clean(message))
        self.exit_code = exit_code
        self.stderr = clean(stderr)

    def __reduce__(self) -> Tuple[Any, ...]:
        # Pickling would call __init__ with the message alone, and break a pool
        # of processes in which a job fails.
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: Type[H2KVMError], args: Tuple[Any, ...]) -> H2KVMError:
    return kind.__new__(kind, *args)


class UsageError(H2KVMError):
    """Wrong arguments, options or settings: trying again will not help."""


class H2KVMCtlNotFound(UsageError):
    """There is no h2kvmctl that could be run."""


class DaemonUnreachable(H2KVMError):
    """The daemon did not answer, for as long as was to be waited for it."""


class NotAuthorised(H2KVMError):
    """The daemon does not accept the token, or wants one."""


class BadAnswer(H2KVMError):
    """What h2kvmctl printed is not what this version understands."""


class JobError(H2KVMError):
    """A job did not complete. job is how it was seen last."""

    def __init__(self, message: str, job: Job, *, exit_code: Optional[int] = None) -> None:
        super().__init__(message, exit_code=exit_code, stderr=job.error)
        self.job = job

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.id


class JobFailed(JobError):
    """The job failed. The message holds the daemon's text: what, why, what to do."""


class JobCancelled(JobError):
    """Somebody cancelled the job. What it had fetched is kept for a later run."""


class JobTimeout(JobError):
    """The job did not end in the time given. It goes on in the daemon."""
