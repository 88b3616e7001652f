"""`raydr submit`: which job a command is, what travels with it, and how a log is followed over lost connections."""

import asyncio
import runpy
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobDetails, JobStatus

from raydr import cli
from raydr.cluster import submit
from raydr.errors import UserError

ROOT = Path(cli.__file__).parents[1]
OUT = ["--out", "s3://bucket/run"]


def test_the_same_command_is_the_same_job_however_it_is_typed():
    name = submit.submission_id("synthesize", ["--recipe", "demo", *OUT, "--band", "0.5", "0.9"])
    assert name.startswith("raydr-synthesize-")
    assert len(name) == len("raydr-synthesize-") + 16
    assert name == submit.submission_id(
        "synthesize", ["--band", "0.5", "0.9", "--out=s3://bucket/run/", "--recipe=demo"]
    )
    assert name != submit.submission_id("synthesize", ["--recipe", "demo", *OUT, "--band", "0.5", "1.0"])
    assert name != submit.submission_id(
        "synthesize", ["--recipe", "demo", "--out", "s3://bucket/b", "--band", "0.5", "0.9"]
    )
    assert name != submit.submission_id("sweep", ["--recipe", "demo", *OUT, "--band", "0.5", "0.9"])


def test_an_output_that_would_vanish_with_the_job_is_refused():
    with pytest.raises(UserError, match="relative and would vanish"):
        submit.submission_id("run", ["--out", "runs/a"])
    with pytest.raises(UserError, match="relative and would vanish"):
        submit.submission_id("report", ["runs/a"])
    with pytest.raises(UserError, match="--out is missing"):
        submit.submission_id("demo", [])
    assert submit.submission_id("report", ["/shared/a"]) == submit.submission_id("report", ["/shared/b/../a/"])
    with pytest.raises(UserError, match="--to set is relative and would vanish"):
        submit.submission_id("select", ["/shared/a", "--to", "set"])
    with pytest.raises(UserError, match=r"does not send 'watch'.*without submit"):
        submit.submission_id("watch", ["/shared/a"])


@pytest.mark.parametrize("command", submit.ABOUT)
def test_every_command_about_a_run_can_be_a_job(command, monkeypatch, capsys):
    more = {"rescore": ["--ensemble", "/shared/m"], "evaluate": ["--on", "idrid"], "gc": ["--yes"]}.get(command, [])
    monkeypatch.setattr(submit, "connect", lambda address: Flaky([]))
    sent = []
    monkeypatch.setattr(submit, "_send", lambda client, name, stage, argv: sent.append((name, argv)))
    for typed in (["s3://bucket/run", *more], [*more, "s3://bucket/run/"]):
        if command == "evaluate" and typed[0] == "--on":  # takes any number of names, so OUT comes first
            continue
        assert cli.main(["submit", command, *typed]) == 0
    names, arguments = {name for name, _ in sent}, sent[0][1]
    assert len(names) == 1
    shaped = ["--shape", "cluster"] if command in ("rescore", "evaluate") else []
    assert arguments == ["s3://bucket/run", *more, *shaped]
    cli.parser().parse_args([command, *arguments])


def test_what_is_asked_of_a_run_is_asked_anew(monkeypatch, capsys):
    """Unlike a stage, whose finished job is not sent again."""
    name = submit.submission_id("status", ["s3://bucket/run"])
    client = Flaky([], [details(name, JobStatus.SUCCEEDED)])
    monkeypatch.setattr(submit, "connect", lambda address: client)
    assert cli.main(["submit", "status", "s3://bucket/run"]) == 0
    assert [job for job, _ in client.sent] == [f"{name}-2"]


def test_a_typo_is_found_before_anything_is_sent(capsys):
    assert cli.main(["submit", "run", "--address", "http://127.0.0.1:1", "--recipe", "nosuch", *OUT]) == 2
    assert "nosuch" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["submit", "synthesize", "--address", "http://127.0.0.1:1", "--recipe", "debug", *OUT, "--acepted", "3"]
        )
    assert ended.value.code == 2
    assert cli.main(["submit", "rescore", "s3://b/run", "--ensemble", "e", "--fast"]) == 2
    assert "raydr rescore does not know '--fast'" in capsys.readouterr().out


def test_nobody_at_the_address_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    assert cli.main(["submit", "run", "--address", "http://127.0.0.1:1", "--recipe", "debug", *OUT]) == 2
    text = capsys.readouterr().out
    assert "No Ray Jobs API answers at http://127.0.0.1:1" in text
    assert "Traceback" not in text


def packed(folder, to):
    """Names in the package that Ray itself makes of what `runtime_env` asks for."""
    wanted = submit.runtime_env(folder)
    # What `ray job submit --working-dir .` asks for, so that both send the same.
    assert wanted == {"working_dir": str(folder)}
    create_package(wanted["working_dir"], to, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(to) as content:
        return {name for name in content.namelist() if not name.endswith("/")}


def test_the_upload_is_the_package_alone(tmp_path):
    """From a checkout full of data."""
    sent = {"pyproject.toml", "README.md", "raydr/__init__.py", "raydr/assets/phantom-base/base.json", "jobs/run.py"}
    for name in (
        *sent, "raydr/__pycache__/a.pyc", "raydr/fundus/__pycache__/b.pyc",
        "runs/a/real/x.parquet", "raydr-demo/recipe.json", "data/DDR/train/1.jpg", "photos.zip", "x", ".env",
        ".git/objects/aa/bb", ".venv/bin/python", "tests/test_x.py", "secrets.env",
    ):  # fmt: skip
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    shutil.copy(ROOT / ".rayignore", tmp_path / "checkout")
    assert packed(tmp_path / "checkout", tmp_path / "package.zip") == sent


def test_this_checkout_packs_into_little(tmp_path):
    names = packed(ROOT, tmp_path / "package.zip")
    assert (tmp_path / "package.zip").stat().st_size < 20e6
    assert {name.split("/")[0] for name in names} == {"raydr", "jobs", "pyproject.toml", "README.md", "LICENSE"}


def test_an_installed_package_sends_nothing(tmp_path):
    assert submit.runtime_env(tmp_path) == {}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_a_job_is_its_command_in_the_shape_of_a_cluster(path, monkeypatch):
    """`ray job submit ... python jobs/synthesize.py` without --shape must not put Stable Diffusion on CPUs."""
    called = []
    monkeypatch.setattr(cli, "main", lambda argv: called.append(argv) or 0)
    for typed, shape in (([], "cluster"), (["--shape", "laptop"], "laptop"), (["--shape.generators", "3"], "cluster")):
        monkeypatch.setattr(sys, "argv", [str(path), "OUT", *typed])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        assert ended.value.code == 0
        command, *rest = called.pop()
        assert command == {"benchmark": "bench"}.get(path.stem, path.stem)
        assert rest[-len(typed) :] == typed or not typed
        if command in ("bench", "evaluate"):  # they measure what they are told to
            continue
        options, fields = cli.parser().parse_known_args([command, *rest])
        assert options.shape == shape
        assert fields == ["OUT", *(typed if typed[:1] == ["--shape.generators"] else [])]


def test_the_token_is_sent_though_no_mode_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert submit.token_headers() == {}
    (tmp_path / "token").write_text("abc\n")
    assert submit.token_headers() == {"Authorization": "Bearer abc"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "def")
    assert submit.token_headers() == {"Authorization": "Bearer def"}


def details(name, status, **more):
    return JobDetails(type="SUBMISSION", submission_id=name, status=status, entrypoint="", **more)


class Flaky:
    """A Jobs API whose log breaks off after `breaks[k]` characters on the k-th connection."""

    LOG = "".join(f"line {k}\n" for k in range(50))

    def __init__(self, breaks, jobs=()):
        self.breaks, self.jobs, self.connections, self.sent = list(breaks), list(jobs), 0, []

    def list_jobs(self):
        return self.jobs

    def submit_job(self, *, entrypoint, submission_id, runtime_env):
        self.sent.append((submission_id, entrypoint))

    def get_job_info(self, name):
        return details(name, JobStatus.RUNNING if self.breaks else JobStatus.SUCCEEDED)

    async def tail_job_logs(self, name):
        self.connections += 1
        end = self.breaks.pop(0) if self.breaks else len(self.LOG)
        for start in range(0, end, 13):
            yield self.LOG[start : min(start + 13, end)]
        if self.breaks or end < len(self.LOG):
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


def test_a_log_is_printed_once_over_lost_connections(capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    client = Flaky([100, 40, 0, 230])
    assert submit.follow(client, "raydr-run-1").status == JobStatus.SUCCEEDED
    assert client.connections == 5
    assert capsys.readouterr().out.replace("  connection lost: trying again\n", "") == Flaky.LOG


def test_a_cluster_that_stays_away_is_given_up(monkeypatch, capsys):
    class Gone(Flaky):
        def get_job_info(self, name):
            raise ConnectionError("refused")

    with pytest.raises(UserError, match="has not answered for 1 s"):
        submit.follow(Gone([]), "raydr-run-1", patience_seconds=1.0)
    assert capsys.readouterr().out.count("connection lost") == 1


def test_a_restarted_cluster_has_forgotten_the_job():
    class Forgot(Flaky):
        def get_job_info(self, name):
            raise RuntimeError("Request failed with status code 404: Job raydr-run-1 does not exist.")

    with pytest.raises(UserError, match="is gone"):
        submit.follow(Forgot([]), "raydr-run-1")


def test_last_attempts(monkeypatch, capsys):
    """First, running, finished, failed, and failed with --resume: which job is sent, which is followed."""
    arguments = ["--recipe", "debug", *OUT]
    name = submit.submission_id("run", arguments)

    def run(jobs, resume=False):
        client = Flaky([], jobs)
        monkeypatch.setattr(submit, "connect", lambda address: client)
        return submit.run("run", arguments, "http://x", resume), [job for job, _ in client.sent]

    assert run([]) == (0, [name])
    assert run([details("other", JobStatus.FAILED), details(None, JobStatus.RUNNING)]) == (0, [name])
    assert run([details(name, JobStatus.RUNNING)]) == (0, [])
    assert run([details(name, JobStatus.SUCCEEDED)]) == (0, [])
    assert run([details(name, JobStatus.SUCCEEDED)], resume=True) == (0, [f"{name}-2"])
    failed = details(name, JobStatus.FAILED, driver_exit_code=1)
    with pytest.raises(UserError, match=r"exit code 1.*--resume"):
        run([failed])
    assert run([failed], resume=True) == (0, [f"{name}-2"])
    assert run([failed, details(f"{name}-2", JobStatus.STOPPED), details(f"{name}-10", JobStatus.FAILED)], True)[1] == [
        f"{name}-11"
    ]
    assert run([failed, details(f"{name}-2", JobStatus.PENDING)])[1] == []


def test_a_submission_that_arrived_without_an_answer_is_followed(monkeypatch, capsys):
    class Raced(Flaky):
        def submit_job(self, **_):
            raise RuntimeError("Request failed with status code 500: Job with submission_id x already exists.")

    monkeypatch.setattr(submit, "connect", lambda address: Raced([]))
    assert submit.run("run", OUT, "http://x") == 0
    assert Flaky.LOG in capsys.readouterr().out


def test_a_cluster_that_is_just_starting_is_asked_again(monkeypatch, capsys):
    class Starting(Flaky):
        def submit_job(self, **options):
            if self.answers:
                raise RuntimeError(self.answers.pop(0))
            super().submit_job(**options)

        def get_job_info(self, name):
            if not self.sent:
                raise RuntimeError("Request failed with status code 404: Job x does not exist")
            return super().get_job_info(name)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    client = Starting([])
    monkeypatch.setattr(submit, "connect", lambda address: client)
    client.answers = ["Request failed with status code 500: No available agent to submit job"] * 2
    assert submit.run("run", OUT, "http://x") == 0
    assert len(client.sent) == 1
    client = Starting([])
    client.answers = ["Request failed with status code 400: bad runtime_env"] * 2
    with pytest.raises(UserError, match="bad runtime_env"):
        submit.run("run", OUT, "http://x")
    assert len(client.answers) == 1  # a refusal is not repeated


def test_asyncio_of_the_tail_survives_an_event_loop_per_connection():
    """`follow` runs one loop a connection: the count of printed characters must not live in the loop."""
    client = Flaky([])
    tail = submit.Tail(client, "x")
    asyncio.run(tail.until_closed())
    asyncio.run(tail.until_closed())
    assert tail._printed == len(Flaky.LOG)
