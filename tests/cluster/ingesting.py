"""A small cluster and small folders of photographs, and their ingest through the pipeline's entry."""

import contextlib
from pathlib import Path

import ray
from fundus.trees import photograph, write

from raydr import schema, shards
from raydr.cluster import pipeline
from raydr.cluster.ingest_source import Request
from raydr.config import Recipe
from raydr.sources import Ingest
from raydr.storage import Run

RECIPE = Recipe(name="test", ingest=Ingest(source="ddr", px=64, shard_size=16, max_quarantine=0.9))


@contextlib.contextmanager
def small_cluster(ray_temp: Path):
    ray.init(
        address="local", num_cpus=2, object_store_memory=150_000_000, include_dashboard=False, namespace="raydr",
        _temp_dir=str(ray_temp), log_to_driver=False,
    )  # fmt: skip
    yield
    ray.shutdown()


def add(out, reader: str, path, recipe: Recipe = RECIPE, **request) -> dict:
    return pipeline.add_source(recipe, str(out), Request(reader, str(path), **request))["summary"]


def rows_of(out) -> list[dict]:
    return shards.read(Run(str(out)), "real", schema.REAL).to_pylist()


def few(root: Path, per_grade: int = 4, first: int = 0) -> Path:
    """A folder of its own layout: train/{grade}/{k}.png."""
    return write(
        root,
        {
            f"train/{grade}/{k}.png": photograph(first + grade * per_grade + k, "PNG")
            for grade in range(5)
            for k in range(per_grade)
        },
    )
