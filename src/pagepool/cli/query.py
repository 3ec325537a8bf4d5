# SPDX-License-Identifier: MIT
"""``--sql``: a DuckDB query over live frames, window after window, in a thread of its own.

The table is called ``packets``; DuckDB reads the frames where they lie. Invariant: a query that cannot run is refused
before the first frame comes, with DuckDB's own words; what it reads at all is known by then, and only that is computed.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from pagepool.cli.failure import CannotError
from pagepool.cli.window import Window
from pagepool.integrations.arrow import ALL_COLUMNS

__all__ = ["Query", "QueryFigures", "WindowResult"]

_MOST_ROWS = 1000
_JOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What the query said of one window.

    Attributes
    ----------
    number : int
        Of the window, from 1.
    seconds : float
        From the window's start to its result.
    frames, missed : int
        In the window; in none since the last result, because they came too fast or between two windows.
    columns : tuple of str
    rows : list of tuple
        At most 1000.
    has_more : bool
        There were more rows.
    """

    number: int
    seconds: float
    frames: int
    missed: int
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    has_more: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; bytes in hexadecimal, times in ISO 8601."""
        return {
            "type": "window",
            "window": self.number,
            "seconds": round(self.seconds, 3),
            "frames": self.frames,
            "missed": self.missed,
            "columns": list(self.columns),
            "rows": [[_plain(value) for value in row] for row in self.rows],
            "has-more-rows": self.has_more,
        }


class QueryFigures(NamedTuple):
    """Windows; frames in them; frames received that were in none."""

    windows: int
    frames: int
    missed: int


class Query:
    """A query, checked.

    Parameters
    ----------
    sql : str
        One SELECT over ``packets``.
    window : Window
        Gets the columns that the query reads.

    Attributes
    ----------
    window : Window
    windows : int
        Results so far.
    failure : BaseException or None
        What ended the thread.

    Raises
    ------
    CannotError
        DuckDB is not installed, or refuses the query.
    """

    def __init__(self, sql: str, window: Window) -> None:
        try:
            import duckdb
        except ImportError:
            raise CannotError("--sql needs DuckDB: pip install 'pagepool[sql]'") from None
        self._sql = sql
        self.window = window
        self._db = duckdb.connect()
        self._error = duckdb.Error
        self.windows = 0
        self.failure: BaseException | None = None
        self._results: deque[WindowResult] = deque(maxlen=100)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="query", daemon=True)
        try:
            self._check(duckdb)
        except duckdb.Error as error:
            raise CannotError(f"--sql: {_said(error)}") from None

    def start(self) -> None:
        """Open the first window."""
        self._thread.start()

    def stop(self) -> list[WindowResult]:
        """End the window in hand, and return what results there are still. Idempotent."""
        self._stop.set()
        self.window.end()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                self._db.interrupt()
                self._thread.join()
        self.window.close()
        self._db.close()
        return self.results()

    def results(self) -> list[WindowResult]:
        """Return the results since the last call. Context: one thread."""
        found = []
        while self._results:
            found.append(self._results.popleft())
        return found

    def figures(self) -> QueryFigures:
        """Return what there was in all."""
        return QueryFigures(self.windows, self.window.total, self.window.missed)

    # -- before the first frame ----------------------------------------------------------------------------------------

    def _check(self, duckdb: Any) -> None:
        statements = duckdb.extract_statements(self._sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise CannotError("--sql: it is one SELECT over the table packets")
        asked = self._describe(ALL_COLUMNS)
        plan = json.loads(self._db.execute(f"explain (format json) {self._sql}").fetchall()[0][1])
        if _scans(plan) > 1:  # each of them would see only what the others left
            raise CannotError(
                "--sql: a window goes by once, and this reads packets several times: begin it with "
                '"with p as materialized (select ... from packets)", and read p'
            )
        read = _scanned(plan)
        needed = tuple(name for name in ALL_COLUMNS if name in read) or ("length",)
        try:
            if self._describe(needed) == asked:
                return
        except self._error:  # a column that is named, but that no row of the result depends on
            pass
        self._describe(ALL_COLUMNS)

    def _describe(self, columns: tuple[str, ...]) -> list[Any]:
        self.window.columns = columns
        self._db.register("packets", self.window)
        described: list[Any] = self._db.execute(f"describe {self._sql}").fetchall()
        return described

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            missed = 0
            while not self._stop.is_set():
                start = time.monotonic()
                self.window.open()
                cursor = self._db.execute(self._sql)
                columns = tuple(str(column[0]) for column in cursor.description)
                rows = cursor.fetchmany(_MOST_ROWS + 1)
                while self.window.read_next() is not None:
                    pass  # it has its length, even where the query knew enough before (limit 1)
                window = self.window
                if self.windows and not window.taken and self._stop.is_set():
                    break  # it was ended before it had a frame
                self.windows += 1
                self._results.append(
                    WindowResult(
                        self.windows,
                        time.monotonic() - start,
                        window.taken,
                        window.missed - missed,
                        columns,
                        rows[:_MOST_ROWS],
                        len(rows) > _MOST_ROWS,
                    )
                )
                missed = window.missed
        except BaseException as error:
            self.failure = CannotError(f"--sql: {_said(error)}") if isinstance(error, self._error) else error
            self.window.close()


def _scans(plan: Any) -> int:
    """Return how often a plan reads the table packets, the only one that is an Arrow stream."""
    if isinstance(plan, list):
        return sum(map(_scans, plan))
    return ("ARROW_SCAN" in plan.get("name", "")) + _scans(plan.get("children", []))


def _scanned(plan: Any) -> set[str]:
    """Return the columns that the scans of a plan read."""
    found: set[str] = set()
    if isinstance(plan, list):
        return found.union(*map(_scanned, plan))
    if "SCAN" in plan.get("name", ""):
        columns = plan.get("extra_info", {}).get("Projections", [])
        found.update([columns] if isinstance(columns, str) else columns)
    return found.union(_scanned(plan.get("children", [])))


def _said(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)
