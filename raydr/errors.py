"""Errors a user can cause. Each one is a single sentence: what is wrong, where, what to do.

`cli.main` catches `UserError` once, prints the sentence and exits 2. Everything else is a bug and keeps
its traceback. Invariants of the code itself are asserted, not raised as these.
"""


class UserError(ValueError):
    """A mistake the user can mend: shown as one sentence, exit code 2, nothing on disk harmed."""


class MissingInput(UserError):
    """A stage was started before the stage it reads from."""


class IdentityMismatch(UserError):
    """The output holds results of another configuration; names the field and both values."""


class DamagedData(UserError):
    """Committed bytes are missing or differ from their commit record."""


class LeakageError(UserError):
    """Something trained or tuned has seen a photograph it is evaluated on."""


class BudgetExhausted(RuntimeError):
    """The budget ended before the quota was met, or too many rows were quarantined: exit code 1."""


class Stopped(RuntimeError):
    """Stopped as asked (`raydr stop`, Ctrl-C) before the stage was complete: exit code 1, the same command resumes."""


def require(condition: bool, sentence: str) -> None:
    """UserError with `sentence` unless `condition` holds; for the checks of configurations."""
    if not condition:
        raise UserError(sentence)
