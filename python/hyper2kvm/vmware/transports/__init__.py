"""Exports of VMs through the daemon hyper2kvmd.

    from hyper2kvm.vmware.transports import create_h2kvmctl_runner

    runner = create_h2kvmctl_runner()
    result = runner.export_vm("/DC0/vm/web01", "/srv/web01", parallel_downloads=4)
    print(result.ovf_path)

H2KVMCTL_AVAILABLE says whether there was an h2kvmctl when this was imported.
export_vm_h2kvmctl does without it, by govc. Messages go to the logger
"hyper2kvm". Needs nothing but the standard library, and a POSIX system.
"""

from .errors import (
    BadAnswer,
    DaemonUnreachable,
    H2KVMCtlNotFound,
    H2KVMError,
    JobCancelled,
    JobError,
    JobFailed,
    JobTimeout,
    NotAuthorised,
    UsageError,
)
from .govc import FallbackWarning, export_vm_h2kvmctl
from .h2kvmctl_runner import H2KVMCtlRunner, create_h2kvmctl_runner, find_h2kvmctl
from .models import DaemonStatus, ExportResult, FileProgress, Job, Progress

H2KVMCTL_AVAILABLE: bool = find_h2kvmctl() is not None

__all__ = [
    "H2KVMCTL_AVAILABLE",
    "BadAnswer",
    "DaemonStatus",
    "DaemonUnreachable",
    "ExportResult",
    "FallbackWarning",
    "FileProgress",
    "H2KVMCtlNotFound",
    "H2KVMCtlRunner",
    "H2KVMError",
    "Job",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobTimeout",
    "NotAuthorised",
    "Progress",
    "UsageError",
    "create_h2kvmctl_runner",
    "export_vm_h2kvmctl",
    "find_h2kvmctl",
]
