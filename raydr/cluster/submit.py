"""Send a command to a cluster as a Ray job, once, and follow it to its end.

    raydr submit synthesize --address http://127.0.0.1:8265 --recipe ddr_sd15 --out s3://bucket/run

The submission id is made from what runs (command, output, fields), so the same command typed twice, on
two laptops or after a lost connection, finds the job that is there and follows it. A job that ended badly
is sent again by `--resume`, under the next number; it goes on from what is committed.
"""

import asyncio
import contextlib
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raydr import terminal
from raydr.errors import UserError
from raydr.identity import fingerprint
from raydr.storage import Run

STAGES = ("run", "demo", "ingest", "ensemble", "finetune", "synthesize", "sweep")
# About a run that is there: these take OUT without a name, and are done anew each time they are asked for.
ABOUT = (
    "report", "audit", "status", "verify", "repair", "stop", "select", "quality", "rescore", "evaluate", "gc",
)  # fmt: skip
# Files that a command makes beside the run.
RESULTS = ("--to", "--figures", "--pictures")
ADDRESS = "http://127.0.0.1:8265"
# Each lists every ignore file that it meets, or says that a log has ended.
NOISY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env")
# A head node that restarts, or a laptop that slept, is back within this.
PATIENCE_SECONDS = 600.0
# A cluster that has just started has no agent yet, and answers so after 10 s of waiting for one.
START_SECONDS = 60.0
LOST = (OSError, aiohttp.ClientError, asyncio.TimeoutError, RuntimeError)


def run(stage: str, argv: Sequence[str], address: str | None = None, resume: bool = False) -> int:
    """Submit `raydr STAGE *argv`, print its log until it ends; returns the exit code of `raydr` there (0, 1 or 2).

    `resume` submits again where the last job of this identity has ended, well or badly; so does a command about a run.
    Raises UserError where nobody answers at `address`, the token is refused, or the last job failed and `resume` is
    not set.
    """
    name, resume = submission_id(stage, argv), resume or stage in ABOUT
    client = connect(address)
    last = last_attempt(client, name)
    if last is not None and last.status.is_terminal() and not resume:
        if last.status != JobStatus.SUCCEEDED:
            raise UserError(
                f"Job {last.submission_id} ended {last.status} ({_reason(last)}): add --resume to send it again, it "
                "goes on from what is committed"
            )
        terminal.line("submit", f"job {last.submission_id} finished before; --resume runs the command again")
        return 0
    if last is not None and not last.status.is_terminal():
        current = str(last.submission_id)
        terminal.note(f"job {current} is {str(last.status).lower()} already: following it")
    else:
        current = name if last is None else f"{name}-{_number(last, name) + 1}"
        _send(client, current, stage, argv)
    try:
        ended = follow(client, current)
    except KeyboardInterrupt:
        terminal.note(f"\nThe job goes on. The same command follows it again; `ray job stop {current}` ends it.")
        return 1
    if ended.status == JobStatus.SUCCEEDED:
        terminal.line("submit", f"job {current} finished")
        return 0
    terminal.line("submit", f"job {current} ended {ended.status} ({_reason(ended)}); --resume sends it again")
    return 2 if ended.driver_exit_code == 2 else 1


def submission_id(stage: str, argv: Sequence[str]) -> str:
    """`raydr-STAGE-16 hex digits`, equal for the same command, output and fields in any order.

    Raises UserError for an unknown command, or an --out that would end with the job's own working folder.
    """
    if stage not in (*STAGES, *ABOUT, "doctor"):
        raise UserError(
            f"raydr submit does not send {stage!r}: name one of {', '.join((*STAGES, *ABOUT))}, or type it without "
            "submit, it needs no cluster"
        )
    options: dict[str, list[str]] = {}
    key = ""
    for item in argv:
        if re.match(r"--[a-z]", item):
            key, _, value = item.partition("=")
            key = key.replace("_", "-")
            options[key] = [value] if value else []
        else:
            options.setdefault(key, []).append(item)
    places = options.get("" if stage in ABOUT else "--out", [])
    if not places and stage != "doctor":
        raise UserError("--out is missing: name a bucket (s3://bucket/run), or a path on storage that all nodes share")
    for option, paths in (("--out", places), *((name, options.get(name, [])) for name in RESULTS)):
        for k, path in enumerate(paths):
            if "://" not in path and not os.path.isabs(path):
                raise UserError(
                    f"{option} {path} is relative and would vanish with the job's folder: name a bucket "
                    "(s3://bucket/run), or an absolute path on storage that all nodes share"
                )
            paths[k] = Run(path).url
    return f"raydr-{stage}-{fingerprint(stage, options)}"


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the Jobs API at `address` (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, http://127.0.0.1:8265)."""
    if address:
        # Ray lets RAY_ADDRESS overrule an address that is passed; what a person typed must win.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    for logger in NOISY:
        logging.getLogger(logger).setLevel(logging.ERROR)
    shown = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ADDRESS
    headers = token_headers()
    parts = urlsplit(shown)
    if headers and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        terminal.note(f"{shown} is not encrypted, and the token crosses the network: `ray dashboard` makes a tunnel")
    try:
        return JobSubmissionClient(shown, headers=headers)
    except AuthenticationError:
        raise UserError(
            f"{shown} refuses this token: put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from None
    except (ConnectionError, requests.RequestException, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"No Ray Jobs API answers at {shown} ({reason}): open a tunnel (`ray dashboard cluster.yaml`), or name the "
            "cluster with --address"
        ) from None


def token_headers() -> dict[str, str]:
    """The cluster's token as a header, from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; {} without one.

    Ray's own client sends it only where RAY_AUTH_MODE is set, which a laptop's shell rarely has.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = path.read_text().strip() if path.is_file() else ""
    return {"Authorization": f"Bearer {token}"} if token else {}


def last_attempt(client: JobSubmissionClient, name: str) -> JobDetails | None:
    """The newest job whose id is `name` or `name-N`."""
    try:
        jobs = [job for job in client.list_jobs() if _number(job, name)]
    except (requests.RequestException, RuntimeError) as error:
        raise UserError(f"The cluster did not list its jobs ({error}): try the same command again") from None
    return max(jobs, key=lambda job: _number(job, name), default=None)


def _number(job: JobDetails, name: str) -> int:
    """1 for `name`, N for `name-N`, 0 for any other job."""
    found = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", job.submission_id or "")
    return int(found[1] or 1) if found else 0


def runtime_env(root: Path | None = None) -> dict[str, Any]:
    """What travels with the job: of a source tree (`root`) what its .rayignore leaves, of an installed package nothing.

    Ray puts it first on PYTHONPATH of every process of the job, so all nodes run the code that was sent.
    """
    root = root or Path(__file__).parents[2]
    return {"working_dir": str(root)} if (root / ".rayignore").is_file() else {}


def _send(client: JobSubmissionClient, name: str, stage: str, argv: Sequence[str]) -> None:
    """Submit; an id that is taken by now means that another submitter was first, and its job is the one."""
    entrypoint = shlex.join(["python", "-m", "raydr", stage, *argv])
    terminal.note(f"job {name}: {entrypoint}")
    started, told = time.monotonic(), False
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env())
            return
        except (requests.RequestException, RuntimeError) as error:
            with contextlib.suppress(requests.RequestException, RuntimeError):
                client.get_job_info(name)  # the request arrived, though its answer did not
                return
            refused = "status code 4" in str(error)
            if refused or time.monotonic() - started > START_SECONDS:
                raise UserError(
                    f"The cluster took no job ({str(error).splitlines()[0]}): look at dashboard_agent.log (two Rays "
                    "on one machine need different ports, --dashboard-agent-listen-port too)"
                ) from None
            if not told:
                terminal.note("the cluster takes no jobs yet: trying again")
                told = True
        time.sleep(2.0)


class Tail:
    """Prints a job's log as it grows; every connection is sent the whole log and prints only what is new."""

    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self._client, self._name = client, name
        self._printed = 0

    async def until_closed(self) -> None:
        """Return when the server has closed the stream, which it does after the job's end."""
        seen = 0
        async for text in self._client.tail_job_logs(self._name):
            fresh = text[max(0, self._printed - seen) :]
            seen += len(text)
            if fresh:
                sys.stdout.write(fresh)
                sys.stdout.flush()
                self._printed += len(fresh)


def follow(client: JobSubmissionClient, name: str, patience_seconds: float = PATIENCE_SECONDS) -> JobDetails:
    """Print the log of job `name` until it has ended, over any number of lost connections.

    Raises UserError when the cluster has not answered for `patience_seconds`.
    """
    tail = Tail(client, name)
    lost_at: float | None = None
    while True:
        try:
            client.get_job_info(name)
            lost_at = None
            asyncio.run(tail.until_closed())
            details = client.get_job_info(name)
            if details.status.is_terminal():
                return details
        except LOST as error:
            if "does not exist" in str(error):
                raise UserError(f"Job {name} is gone, the cluster was restarted: run the same command again") from None
            if lost_at is None:
                lost_at = time.monotonic()
                terminal.note("connection lost: trying again")
            if time.monotonic() - lost_at > patience_seconds:
                raise UserError(
                    f"The cluster has not answered for {patience_seconds:.0f} s, and job {name} may go on without us: "
                    "the same command follows it again"
                ) from None
        time.sleep(1.0)


def _reason(job: JobDetails) -> str:
    """Why a job ended: its exit code, else Ray's message cut to a line."""
    if job.driver_exit_code is not None:
        return f"exit code {job.driver_exit_code}"
    return ((job.message or "no message").strip().splitlines() or ["no message"])[-1][:200]
