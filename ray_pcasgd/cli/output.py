"""What every command prints through, a running run or not: lenient output, and tables."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class LenientOutput:
    """Standard output on which a full disk costs lines, and not the run."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write as far as that is possible."""
        with _but_for_a_broken_pipe():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush as far as that is possible."""
        with _but_for_a_broken_pipe():
            self._file.flush()


@contextmanager
def _but_for_a_broken_pipe() -> Iterator[None]:
    """Pass over errors, except a broken pipe, which ends the program as usual."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


def print_table(rows: Sequence[Mapping[str, str]], console: Console) -> None:
    """Print rows as a table, or as aligned plain text where the console is no terminal; the first column is names."""
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    cells = [[row.get(heading, "") for heading in headings] for row in rows]
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, heading in enumerate(headings):
            table.add_column(Text(heading), justify="right" if place else "left", vertical="bottom")
        for line in cells:
            table.add_row(*map(Text, line))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for line in [headings, *cells]:
        aligned = [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        console.print("  ".join(aligned).rstrip(), markup=False, highlight=False, soft_wrap=True)
