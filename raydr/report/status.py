"""What `raydr status` says of the synthetic table: read from commit records, works while a job runs."""

from raydr import shards
from raydr.storage import Run


def rows(target: Run, num_replicates: int) -> list[list[str]]:
    """One row of text per generator and grade: shards' rows, images in band, acceptance, seconds an image."""
    places = [target] if num_replicates == 1 else [target.child(f"replicate-{k}") for k in range(num_replicates)]
    found = []
    for place in places:
        groups: dict[tuple[str, str], list[shards.Commit]] = {}
        for key, record in shards.commits(place, "synthetic").items():
            _, generator_id, name = key.split("/")
            groups.setdefault((generator_id, name.split("-")[0].removeprefix("g")), []).append(record)
        lost = [row["key"] for row in shards.quarantined(place, "synthetic")]
        for (generator_id, grade), records in sorted(groups.items()):
            made = sum(record.rows for record in records)
            accepted = sum(record.extra.get("accepted", 0) for record in records)
            seconds = sum(record.extra.get("seconds", 0.0) for record in records)
            bad = sum(key.startswith(f"synthetic/{generator_id}/g{grade}-") for key in lost)
            found.append(
                [
                    generator_id,
                    grade,
                    str(made),
                    str(accepted),
                    f"{accepted / made:.1%}",
                    f"{seconds / made:.2f}",
                    str(bad),
                ]
            )
    return found
