"""The quarantine of one source: notes below quarantine/real/ whose key starts with the data set's name."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from raydr import shards, terminal
from raydr.errors import BudgetExhausted
from raydr.fundus.readers.rows import Rejected
from raydr.fundus.settle import tally
from raydr.identity import fingerprint
from raydr.ledger import QUARANTINE
from raydr.storage import Run

TABLE = "real"


def note(run: Run, dataset: str, entries: Iterable[Rejected]) -> None:
    """Store one note an entry; entries of one name (a label row in two lists) are numbered."""
    seen: Counter[str] = Counter()
    numbered = []
    for entry in entries:
        seen[entry.name] += 1
        key = f"{dataset}/{entry.name}" + (f" #{seen[entry.name]}" if seen[entry.name] > 1 else "")
        numbered.append((key, entry.reason, entry.detail))
    # 16: each note is a file of its own, and thousands of fsyncs or requests wait better side by side.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda entry: shards.quarantine(run, TABLE, *entry), numbered))


def noted(run: Run, dataset: str) -> list[dict[str, str]]:
    return [entry for entry in shards.quarantined(run, TABLE) if entry["key"].startswith(f"{dataset}/")]


def forget(run: Run, dataset: str) -> None:
    """Delete the source's notes: it was changed before any of it was in `real`."""
    for entry in noted(run, dataset):
        run.delete(f"{QUARANTINE}/{TABLE}/{fingerprint(TABLE, entry['key'])}.json")


def show(dataset: str, notes: list[dict[str, str]]) -> None:
    """Print the reasons with their counts and an example each."""
    example: dict[str, str] = {}
    for entry in notes:
        example.setdefault(entry["reason"], entry["key"])
    rows = [
        [reason, str(count), example[reason][-60:]]
        for reason, count in tally([entry["reason"] for entry in notes]).items()
    ]
    if rows:
        terminal.table(f"{dataset}: set aside", ["reason", "count", "for example"], rows)


def check_share(run: Run, dataset: str, num_unusable: int, num_entries: int, limit: float) -> None:
    """Raise BudgetExhausted where more than the share `limit` of a source's entries cannot be used."""
    if num_unusable <= limit * num_entries:
        return
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in tally([n["reason"] for n in noted(run, dataset)]).items()
    )
    raise BudgetExhausted(
        f"{num_unusable} of {num_entries} entries of {dataset} ({num_unusable / num_entries:.1%}) cannot be used, over "
        f"--max-quarantine {limit:.1%} ({reasons}): mend the source or raise the limit, then run the same command "
        f"again; {run.url}/{QUARANTINE}/{TABLE} names each"
    )
