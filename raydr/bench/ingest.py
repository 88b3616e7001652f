"""Ingest: Ray Data against a multiprocessing pool, JPEG decoding with and without the decoder's own down-scaling."""

import io
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raydr import terminal
from raydr.bench import workload
from raydr.bench.fits import fit, median
from raydr.bench.results import Measured, Peer, measured
from raydr.bench.rig import Rig
from raydr.cluster import ingest
from raydr.cluster.ingest_source import Request, add_source, look
from raydr.storage import Run

DECODE_SIZE, DECODE_PX = (4000, 3000), 1024


def run(bench: Rig) -> None:
    phantoms(bench)
    photographs(bench)
    idle(bench)
    decoding(bench)


def phantoms(bench: Rig) -> None:
    """Drawing phantoms: Ray Data against a multiprocessing pool that draws and commits the same shards."""
    num_shards, processes = bench.sizes.phantom_shards, bench.cpus

    def pipeline(number: int) -> Measured:
        target = bench.fresh("phantoms-pipeline")
        work = workload.phantoms(num_shards)
        return bench.pipeline(lambda: ingest.run(work, target), workload.commits(target, "real"))

    def bare(number: int) -> Measured:
        target = bench.fresh("phantoms-bare")
        arguments = {"url": target.url, "num_shards": num_shards, "processes": processes}
        return bench.bare("phantoms", workload.commits(target, "real"), arguments)

    # Ray's workers start and import with the first tasks; they stay for the runs that are measured.
    ingest.run(workload.phantoms(2 * processes), bench.fresh("phantoms-pipeline"))
    bench.pair("ingest, phantoms", "images", pipeline, bare, bar=0.9)


def photographs(bench: Rig) -> None:
    """A folder of JPEG files: both passes of Ray Data against one pass of a multiprocessing pool.

    Shards of the first pass vanish in the second, so the pipeline's line goes through whole runs of two sizes; the
    jitter of two starts falls on the photographs between them, of which there are 1,792.
    """
    sizes, processes = bench.sizes.photographs, bench.cpus
    with terminal.bar("photographs", sizes[1], "files drawn"):
        small = workload.write_photographs(bench.folder / "photographs-small", sizes[0])
        folders = [small, workload.write_photographs(bench.folder / "photographs-large", sizes[1], known=small)]

    def pipeline(number: int) -> Measured:
        runs = []
        for folder in folders:
            target = bench.fresh("photographs-pipeline")
            runs.append(bench.record(partial(add_folder, target, folder)))
        ends = list(zip(map(float, sizes), runs, strict=True))
        found = measured(runs[-1], [(0.0, 0.0), (float(sizes[-1]), runs[-1].seconds)])
        line, cpu = (fit([(n, getattr(r, name)) for n, r in ends]) for name in ("seconds", "cpu_seconds"))
        ours.append(1 / line.each)
        return Measured(line, cpu, found.total_seconds, max(r.peak_bytes for r in runs), found.others, found.load)

    def bare(number: int) -> Measured:
        target = bench.fresh("photographs-bare")
        arguments = {"url": target.url, "folder": str(folders[-1]), "processes": processes}
        found = bench.bare("photographs", workload.commits(target, "real"), arguments)
        # The peer runs here, next to the pair that it is compared with.
        target = bench.fresh("photographs-loader")
        theirs.append(1 / bench.bare("loader", workload.progress(target), arguments | {"url": target.url}).seconds.each)
        return found

    ours: list[float] = []
    theirs: list[float] = []
    # Imports of the driver's own, of which scikit-learn is one, must not fall on the smaller of two sizes.
    add_folder(bench.fresh("photographs-pipeline"), folders[0])
    note = "the pipeline settles duplicates and writes twice (staging, real); the bare loop writes once"
    bench.pair("ingest, photographs", "images", pipeline, bare, bar=0.9, note=note)
    note = "decodes and crops in worker processes; hashes and writes nothing"
    ratios = tuple(mine / other for mine, other in zip(ours, theirs, strict=True))
    bench.peer(Peer("torch DataLoader", "ingest", "images", median(theirs), median(ours), ratios, note))


def idle(bench: Rig, seconds: float = 10.0) -> None:
    """What Ray itself takes (its dashboard above all) while nothing is asked of it, which is while a bare loop runs."""
    found = bench.record(partial(time.sleep, seconds))
    bench.result.add("idle Ray", found.cpu_seconds / found.seconds, "cores", "beside the bare loops too")


def add_folder(target: Run, folder: Path, px: int = workload.PREPARED_PX) -> dict[str, Any]:
    """`raydr ingest folder FOLDER --px PX`, inside the session that is there."""
    recipe = workload.sources(px)
    return add_source(recipe, target, look(recipe, target, Request("folder", str(folder))))


def decoding(bench: Rig) -> None:
    """12-megapixel JPEG files to 1024 px: scaled by the decoder, against decoded whole and then resized."""
    from raydr.fundus.preprocess import decode_photograph

    files = [workload.jpeg(index, DECODE_SIZE) for index in range(bench.sizes.jpegs)]

    def resized(pixels: np.ndarray) -> None:
        # The same filter for both arms, without Pillow's own shortcut (reducing_gap), which one of them would not need.
        Image.fromarray(pixels).resize((DECODE_PX, DECODE_PX * 3 // 4), Image.Resampling.LANCZOS)

    ours, theirs = [], []
    for data in files:  # neighbours, so that each ratio is of one moment
        start = time.perf_counter()
        resized(decode_photograph(data, DECODE_PX))
        middle = time.perf_counter()
        resized(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
    ratios = tuple(b / a for a, b in zip(ours, theirs, strict=True))
    note = f"{DECODE_SIZE[0]} x {DECODE_SIZE[1]} JPEG to {DECODE_PX} px, one thread; bar 2"
    bench.peer(Peer("full decode + resize", "ingest", "files", 1 / median(theirs), 1 / median(ours), ratios, note))
