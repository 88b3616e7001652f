"""Which rows a training set holds: real training photographs and the synthetic ones of a band.

    choice = choose(Run("out"), Request(band=(0.7, 0.9), ratio=1.0, grades=(1, 3)), fold=None)

Shards of other generators and grades are never opened, of the rest five columns are read and none of them is
the image: 100,000 samples are chosen from in less than a second. `trainset.write` then fetches what was chosen.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydr import lineage, schema, selection, shards
from raydr.arms import Arm
from raydr.errors import MissingInput, UserError, require
from raydr.grades import GRADES
from raydr.ledger import damaged
from raydr.parquet import schema_hash
from raydr.storage import Run

REAL_COLUMNS = ["image_id", "dataset", "split", "fold", "patient_id", "grade", "sha256"]
SAMPLE_COLUMNS = ["index", "blank", "valid_fundus", "nearest_distance", "score"]


@dataclass(frozen=True)
class Request:
    """What is wanted."""

    # Score band [low, high].
    band: tuple[float, float]
    # N = round(ratio (max_h n(h) - n(g))) images are added to grade g: 1 balances.
    ratio: float
    grades: tuple[int, ...]
    # Kind of generator: plain, ecc, or another that the run has.
    kind: str = "plain"
    # Generators to take from; empty = the one that there is of each grade.
    generators: tuple[str, ...] = ()
    # Take scores from scores/{ensemble_id} (`raydr rescore`) instead of those made with the images.
    ensemble_id: str | None = None

    def __post_init__(self) -> None:
        low, high = self.band
        require(0 <= low < high <= 1, f"--band must satisfy 0 <= LOW < HIGH <= 1, not {low:g} {high:g}")
        require(self.ratio > 0, f"--ratio must be above 0, not {self.ratio:g}: 0 adds nothing")
        require(len(self.grades) > 0 and set(self.grades) <= set(GRADES), "--grades takes grades from 0 to 4")


@dataclass(frozen=True)
class Count:
    """One grade of the training set, in images."""

    grade: int
    num_real: int
    num_wanted: int
    num_scored: int  # made and scored by the generators chosen from
    num_in_band: int
    num_memorised: int  # in the band, and too near to a photograph that the generator saw
    num_unusable: int  # in the band, and blank or no fundus photograph
    num_added: int

    @property
    def shortage(self) -> int:
        return self.num_wanted - self.num_added


@dataclass(frozen=True)
class Choice:
    """Rows to export; both tables have a column `shard`, the key of the shard that holds the row's image."""

    request: Request
    # image_id, dataset, split, fold, patient_id, grade, sha256, shard
    real: pa.Table
    # sample_id, generator_id, grade, index, nearest_distance, score, shard
    synthetic: pa.Table
    counts: tuple[Count, ...]
    # {generator_id: RMS distance below which its samples count as memorised; None = never measured}
    generators: dict[str, float | None]


def choose(run: Run, request: Request, fold: int | None) -> Choice:
    """The training rows of `run`'s photographs for the evaluated `fold`, and samples as `request` says.

    Samples are taken in the order of their indices, as every arm of a sweep does. Raises MissingInput where there
    are no photographs, samples or scores, UserError where several generators could be meant or no sample is left.
    """
    real = _training_photographs(run, fold)
    real_counts = selection.counts_of(np.asarray(real["grade"]))
    wanted = selection.wanted(real_counts, request.ratio, request.grades)
    done = shards.commits(run, "synthetic")
    if not done:
        raise MissingInput(f"{run.url} holds no synthetic images: run `raydr synthesize` first, or check --out")
    thresholds = _generators(run, request, done)
    names = {key: name_of(key) for key in done}
    mine = {key: done[key] for key, (name, grade) in names.items() if name in thresholds and grade in request.grades}
    samples = _candidates(run, request, mine)
    fundus = selection.usable(samples)
    good = np.zeros(samples.num_rows, bool)
    generator = np.asarray(samples["generator_id"].to_pylist(), dtype=object)
    for name, threshold in thresholds.items():
        good |= (generator == name) & selection.usable(samples, threshold)
    grade_of, arm = np.asarray(samples["grade"]), Arm(request.kind, band=request.band)
    counts, rows = [], [np.zeros(0, np.int64)]
    for grade in GRADES:
        here = grade_of == grade
        taken = np.zeros(0, np.int64)
        if wanted[grade]:
            taken = selection.supply(arm, grade, request.band, real, samples, good, 0)[1][: wanted[grade]]
        rows.append(taken)
        counts.append(
            Count(
                grade=grade,
                num_real=int(real_counts[grade]),
                num_wanted=int(wanted[grade]),
                num_scored=sum(record.rows for key, record in mine.items() if names[key][1] == grade),
                num_in_band=int(here.sum()),
                num_memorised=int((here & fundus & ~good).sum()),
                num_unusable=int((here & ~fundus).sum()),
                num_added=len(taken),
            )
        )
    found = samples.take(np.concatenate(rows))
    if not found.num_rows:
        raise UserError(_nothing(run, request, counts))
    ids = [
        lineage.sample_id(name, grade, index)
        for name, grade, index in zip(*(found[c].to_pylist() for c in ("generator_id", "grade", "index")), strict=True)
    ]
    kept = ["generator_id", "grade", "index", "nearest_distance", "score", "shard"]
    found = found.select(kept).add_column(0, "sample_id", pa.array(ids, pa.string()))
    used = {name: thresholds[name] for name in sorted(set(found["generator_id"].to_pylist()))}
    return Choice(request, real, found, tuple(counts), used)


def name_of(key: str) -> tuple[str, int]:
    """(generator id, grade) of the shard `synthetic/{generator_id}/g{grade}-{number}.parquet`."""
    _, generator_id, name = key.split("/")
    return generator_id, int(name.split("-")[0].removeprefix("g"))


def _nothing(run: Run, request: Request, counts: list[Count]) -> str:
    grades = ", ".join(map(str, request.grades))
    if not any(count.num_wanted for count in counts):
        return f"Nothing is wanted for grades {grades}: they are the most frequent ones already; name rarer --grades"
    low, high = request.band
    dropped = sum(count.num_memorised + count.num_unusable for count in counts)
    made = sum(count.num_scored for count in counts)
    return (
        f"None of {made} {request.kind} images of grades {grades} in {run.url} can be used with a score in "
        f"[{low:g}, {high:g}] ({dropped} there are memorised, blank or no fundus): widen --band, or synthesize more"
    )


def _training_photographs(run: Run, fold: int | None) -> pa.Table:
    source = shards.dataset(run, "real", schema.REAL)
    splits = ["train"] if fold is None else ["train", "validation"]
    table = source.to_table(columns=[*REAL_COLUMNS, "__filename"], filter=pc.field("split").isin(splits))
    # Paths to keys of the run.
    keys = pc.utf8_slice_codeunits(table["__filename"], start=len(run.filesystem()[1]) + 1)
    table = table.drop_columns("__filename").append_column("shard", keys)
    rows = selection.part_of(table, "train", fold)
    if not len(rows):
        raise MissingInput(f"{run.url} has no graded training photograph: run `raydr ingest` first")
    return table.take(rows)


def _generators(run: Run, request: Request, done: Mapping[str, shards.Commit]) -> dict[str, float | None]:
    """{generator id: memorisation threshold} of those to take from: one for each grade."""
    found: dict[str, set[int]] = {}
    thresholds: dict[str, float | None] = {}
    for key, record in done.items():
        name, grade = name_of(key)
        found.setdefault(name, set()).add(grade)
        mine = [value for value in (thresholds.get(name), record.extra.get("threshold")) if value is not None]
        # The strictest, should shards of one generator have met gates of different photographs.
        thresholds[name] = max(mine, default=None)
    unknown = [name for name in request.generators if name not in found]
    if unknown:
        raise UserError(f"{run.url} holds no image of {unknown[0]}: it has those of {', '.join(found)}")
    other = [name for name in request.generators if name.split("-")[0] != request.kind]
    if other:
        raise UserError(f"{other[0]} is no generator of --kind {request.kind}: add --kind {other[0].split('-')[0]}")
    names = request.generators or tuple(name for name in found if name.split("-")[0] == request.kind)
    if not names:
        kinds = ", ".join(sorted({name.split("-")[0] for name in found}))
        raise UserError(f"{run.url} has no images of --kind {request.kind}: it has {kinds}")
    for grade in request.grades:
        able = [name for name in names if grade in found[name]]
        if len(able) > 1:
            raise UserError(f"Grade {grade} has images of {' and '.join(able)}: pick one with --generator")
    return {name: thresholds[name] for name in names}


def _candidates(run: Run, request: Request, mine: Mapping[str, shards.Commit]) -> pa.Table:
    """Samples in the band: SAMPLE_COLUMNS, generator_id, kind, grade and shard."""
    # As `selection` compares: in float32, or a stored 0.7 would fall out of [0.7, 0.9].
    low, high = (float(np.float32(value)) for value in request.band)
    if request.ensemble_id is None:
        found = columns_of(run, mine, schema.SYNTHETIC, SAMPLE_COLUMNS, ("score", low, high))
    else:
        found = _rescored(run, request.ensemble_id, mine, low, high)
    table, keys = found
    score = np.asarray(table["score"])
    table = table.append_column("shard", keys).filter(pa.array((score >= low) & (score <= high)))
    keys = table["shard"].combine_chunks()
    named = [name_of(key) for key in keys.dictionary.to_pylist()]
    columns = {
        "generator_id": pa.array([name for name, _ in named], pa.string()),
        "kind": pa.array([name.split("-")[0] for name, _ in named], pa.string()),
        "grade": pa.array([grade for _, grade in named], pa.int8()),
    }
    for column, values in columns.items():
        table = table.append_column(column, values.take(keys.indices))
    return table.set_column(table.column_names.index("shard"), "shard", keys.cast(pa.string()))


def columns_of(
    run: Run,
    records: Mapping[str, shards.Commit],
    table_schema: pa.Schema,
    columns: Sequence[str],
    within: tuple[str, float, float] | None = None,
) -> tuple[pa.Table, pa.DictionaryArray]:
    """(`columns` of these shards, the shard's key of each row).

    `within` = (column, low, high): a shard whose statistics say that none of its rows lies there is passed over.
    A plain loop over files, since a pyarrow data set takes 1.6 times as long over 1,563 shards of 64 rows.
    """
    filesystem, root = run.filesystem()
    expected = schema_hash(table_schema)
    kinds = pa.schema([table_schema.field(name) for name in columns])

    def one(key: str) -> pa.Table:
        if records[key].schema != expected:
            raise UserError(f"{key} in {run.url} has the columns of another version of raydr: read it with that")
        try:
            with filesystem.open_input_file(f"{root}/{key}") as handle:
                file = pq.ParquetFile(handle, pre_buffer=run.local is None, page_checksum_verification=True)
                if within and _outside(file.metadata, *within):
                    return kinds.empty_table()
                return file.read(columns=list(columns), use_threads=False).select(columns)
        except (OSError, pa.ArrowException) as error:
            raise damaged(run, key, f"is damaged or missing ({str(error).splitlines()[0][:200]})") from error

    # pyarrow frees the interpreter lock; 32 requests at a time hide a bucket's latency.
    with ThreadPoolExecutor(4 if run.local is not None else 32) as pool:
        tables = list(pool.map(one, records))
    rows = np.repeat(np.arange(len(tables), dtype=np.int32), [table.num_rows for table in tables])
    keys = pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), pa.array(list(records), pa.string()))
    return pa.concat_tables([kinds.empty_table(), *(table.cast(kinds) for table in tables)]), keys


def _outside(metadata: pq.FileMetaData, column: str, low: float, high: float) -> bool:
    # A shard is one row group; from the last leaf on, since scores stand behind the wide columns.
    group = metadata.row_group(0)
    for leaf in reversed(range(group.num_columns)):
        chunk = group.column(leaf)
        if chunk.path_in_schema == column:
            found = chunk.statistics
            return found is not None and found.has_min_max and (found.max < low or found.min > high)
    raise AssertionError(column)


def _rescored(
    run: Run, ensemble_id: str, mine: Mapping[str, shards.Commit], low: float, high: float
) -> tuple[pa.Table, pa.DictionaryArray]:
    """SAMPLE_COLUMNS with another ensemble's score, of shards where it lies in the band; and their keys."""
    prefix = f"scores/{ensemble_id}"
    judged = shards.commits(run, prefix)
    missing = [key for key in mine if lineage.scores_key(ensemble_id, key) not in judged]
    if missing:
        raise MissingInput(
            f"{prefix} in {run.url} lacks {len(missing)} of {len(mine)} shards of images: run `raydr rescore` first"
        )
    theirs = {lineage.scores_key(ensemble_id, key): judged[lineage.scores_key(ensemble_id, key)] for key in mine}
    scores, _ = columns_of(run, theirs, schema.SCORES, ["sample_id", "score"], ("score", low, high))
    others = [name for name in SAMPLE_COLUMNS if name != "score"]
    table, keys = columns_of(run, mine, schema.SYNTHETIC, ["sample_id", *others])
    where = pc.index_in(table["sample_id"], value_set=scores["sample_id"].combine_chunks()).combine_chunks()
    score = pc.fill_null(scores["score"].combine_chunks().take(where), np.nan)
    return table.append_column("score", score).select(SAMPLE_COLUMNS), keys
