"""Exports on a machine that may have no h2kvmctl: then govc does them, as well as it can."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from datetime import timedelta
from typing import Any, Dict, List, Mapping, Optional, Tuple

from . import process
from .errors import BadAnswer, H2KVMCtlNotFound, H2KVMError, UsageError
from .h2kvmctl_runner import H2KVMCtlRunner, Path, ProgressCallback
from .models import ExportResult

# What listing and removing devices may take, in seconds.
CALL_TIMEOUT = 120.0

# Options that change how an export is made, but not what comes of it.
_WITHOUT_EFFECT = frozenset({"name", "parallel_downloads", "show_individual_progress", "skip_space_check"})
_HONOURED = frozenset({"remove_cdrom", "overwrite", "include_media"})

_LOSSES = (
    "exported by govc: the disks were not compared with the host's manifest",
    "exported by govc: the NVRAM of a UEFI guest is left out unless include_media is set",
)


class FallbackWarning(RuntimeWarning):
    """An export was made by govc, because there is no h2kvmctl."""


def export_vm_h2kvmctl(
    vm_path: str, output_path: Path, *, daemon_url: Optional[str] = None, h2kvmctl_path: Optional[Path] = None,
    token: Optional[str] = None, token_file: Optional[Path] = None, ca_cert: Optional[Path] = None,
    retry_for: float = 60.0, timeout: Optional[float] = None, poll_interval: float = 2.0, progress_callback: Optional[ProgressCallback] = None,
    cancel_on_interrupt: bool = False, **options: Any,
) -> ExportResult:
    """Exports one VM and waits for it: H2KVMCtlRunner.export_vm in one call, with its options and errors.

    Where h2kvmctl is missing, `govc export.ovf` does it, and a FallbackWarning
    says so. Then the export runs on this machine, with the vCenter of GOVC_URL
    and its kin; output_path is here, govc makes a folder with the VM's name in
    it; disks come one after another; the callback is not called; Ctrl-C and the
    timeout (an H2KVMError then) end the export itself. An option that govc
    cannot honour is a UsageError: what is asked for is never left out in
    silence. H2KVMCtlNotFound when govc is missing as well.
    """
    try:
        runner = H2KVMCtlRunner(
            daemon_url, h2kvmctl_path, retry_for=retry_for, token=token, token_file=token_file, ca_cert=ca_cert)
    except H2KVMCtlNotFound as err:
        govc = shutil.which("govc")
        if govc is None:
            raise H2KVMCtlNotFound(f"{err}; there is no govc on PATH to do without it either") from None
        warnings.warn(f"{err}; exporting with govc instead, which neither resumes nor proves what it fetched",
                      FallbackWarning, stacklevel=2)
        return _export(os.path.abspath(govc), vm_path, os.fspath(output_path), timeout, options)
    return runner.export_vm(
        vm_path, output_path, timeout=timeout, poll_interval=poll_interval, progress_callback=progress_callback,
        cancel_on_interrupt=cancel_on_interrupt, **options)


def _export(govc: str, vm_path: str, folder: str, timeout: Optional[float], options: Mapping[str, Any]) -> ExportResult:
    _check(options)
    if not os.path.isabs(folder):
        raise UsageError(f"output_path {folder!r} is not absolute")
    began = time.monotonic()
    notes = list(_LOSSES)
    if options.get("remove_cdrom"):
        notes += _remove_cdroms(govc, vm_path)
    argv = [govc, "export.ovf", "-vm", vm_path]
    if options.get("overwrite"):
        argv.append("-f")
    if options.get("include_media"):
        argv.append("-i")
    before = _descriptors(folder)
    _run([*argv, folder], timeout)
    after = _descriptors(folder)
    written = [path for path, stamp in after.items() if before.get(path) != stamp]
    if len(written) != 1:
        raise BadAnswer(f"govc export.ovf ended without an error and left {len(written)} new descriptors below {folder}, want 1",
                        exit_code=0)
    inside = os.path.dirname(written[0])
    files = sorted(entry.path for entry in os.scandir(inside) if entry.is_file(follow_symlinks=False))
    return ExportResult(
        vm_name=os.path.basename(inside), output_dir=inside, ovf_path=written[0], files=tuple(files),
        total_size=sum(os.path.getsize(path) for path in files), duration=timedelta(seconds=time.monotonic() - began),
        verified=False, warnings=tuple(notes), method="govc",
    )


def _check(options: Mapping[str, Any]) -> None:
    """Refuses what govc cannot do. An option that is off asks for nothing."""
    wanted = {key for key, value in options.items() if value not in (None, False)}
    if options.get("format") == "ovf":
        wanted.discard("format")
    refused = sorted(wanted - _HONOURED - _WITHOUT_EFFECT)
    if refused:
        raise UsageError(f"there is no h2kvmctl, and govc cannot honour {', '.join(refused)}: install h2kvmctl, or set H2KVMCTL_PATH")


def _remove_cdroms(govc: str, vm_path: str) -> List[str]:
    """Takes the CD-ROM drives out of the VM, and says which."""
    listed = _run([govc, "device.ls", "-vm", vm_path], CALL_TIMEOUT)
    names = [words[0] for words in map(str.split, listed.splitlines()) if words and words[0].startswith("cdrom-")]
    if names:
        _run([govc, "device.remove", "-vm", vm_path, *names], CALL_TIMEOUT)
    return [f"removed from the VM: {name}" for name in names]


def _descriptors(folder: str) -> Dict[str, Tuple[int, int]]:
    """The descriptors that govc keeps in the folders below this one, with what changes when one is written again."""
    found: Dict[str, Tuple[int, int]] = {}
    try:
        inside = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return found  # govc makes it
    for path in inside:
        ovf = os.path.join(path, os.path.basename(path) + ".ovf")
        try:
            stat = os.stat(ovf)
        except FileNotFoundError:
            continue
        found[ovf] = (stat.st_ino, stat.st_mtime_ns)
    return found


def _run(argv: List[str], timeout: Optional[float]) -> str:
    """Runs govc and returns the end of what it prints."""
    what = f"govc {argv[1]}"
    try:
        done = process.run(argv, timeout=timeout)
    except process.TimedOut as err:
        raise H2KVMError(f"{what}: {err}; what lies in the output folder is not whole") from None
    except OSError as err:
        raise H2KVMCtlNotFound(f"run {argv[0]}: {err.strerror or err}") from None
    except ValueError:
        raise UsageError(f"{what}: a path holds a NUL") from None
    if done.code != 0:
        messages = _redact(done.messages)
        said = " ".join(messages.split()) or "it gave no reason"
        raise H2KVMError(f"{what} ended with code {done.code}: {said}", exit_code=done.code, stderr=messages)
    return done.output.decode("utf-8", "replace")


def _redact(text: str) -> str:
    """Text without the credentials in the environment: govc repeats an address that it cannot read."""
    user, at, _ = os.environ.get("GOVC_URL", "").rpartition("@")
    for secret in (os.environ.get("GOVC_PASSWORD", ""), user.rpartition("//")[2] if at else ""):
        if secret:
            text = text.replace(secret, "***")
    return text
