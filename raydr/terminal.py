"""What a person sees: a header, one progress bar a stage, one line of result a stage, a table at the end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Bar", "Clock", "bar", "console", "escape", "header", "line", "note", "table"]

console = Console(highlight=False, soft_wrap=True)


def header(command: str, recipe: str, out: str) -> None:
    console.print(f"[bold]raydr {command}[/bold]  recipe [cyan]{recipe}[/cyan]  output [cyan]{out}[/cyan]")


def line(stage: str, text: str, seconds: float | None = None) -> None:
    """The one line of result a stage leaves behind."""
    took = f"  [dim]{seconds:6.1f} s[/dim]" if seconds is not None else ""
    console.print(f"  [green]{stage:<11}[/green] {text}{took}")


def note(text: str) -> None:
    console.print(f"  [dim]{text}[/dim]")


class Bar:
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def to(self, completed: float, text: str = "", total: float | None = None) -> None:
        """Set how many are done; `text` stands behind the bar."""
        self._progress.update(self._task, completed=completed, total=total, text=text)


@contextmanager
def bar(stage: str, total: float, unit: str, poll: Callable[[Bar], None] | None = None) -> Iterator[Bar]:
    """A progress bar that vanishes when done; `poll` is called twice a second from a thread of its own."""
    columns = (
        TextColumn("  [blue]{task.description:<11}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn(unit + " [dim]{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Without a terminal (logs, CI) rich would print one line per refresh: say it once instead.
    if not console.is_terminal:
        console.print(f"  {stage}: {total:g} {unit} ...")
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    stop = threading.Event()
    with progress:
        current = Bar(progress, progress.add_task(stage, total=total, text=""))

        def watch() -> None:
            while not stop.wait(0.5):
                assert poll is not None
                poll(current)

        thread = threading.Thread(target=watch, name="raydr-bar", daemon=True) if poll else None
        if thread:
            thread.start()
        try:
            yield current
        finally:
            stop.set()
            if thread:
                thread.join(timeout=5)


def table(title: str, columns: list[str], rows: list[list[str]], caption: str = "") -> None:
    """Print a table; the first column is left-aligned, the others right. Nothing in it is taken for markup."""
    view = Table(title=Text(title), caption=Text(caption) if caption else None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.title_justify = view.caption_justify = "left"
    for k, column in enumerate(columns):
        view.add_column(Text(column), justify="left" if k == 0 else "right")
    for row in rows:
        view.add_row(*map(Text, row))
    console.print(view)


class Clock:
    """Seconds since its making."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start
