"""`raydr audit OUT` and the data set card: what is wrong with `real`, and where it comes from. Needs no Ray session.

report/audit.json, report/audit.html, report/dataset-card.json, report/dataset-card.md
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, shards, terminal
from raydr.cluster import source_record
from raydr.cluster.pictures import Pictures, columns_of, proposed
from raydr.errors import MissingInput
from raydr.fundus import audit_page, card
from raydr.fundus.audit import Audit, audit
from raydr.storage import Run

COLUMNS = [name for name in schema.REAL.names if name not in ("image", "lesions")]


def run(out: str | Run) -> Audit:
    """Audit `real`, write the findings and print them. Raises MissingInput where there is nothing to look at."""
    target = out if isinstance(out, Run) else Run(out)
    if not shards.commits(target, "real"):
        raise MissingInput(f"{target.url} holds no photographs: run `raydr ingest` first, or check --out")
    table = columns_of(target, "real", schema.REAL, COLUMNS)
    pictures = Pictures(target, dict(zip(table["image_id"].to_pylist(), table["shard"].to_pylist(), strict=True)))
    with terminal.bar("audit", 1, "pictures") as bar:
        ids = table["image_id"].to_pylist()
        look = proposed(table["sha256"].to_pylist(), table["phash"].to_pylist())
        pictures.fetch([ids[index] for index in look], lambda done, total: bar.to(done, "fetched", total=total))
        found = audit(
            table.drop_columns(["shard"]),
            pictures,
            lambda event: bar.to(event["done"], event["what"], total=event["total"]),
        )
        page = audit_page.page(found, pictures, title=f"Audit of {target.url}")
    target.replace_json("report/audit.json", found.to_json())
    target.replace("report/audit.html", page.encode())
    write_card(target, found)
    show(found)
    return found


def show(found: Audit) -> None:
    """Print the findings as tables, leaks and warnings as sentences."""
    terminal.table("Findings", ["what", "count"], [[name, str(count)] for name, count in found.counts.items()])
    rows = [[f"{b.dataset} {b.split}", *map(str, b.counts), str(b.num_ungraded)] for b in found.balance]
    terminal.table("Photographs by grade", ["data set and split", "0", "1", "2", "3", "4", "none"], rows)
    shortcuts = [
        [f"{s.dataset}: {s.feature}", s.task, f"{s.balanced_accuracy:.2f}", f"{s.chance:.2f}", "yes" if s.found else ""]
        for s in found.shortcuts
    ]
    if shortcuts:
        terminal.table("What predicts the grade alone", ["feature", "predicts", "score", "chance", "found"], shortcuts)
    for sentence in [*found.leaks[:20], *found.warnings[:20]]:
        terminal.note(sentence)
    more = max(0, len(found.leaks) - 20) + max(0, len(found.warnings) - 20)
    if more:
        terminal.note(f"and {more} more, in audit.json")


def write_card(target: Run, found: Audit | None = None) -> dict[str, Any]:
    """Write the data set card of the run and return it."""
    columns = ["dataset", "split", "grade", "gradable", "patient_id", "stratum"]
    real = shards.read(target, "real", schema.REAL, columns)
    quarantine = pa.Table.from_pylist(shards.quarantined(target, "real"), schema=schema.QUARANTINE)
    settled = source_record.sources(target)
    sources = [
        card.Source(s.reader, s.path, s.dataset, s.role, s.num_listed, s.num_rejected)
        for s in sorted(settled, key=lambda source: source.dataset)
    ]
    phantoms = real.filter(pc.equal(real["stratum"], "phantom"))["dataset"].to_pylist()
    sources += [card.Source("phantom", "", name, None, phantoms.count(name), 0) for name in sorted(set(phantoms))]
    written = card.card(real, quarantine, sources, found)
    target.replace_json("report/dataset-card.json", written)
    target.replace("report/dataset-card.md", card.markdown(written).encode())
    return written
