#!/usr/bin/env python3
"""Exports a VM through the daemon's REST API, with nothing but Python.

    examples/export_rest.py VM FOLDER [OPTION=VALUE...]

    examples/export_rest.py /DC0/vm/web01 /srv/web01 parallel_downloads=4 remove_cdrom=true

FOLDER is on the daemon's machine. The daemon is that of H2KVMD_URL, the access
token that of H2KVMD_TOKEN or the file H2KVMD_TOKEN_FILE. Exit codes are those
of docs/scripting.md. (python/ has a package that does all this and more.)
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Dict, Optional

EVERY = 1.0  # seconds between two looks
PATIENCE = 120.0  # seconds that the daemon may be away


class Refused(Exception):
    """The daemon answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The daemon never sends elsewhere; the token must not go there."""

    def redirect_request(self, *_: Any) -> None:
        return None


# No proxy: the daemon is on this machine or at the end of a tunnel.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect)
base = os.environ.get("H2KVMD_URL") or "http://localhost:8080"
base = (base if "://" in base else "http://" + base).rstrip("/")


def token() -> str:
    """The access token, or nothing."""
    given, path = os.environ.get("H2KVMD_TOKEN", ""), os.environ.get("H2KVMD_TOKEN_FILE", "")
    if given or not path:
        return given.strip()
    with open(path, encoding="ascii") as f:
        return f.read().strip()


def call(path: str, body: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """Asks the daemon: POST with a body, GET without one. Raises Refused; OSError when it is away."""
    request = urllib.request.Request(base + path, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if token():
        request.add_header("Authorization", "Bearer " + token())
    try:
        with opener.open(request, timeout=30) as response:
            answer = json.load(response)
            if not isinstance(answer, dict):
                raise ValueError("no object")
            return answer
    except urllib.error.HTTPError as err:
        if err.code >= 500:
            raise OSError(f"the daemon answered {err.code}") from err  # starting, or stopping
        try:
            error = json.load(err)["error"]
            text = ": ".join(filter(None, (error["message"], error.get("details"))))
        except (ValueError, KeyError, TypeError):
            text = f"HTTP status {err.code}"
        raise Refused(err.code, text) from err
    except (http.client.HTTPException, ValueError) as err:
        raise OSError(f"the answer broke off, or is not that of a hyper2kvmd: {err}") from err


def wait(job_id: str) -> Dict[str, Any]:
    """The job as it ended."""
    seen = time.monotonic()
    shown = ""
    while True:
        try:
            job = call("/jobs/" + job_id)
        except OSError:
            if time.monotonic() - seen > PATIENCE:
                raise
        else:
            seen = time.monotonic()
            if job["status"] in ("completed", "failed", "cancelled"):
                return job
            progress = job.get("progress") or {"phase": job["status"], "percent_complete": 0.0}
            line = f"{progress['phase']} {progress['percent_complete']:.0f} %"
            if line != shown:
                shown = line
                print(line, flush=True)
        time.sleep(EVERY)


def option(text: str) -> Any:
    """The value of an option: true, 4 and the like as JSON has them, else a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> int:
    if len(sys.argv) < 3 or not all("=" in arg for arg in sys.argv[3:]):
        print(__doc__, file=sys.stderr)
        return 2
    url = urllib.parse.urlsplit(base)
    if token() and url.scheme != "https" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        print("ERROR: the token would travel unencrypted: use an https address", file=sys.stderr)
        return 2
    options = {key: option(value) for key, value in (arg.split("=", 1) for arg in sys.argv[3:])}
    job_id = ""
    try:
        job_id = call("/jobs/submit", {"vm_path": sys.argv[1], "output_path": sys.argv[2], "options": options})["job_ids"][0]
        print(f"job {job_id}")
        job = wait(job_id)
    except KeyboardInterrupt:
        if job_id:
            print(f"\njob {job_id} goes on in the daemon; to stop it: h2kvmctl cancel -id {job_id}", file=sys.stderr)
        return 130
    except Refused as err:
        print(f"ERROR: {err}", file=sys.stderr)
        return {400: 2, 401: 6, 403: 6}.get(err.status, 1)
    except OSError as err:
        print(f"ERROR: reach daemon at {base}: {getattr(err, 'reason', err)}", file=sys.stderr)
        return 3
    if job["status"] != "completed":
        print(f"ERROR: the job is {job['status']}: {job.get('error', '')}", file=sys.stderr)
        return 4 if job["status"] == "failed" else 5
    result = job["result"]
    print(f"{result['ovf_path']}: {len(result['files'])} files, {result['total_size']} bytes, verified: {result['verified']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
