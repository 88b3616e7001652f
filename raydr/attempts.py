"""Starts of a shard, as their labels in `_attempts` tell them, and which of them ended with their process."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """One start of a shard; `session` is one driver's stage, `token` one call in one process."""

    session: str
    ticket: int
    node: str
    token: str

    def label(self) -> str:
        return f"{self.session}.{self.ticket}.{self.node}.{self.token}"


def attempts(labels: list[str]) -> list[Attempt]:
    """The starts of a shard that count, in order: those lost with their node are noted as `waived.TOKEN`."""
    waived = {label.removeprefix("waived.") for label in labels if label.startswith("waived.")}
    found = []
    for label in labels:
        parts = label.split(".")
        if len(parts) == 4 and parts[1].isdecimal() and parts[3] not in waived:
            found.append(Attempt(parts[0], int(parts[1]), parts[2], parts[3]))
    return found


def scorings(labels: list[str]) -> list[Attempt]:
    """The starts of scoring a shard in a pool of its own, that count; labelled `scoring.SESSION.NODE.TOKEN`."""
    waived = {label.removeprefix("waived.") for label in labels if label.startswith("waived.")}
    parts = [label.split(".") for label in labels if label.startswith("scoring.")]
    return [Attempt(part[1], 0, *part[2:]) for part in parts if len(part) == 4 and part[3] not in waived]


def crashed(tries: list[Attempt], session: str = "") -> list[Attempt]:
    """Those of a shard's starts that ended with their process.

    The last start of every session but `session`, the present one, is none: it ended with its driver, or not at all.
    """
    last = {item.session: item for item in tries}
    return [item for item in tries if item is not last[item.session] or item.session == session]
