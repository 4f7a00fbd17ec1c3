"""A progress bar for single commands: nothing for the first two seconds, then rows or share, speed and time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PATIENCE = 2.0


@contextmanager
def row_progress(
    what: str, console: Console, quiet: bool, unit: str = "rows"
) -> Iterator[Callable[[float | None, int], None]]:
    """A function to call with (share done or None, rows so far); it shows a bar once the work takes longer."""
    if quiet or not console.is_terminal:
        yield lambda done, rows: None
        return
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} " + unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(what, total=None, rows=0)
    started = time.monotonic()
    running = False

    def tell(done: float | None, rows: int) -> None:
        nonlocal running
        if not running and time.monotonic() - started > PATIENCE:
            bar.start()
            running = True
        bar.update(task, rows=rows, total=None if done is None else 1.0, completed=done or 0.0)

    try:
        yield tell
    finally:
        if running:
            bar.stop()
