"""The standard streams: there even where they were closed, UTF-8 whatever the locale, and for what must go on whatever
becomes of the terminal, writes that never fail. Bars where a terminal can draw them, and tables that fit it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from hebrew_asr.errors import EnvironmentProblem

if TYPE_CHECKING:
    from rich.table import Table

Item = TypeVar("Item")


class _Lasting(io.FileIO):
    """Writes to a file descriptor. What cannot be written is dropped."""

    def write(self, content: Any, /) -> int:
        """The number of bytes written, or dropped."""
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


class _Closed(io.FileIO):
    """Standard output that was closed: the first write tells, and what follows is dropped, the rest of it included."""

    _is_told = False

    def write(self, content: Any, /) -> int:
        """The number of bytes dropped.

        Raises:
            EnvironmentProblem: the first time.
        """
        if not self._is_told:
            self._is_told = True
            raise EnvironmentProblem("standard output is closed: give it a file, or /dev/null for what nobody reads")
        return memoryview(content).nbytes


def speak_utf8() -> None:
    """File names, texts and what is printed are UTF-8 from here on.

    Where Python chose another encoding (LC_ALL=C with PYTHONUTF8=0, a Hebrew locale of eight bits) it can neither open
    nor print a Hebrew name: it is started again in this process, in its UTF-8 mode. What no UTF-8 can hold, such as a
    file name in another encoding, is printed as ``\\udcf9``. A stream that was closed (``<&-``, ``>&-``) is opened on
    nothing: the next file that is opened would take its number, and get what a library prints. What this program
    prints to a closed standard output is lost, which ends it with an :class:`EnvironmentProblem`.
    """
    _open_closed_streams()
    in_utf8_mode = ["-X", "utf8"]
    if sys.getfilesystemencoding() != "utf-8" and sys.orig_argv[1:3] != in_utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, *in_utf8_mode, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.write_through:
        # PYTHONUNBUFFERED forgets what a full disk refused; a buffer, emptied at each line, has it for give_up_stdout
        sys.stdout = _by_lines(io.FileIO, sys.stdout)


def _open_closed_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: its own
            os.set_inheritable(nothing, True)
            if name == "stdout":
                sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Closed(nothing, mode)), encoding="utf-8")
            else:
                setattr(sys, name, os.fdopen(nothing, mode, encoding="utf-8"))


def give_up_stdout() -> str:
    """``standard output: ``, to begin an error with, where it takes no more; what is left for it is dropped then.

    An empty text where it was not the fault.
    """
    try:
        sys.stdout.flush()
    except (OSError, EnvironmentProblem):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "standard output: "
    return ""


def outlive_the_terminal() -> None:
    """From here on a write to stdout or stderr never fails: an ssh that drops must not end what it started."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(getattr(stream.buffer, "raw", None), _Lasting):
            setattr(sys, name, _by_lines(_Lasting, stream))


def _by_lines(raw: type[io.FileIO], stream: TextIO) -> TextIO:
    """Another stream onto the same file, which writes at the end of each line."""
    stream.flush()
    buffer = io.BufferedWriter(raw(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=True)


def can_redraw(stream: TextIO) -> bool:
    """Whether a bar or a view can stay in place there. rich believes FORCE_COLOR, and would draw into a file."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def tracked(items: Iterable[Item], words: str, total: int | None = None, *, transient: bool = False) -> Iterator[Item]:
    """``items``, with a bar of how many are done on standard error, where it can be drawn."""
    from rich.console import Console
    from rich.progress import track

    shown = {"console": Console(stderr=True), "disable": not can_redraw(sys.stderr), "transient": transient}
    yield from track(items, words, total, **shown)


def print_table(table: Table) -> None:
    """Print a table, or a line a cell where the terminal is too narrow for its words."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(markup=False, emoji=False)  # a run may be called exp[v2]
    if Measurement.get(console, console.options.update(width=10_000), table).minimum <= console.width:
        with console.capture() as shown:  # rich itself ends the process with code 1 where the reader left
            console.print(table)
        print(shown.get(), end="")
        return
    if table.title:
        print(f"{table.title}\n")
    for row in zip(*(column.cells for column in table.columns), strict=True):
        for column, cell in zip(table.columns, row, strict=True):
            if cell:
                print(f"{column.header}: {str(cell).strip()}" if column.header else cell)
        print()
