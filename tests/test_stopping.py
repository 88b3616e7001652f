import pytest
import s3_server

from raydr import cli, stopping
from raydr.errors import Stopped
from raydr.storage import Run


def run_in(url, **recipe):
    run = Run(url)
    run.replace_json("recipe.json", {"recipe": {"name": "x", **recipe}})
    return run


def test_ask_see_clear_on_a_disk_and_in_a_bucket(tmp_path):
    with s3_server.serve():
        for run in (Run(str(tmp_path)), Run("s3://bucket/run")):
            assert stopping.asked(run) is None
            stopping.ask(run)
            stopping.ask(run)
            assert stopping.asked(run).startswith("raydr stop on ")
            stopping.clear(run)
            stopping.clear(run)
            assert stopping.asked(run) is None


def test_a_stage_that_has_not_begun_does_not_begin(tmp_path):
    run = Run(str(tmp_path))
    stopping.obey(run, "sweep")
    stopping.ask(run)
    with pytest.raises(Stopped, match=r"Stopped \(raydr stop on .* before sweep"):
        stopping.obey(run, "sweep")


def test_the_command_reaches_every_replicate(tmp_path, capsys):
    run = run_in(str(tmp_path), num_replicates=2)
    assert cli.main(["stop", str(tmp_path)]) == 0
    assert "no driver works on this run" in capsys.readouterr().out
    for place in (run, run.child("replicate-0"), run.child("replicate-1")):
        assert stopping.asked(place)
    with run.lock("synthesize"):
        assert cli.main(["stop", str(tmp_path)]) == 0
    assert "shards in flight are finished" in capsys.readouterr().out


def test_no_run_no_mark(tmp_path, capsys):
    assert cli.main(["stop", str(tmp_path / "nothing")]) == 2
    assert "There is no run in" in " ".join(capsys.readouterr().out.split())
    assert list(tmp_path.iterdir()) == []


def test_what_resumes_is_printed_for_a_shell(capsys):
    cli.resume(["synthesize", "--out", "my run"])
    assert "raydr synthesize --out 'my run'" in capsys.readouterr().out
