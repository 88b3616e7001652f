"""`raydr rescore` through the real entry point, on a finished run."""

import base64
import json
import shutil

import numpy as np
import pytest

from raydr import cli, schema, shards
from raydr.storage import Run


@pytest.fixture
def out(finished_run, tmp_path):
    """A copy: other tests read the original."""
    shutil.copytree(finished_run, tmp_path / "out")
    return tmp_path / "out"


def test_rescoring_by_the_run_s_own_ensemble_repeats_its_scores_and_goes_on(out, capsys):
    run = Run(out)
    made = shards.read(run, "synthetic", schema.SYNTHETIC, ["sample_id", "ensemble_id", "probabilities", "score"])
    ensemble_id = made["ensemble_id"][0].as_py()
    assert cli.main(["rescore", str(out), "--ensemble", ensemble_id]) == 0
    assert f"{made.num_rows} images by 3 members, {made.num_rows} of them now" in capsys.readouterr().out
    prefix = f"scores/{ensemble_id}"
    again = shards.read(run, prefix, schema.SCORES)
    assert again["sample_id"].to_pylist() == made["sample_id"].to_pylist()
    # Shards are judged whole, as synthesis did: equal but for the order of sums in another number of threads.
    for name in ("probabilities", "score"):
        one, other = (np.array(table[name].to_pylist()) for table in (made, again))
        assert np.abs(one - other).max() < 1e-5
    assert shards.completed(run, prefix)["rows"] == made.num_rows
    assert shards.verify(run) == []

    # A lost shard alone is judged again, to the same bytes.
    records = shards.commits(run, prefix)
    lost = next(iter(records))
    run.delete(lost)
    assert cli.main(["repair", str(out)]) == 0
    assert cli.main(["rescore", str(out), "--ensemble", str(out / "graders" / ensemble_id)]) == 0
    assert f"{records[lost].rows} of them now" in capsys.readouterr().out
    assert {key: record.sha256 for key, record in shards.commits(run, prefix).items()} == {
        key: record.sha256 for key, record in records.items()
    }
    # All there: Ray is not started.
    assert cli.main(["rescore", str(out), "--ensemble", ensemble_id]) == 0
    assert "0 of them now" in capsys.readouterr().out
    assert cli.main(["select", str(out), "--band", "0", "1", "--ensemble", ensemble_id]) == 0
    assert cli.main(["gc", str(out)]) == 0
    assert "shards without a record" not in capsys.readouterr().out


def test_an_ensemble_that_saw_the_evaluated_photographs_is_refused_before_ray(out, capsys, monkeypatch):
    from raydr.cluster import session
    from raydr.grading.ensemble import META, hash_ids, load_meta

    def started(shape):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(session, "session", started)
    graders = next((out / "graders").iterdir())
    shutil.copytree(graders, out.parent / "seen")
    record_path = next((out.parent / "seen").glob(f"*/{META}"))
    record = json.loads(record_path.read_text())
    record["trained_on"] = base64.b64encode(hash_ids(["DDR/test-000000"]).tobytes()).decode()
    record_path.write_text(json.dumps(record))
    assert len(load_meta(record_path.parent).trained_on) == 1
    assert cli.main(["rescore", str(out), "--ensemble", str(out.parent / "seen")]) == 2
    assert "was trained on 1 of 40 test photographs" in capsys.readouterr().out
    assert not Run(out).list("scores")
    assert cli.main(["rescore", str(out), "--ensemble", "e-nothing"]) == 2
    assert "is neither an ensemble of" in capsys.readouterr().out


def test_an_imported_ensemble_judges_in_paper_mode_alone(tmp_path, capsys, monkeypatch):
    from contextlib import nullcontext

    from cluster.small_run import make_run, small_recipe

    from raydr.cluster import rescore, session
    from raydr.grading.ensemble import META, hash_ids

    asked, out = [], make_run(tmp_path / "out", small_recipe()).local
    monkeypatch.setattr(session, "session", lambda shape: nullcontext())
    monkeypatch.setattr(rescore, "_stream", lambda target, shape, ensemble_id, *rest: asked.append(ensemble_id) or [])
    monkeypatch.setattr(rescore.shards, "complete", lambda *arguments: None)
    folder = out.parent / "published"
    shutil.copytree(next((out / "graders").iterdir()), folder)
    paths = sorted(folder.glob(f"*/{META}"))
    for path in paths:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": "imported"}))
    command = ["rescore", str(out), "--ensemble", str(folder)]
    assert cli.main(command) == 2
    assert "rescore --paper-mode" in " ".join(capsys.readouterr().out.split())
    assert asked == []
    assert cli.main([*command, "--paper-mode"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"paper mode: {', '.join(path.parent.name for path in paths)} may have seen photographs" in said
    (ensemble_id,) = asked
    assert ensemble_id.startswith("i-")
    # What is known to have seen a test photograph is refused in any mode.
    record = json.loads(paths[0].read_text()) | {"provenance": "trained"}
    record["trained_on"] = base64.b64encode(hash_ids(["DDR/test-0-0"]).tobytes()).decode()
    paths[0].write_text(json.dumps(record))
    assert cli.main([*command, "--paper-mode"]) == 2
    assert "was trained on 1 of 40 test photographs" in capsys.readouterr().out
