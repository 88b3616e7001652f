"""What is left behind, damaged or hostile is adopted, refused or repaired, and never read as if it were whole."""

import dataclasses
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydr import parquet, shards
from raydr.errors import DamagedData, MissingInput
from raydr.ledger import parse
from raydr.schema import SCORES
from raydr.storage import Run

from .tables import FINGERPRINT, PLAN, commit_all, flip, make

# Leftovers and damage


def flip_first(run: Run, key: str) -> None:
    """Change one bit of the leading magic bytes, which readers of Parquet do not look at."""
    run.replace(key, b"Q" + run.read(key)[1:])


def truncate(run: Run, key: str) -> None:
    run.replace(key, run.read(key)[:-10])


def inode(run: Run, key: str) -> int:
    return run.path(key).stat().st_ino


def test_a_valid_shard_without_a_record_is_adopted(committed: Run) -> None:
    committed.delete(shards.record_key(PLAN[0]))
    committed.replace(PLAN[0], committed.read(PLAN[0]))
    before = inode(committed, PLAN[0])
    other = shards.commit(committed, PLAN[0], make(0, offset=5), SCORES, FINGERPRINT)
    assert inode(committed, PLAN[0]) == before
    assert shards.read(committed, "scores", SCORES)["score"][0].as_py() == 0  # theirs, not ours
    assert other == shards.commits(committed)[PLAN[0]]
    assert shards.verify(committed) == []


@pytest.mark.parametrize("damage", [truncate, flip, Run.delete])
def test_an_untrusted_damaged_shard_is_written_over(committed: Run, undisturbed: pa.Table, damage) -> None:
    committed.delete(shards.record_key(PLAN[0]))
    damage(committed, PLAN[0])
    shards.commit(committed, PLAN[0], make(0), SCORES, FINGERPRINT)
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)
    assert shards.verify(committed) == []


def test_an_untrusted_shard_with_other_rows_is_not_decided_silently(committed: Run) -> None:
    committed.delete(shards.record_key(PLAN[0]))
    with pytest.raises(DamagedData, match=f"{PLAN[0]}.* 8 rows .* 5 rows.*raydr repair"):
        shards.commit(committed, PLAN[0], make(0, rows=5), SCORES, FINGERPRINT)


def test_an_untrusted_shard_that_lacks_rows_is_written_over(committed: Run, undisturbed: pa.Table) -> None:
    """Its writer could not make three rows, and died before its record: they can be made now."""
    committed.delete(PLAN[0])
    committed.delete(shards.record_key(PLAN[0]))
    shards.commit(committed, PLAN[0], make(0, rows=5), SCORES, FINGERPRINT)
    committed.delete(shards.record_key(PLAN[0]))
    assert shards.commit(committed, PLAN[0], make(0), SCORES, FINGERPRINT).rows == 8
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)
    assert shards.verify(committed) == []


def test_a_committed_shard_is_never_written_over(committed: Run) -> None:
    for damage in (flip_first, flip, truncate):
        damage(committed, PLAN[0])
        before = committed.read(PLAN[0])
        with pytest.raises(DamagedData, match=f"{PLAN[0]}.*raydr repair"):
            shards.commit(committed, PLAN[0], make(0), SCORES, FINGERPRINT)
        assert committed.read(PLAN[0]) == before


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (truncate, "damaged"),
        (flip, "damaged"),
        (flip_first, "damaged"),
        (Run.delete, "missing"),
        (lambda run, key: truncate(run, shards.record_key(key)), "record"),
        (lambda run, key: run.replace_json(shards.record_key(key), {"key": key}), "record"),
    ],
)
def test_damage_is_found_repaired_and_redone(committed: Run, undisturbed: pa.Table, damage, kind: str) -> None:
    shards.complete(committed, "scores", PLAN)
    damage(committed, PLAN[1])
    kept = {
        key: inode(committed, key) for key in PLAN if committed.exists(key) and (key != PLAN[1] or kind == "record")
    }
    if damage is not flip_first:  # there only the hash can tell
        with pytest.raises(DamagedData, match="raydr repair"):
            shards.read(committed, "scores", SCORES)
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[1], kind)]
    assert shards.repair(committed, problems) == [PLAN[1]]
    assert shards.completed(committed, "scores") is None
    assert shards.pending(PLAN, FINGERPRINT, shards.commits(committed)) == [PLAN[1]]
    commit_all(committed)
    assert {key: inode(committed, key) for key in kept} == kept
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)
    assert shards.verify(committed) == []


def test_a_record_that_contradicts_its_shard_is_found(committed: Run, undisturbed: pa.Table) -> None:
    record = committed.read_json(shards.record_key(PLAN[1]))
    committed.replace_json(shards.record_key(PLAN[1]), record | {"rows": 7})
    with pytest.raises(DamagedData, match="row counts"):
        shards.read(committed, "scores", SCORES)
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[1], "record")]
    shards.repair(committed, problems)
    commit_all(committed)
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)


def test_orphans_are_reported_and_only_unreadable_ones_deleted(committed: Run) -> None:
    for key in PLAN[:2]:
        committed.delete(shards.record_key(key))
    truncate(committed, PLAN[1])
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[0], "orphan"), (PLAN[1], "orphan")]
    shards.repair(committed, problems)
    assert committed.exists(PLAN[0])
    assert not committed.exists(PLAN[1])
    commit_all(committed)
    assert shards.verify(committed) == []


def test_a_record_that_follows_while_others_are_hashed_stays(committed: Run, undisturbed: pa.Table) -> None:
    record = committed.read(shards.record_key(PLAN[0]))
    committed.delete(shards.record_key(PLAN[0]))
    problems = shards.verify(committed)
    committed.create(shards.record_key(PLAN[0]), record)
    shards.repair(committed, problems)
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)


def test_shards_of_another_version_are_reported_and_left_alone(run: Run) -> None:
    old = pa.schema([("sample_id", pa.string())])
    shards.commit(run, PLAN[0], make(0).select(["sample_id"]), old, FINGERPRINT)
    problems = shards.verify(run)
    assert [problem.kind for problem in problems] == ["schema"]
    assert shards.repair(run, problems) == []
    assert run.exists(PLAN[0])


def test_verify_takes_a_prefix_and_reports_progress(committed: Run) -> None:
    shards.commit(committed, "trials/x/a.parquet", make(0), SCORES, FINGERPRINT)
    for key in (PLAN[0], "trials/x/a.parquet"):
        truncate(committed, key)
    seen: list[tuple[int, int]] = []
    assert [problem.key for problem in shards.verify(committed, "scores/e1", lambda *at: seen.append(at))] == [PLAN[0]]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [problem.key for problem in shards.verify(committed, "trials")] == ["trials/x/a.parquet"]
    assert [problem.key for problem in shards.verify(committed)] == [PLAN[0], "trials/x/a.parquet"]
    assert shards.verify(committed, "real") == []


def test_a_manifest_proves_completeness(committed: Run) -> None:
    with pytest.raises(MissingInput, match=r"1 of 4 shards of scores .* scores/e1/more\.parquet"):
        shards.complete(committed, "scores", [*PLAN, "scores/e1/more.parquet"])
    assert shards.completed(committed, "scores") is None
    shards.complete(committed, "scores", PLAN)
    manifest = shards.completed(committed, "scores")
    assert manifest is not None
    assert (manifest["num_shards"], manifest["rows"]) == (3, 24)
    assert manifest["shards"] == {key: record.sha256 for key, record in shards.commits(committed).items()}
    committed.delete(shards.record_key(PLAN[2]))
    committed.delete(PLAN[2])
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[2], "missing")]
    shards.repair(committed, problems)
    assert shards.completed(committed, "scores") is None


def test_a_bad_manifest_is_withdrawn_and_nothing_else(committed: Run) -> None:
    name = "_commits/scores/_complete.json"
    values: list[object] = [{"shards": dict.fromkeys(PLAN, "0" * 64)}, {}, [], {"shards": 3}]
    for value in values:
        committed.replace_json(name, value)
        problems = shards.verify(committed)
        assert {(problem.key, problem.kind) for problem in problems} == {(name, "manifest")}
        assert shards.repair(committed, problems) == []
        assert shards.verify(committed) == []


# Hostile bytes


record_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
record_objects = st.fixed_dictionaries(
    {},
    optional={item.name: record_values for item in dataclasses.fields(shards.Commit)} | {"more": record_values},
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=60), record_objects.map(json.dumps).map(str.encode)))
def test_a_hostile_record_is_a_commit_of_its_key_or_refused(data: bytes) -> None:
    try:
        record = parse(Run("/nowhere"), PLAN[0], data)
    except DamagedData:
        return
    assert record.key == PLAN[0]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_hostile_shard_is_whole_or_refused(data: st.DataObject) -> None:
    whole = parquet.to_parquet(make(0).cast(SCORES).replace_schema_metadata({"raydr.fingerprint": FINGERPRINT}))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(whole), data.draw(st.integers(0, len(whole)))]))
    try:
        rows, fingerprint, _ = parquet.inspect(bytes(damaged[:end]))
    except parquet.UNREADABLE:
        return
    assert isinstance(fingerprint, str)
    assert rows >= 0
