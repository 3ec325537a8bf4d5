# SPDX-License-Identifier: MIT
"""``--sql`` and ``--write FILE.parquet``: what they show and refuse; memory is bounded and comes home."""

from __future__ import annotations

import datetime
import decimal
import gc
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cli_live import sample
from xdp_doubles import RecordingQueue

from pagepool import PagePool
from pagepool.cli.failure import CannotError
from pagepool.cli.live import LiveReport
from pagepool.cli.main import main
from pagepool.cli.meter import rates
from pagepool.cli.query import Query, WindowResult
from pagepool.cli.result_table import headline, table_lines
from pagepool.cli.window import Window, parse_window
from pagepool.cli.wire import Loopback, WireOptions
from pagepool.integrations.arrow import ALL_COLUMNS

LOOPBACK = ["rx", "--loopback", "--seconds"]


@pytest.fixture
def pool() -> Iterator[Any]:
    with PagePool(limit=256) as pool:
        yield pool
        gc.collect()
        assert pool.lent == 0


def offer(window: Window, pool: Any, n: int) -> None:
    with RecordingQueue(pool).batch([b"x" * 60] * n) as batch:
        window.write(0, batch)


# -- the window --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "length"),
    [("1s", (1.0, None)), ("500ms", (0.5, None)), ("2m", (120.0, None)), ("1.5s", (1.5, None)), ("99", (None, 99))],
)
def test_a_window_is_a_time_or_a_number_of_frames(text: str, length: tuple[float | None, int | None]) -> None:
    assert parse_window(text) == length


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "1h", "s", "1.5", "one", "1..5s", "nans", "infs", "9" * 5000])
def test_and_nothing_else(text: str) -> None:
    with pytest.raises(CannotError, match="--window"):
        parse_window(text)


def test_frames_are_in_one_window_or_missed(pool: Any) -> None:
    window = Window(None, 64, shared=False)
    window.columns = ("length",)
    offer(window, pool, 10)  # not open yet
    window.open()
    offer(window, pool, 40)
    offer(window, pool, 40)  # the last batch may pass the number
    offer(window, pool, 10)
    assert (window.taken, window.missed, window.total) == (80, 20, 80)
    assert [len(batch) for batch in iter(window.read_next, None)] == [40, 40]
    window.open()
    offer(window, pool, 5)
    window.close()
    assert window.read_next() is None
    window.open()
    offer(window, pool, 5)
    assert (window.taken, window.missed, window.total) == (0, 25, 85)


def test_a_window_of_time_ends(pool: Any) -> None:
    window = Window(0.05, None, shared=False)
    window.open()
    offer(window, pool, 3)
    assert len(window.read_next() or ()) == 3
    assert window.read_next() is None
    offer(window, pool, 3)
    assert window.missed == 3


def test_with_payload_a_window_takes_half_of_the_pool_at_most(pool: Any) -> None:
    window = Window(60, None, shared=False)
    window.columns = ("payload",)
    window.open()
    for _ in range(20):
        offer(window, pool, 20)
    assert (window.taken, pool.lent, window.missed) == (120, 120, 280)
    window.close()
    assert pool.lent == 0


def test_without_payload_it_holds_no_page_and_is_bounded_all_the_same(pool: Any) -> None:
    window = Window(60, None, shared=False)
    window.columns = ("length",)
    window.open()
    for _ in range(300):
        offer(window, pool, 250)
    assert pool.lent == 0
    assert window.taken == 65_500
    assert window.missed == 300 * 250 - 65_500


def test_shared_frames_have_their_verdict_and_are_in_the_window(pool: Any) -> None:
    queue = RecordingQueue(pool)
    window = Window(60, None, shared=True)
    window.columns = ("payload",)
    window.open()
    with queue.batch([b"y" * 60] * 4) as batch:
        window.write(0, batch)
        batch.tx()
    assert len(queue.sent) == window.taken == pool.lent == 4
    window.close()


# -- the query ---------------------------------------------------------------------------------------------------------


@pytest.mark.needs_duckdb
@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("select count(*) from packets", {"timestamp"}),
        ("select src_ip, sum(length) from packets where dst_port = 53 group by 1", {"length", "src_ip", "dst_port"}),
        ("select p.vlan from (select * from packets) p", {"vlan"}),
        ("select * from packets", set(ALL_COLUMNS)),
        ("from packets", set(ALL_COLUMNS)),
        ("select src_ip from packets where false", set(ALL_COLUMNS)),
        ("select packets from packets", set(ALL_COLUMNS)),
        ("select 1 as one", {"length"}),
        ("with a as (select payload from packets) select max(payload) from a", {"payload"}),
        ("with a as (select proto, payload from packets) select max(payload) from a", set(ALL_COLUMNS)),  # named
    ],
)
def test_only_what_is_read_is_computed(sql: str, columns: set[str]) -> None:
    window = Window(1, None, shared=False)
    query = Query(sql, window)
    assert set(window.columns) == columns
    query.stop()


@pytest.mark.needs_duckdb
@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("selec 1", "Parser Error"),
        ("select nope from packets", '"nope" not found'),
        ("select * from packet", "packet"),
        ("drop table packets", "one SELECT"),
        ("select 1; select 2", "one SELECT"),
        ("", "one SELECT"),
        ("select count(*) from packets a join packets b using (page)", "goes by once"),
        ("select length from packets where length > (select avg(length) from packets)", "goes by once"),
        ("select 1 from packets union all select 2 from packets", "as materialized"),
    ],
)
def test_a_wrong_query_is_refused_before_there_is_traffic(
    sql: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LOOPBACK, "5", "--sql", sql]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pagepool: --sql: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("module", "option"), [("duckdb", ["--sql", "select 1"]), ("pyarrow", ["--write", "{}/x.parquet"])]
)
def test_a_missing_library_is_one_line_that_says_what_to_install(
    module: str,
    option: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main([*LOOPBACK, "5", *(part.format(tmp_path) for part in option)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "pip install 'pagepool[" in err


@pytest.mark.needs_duckdb
def test_json_has_a_line_for_each_window(capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select src_ip, count(*) as frames, min(payload) as first from packets group by 1 order by 1 limit 3"
    assert main([*LOOPBACK, "1.2", "--json", "--window", "200ms", "--sql", sql]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    windows = [line for line in lines if line["type"] == "window"]
    summary = lines[-1]
    assert [window["window"] for window in windows] == list(range(1, len(windows) + 1))
    assert len(windows) == summary["query"]["windows"] >= 1
    assert windows[0]["columns"] == ["src_ip", "frames", "first"]
    assert [row[0] for row in windows[0]["rows"]] == ["10.0.0.0", "10.0.0.1", "10.0.0.10"]
    assert bytes.fromhex(windows[0]["rows"][0][2])[12:14] == b"\x08\x00"
    assert sum(window["frames"] for window in windows) == summary["query"]["frames"]
    assert summary["query"]["frames"] + summary["query"]["missed"] == summary["frames"]


@pytest.mark.needs_duckdb
def test_plain_output_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([*LOOPBACK, "1.3", "--window", "300ms", "--sql", "select length, count(*) n from packets group by 1"]) == 0
    )
    out = capsys.readouterr().out
    assert "window 1: " in out
    assert "  length" in out
    assert "the query saw" in out


@pytest.mark.needs_duckdb
def test_a_query_that_fails_on_the_way_ends_it_with_duckdbs_words(capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select case when count(*) > 0 then error('enough of it') end from packets"
    assert main([*LOOPBACK, "30", "--json", "--window", "100ms", "--sql", sql]) == 1
    out, err = capsys.readouterr()
    assert "enough of it" in err
    assert err.count("\n") == 1
    assert json.loads(out.splitlines()[-1])["type"] == "summary"


@pytest.mark.needs_duckdb
def test_what_is_to_be_read_twice_is_materialized(capsys: pytest.CaptureFixture[str]) -> None:
    sql = (
        "with p as materialized (select length from packets) "
        "select (select count(*) from p) as every, (select count(*) from p where length = 60) as short"
    )
    assert main([*LOOPBACK, "0.5", "--json", "--window", "200ms", "--sql", sql]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["type"] == "window"
    assert first["rows"] == [[first["frames"]] * 2]
    assert first["frames"] > 0


@pytest.mark.needs_duckdb
def test_a_query_that_knows_enough_still_has_its_window(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOOPBACK, "1", "--json", "--window", "400ms", "--sql", "select * from packets limit 1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    *whole, _ = [line for line in lines if line["type"] == "window"]  # the last one was cut off
    assert all(window["seconds"] >= 0.4 for window in whole)


# -- Parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.needs_pyarrow
def test_parquet_has_every_frame_and_what_is_known_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "frames.parquet"
    assert main([*LOOPBACK, "0.5", "--json", "--write", str(path), "--queue", "0", "--queue", "1"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = pq.read_table(path)
    assert summary["capture"] == {"path": str(path), "frames": table.num_rows}
    assert table.num_rows == summary["frames"] > 0
    assert set(table.schema.names) == set(ALL_COLUMNS) - {"page"}
    assert {str(table.schema.field(name).type) for name in ("payload", "src_ip")} == {"binary", "string"}
    assert set(table["queue"].to_pylist()) == {0, 1}
    assert set(table["dst_port"].to_pylist()) == {9}
    assert all(len(frame) == 60 and frame[12:14] == b"\x08\x00" for frame in table["payload"].to_pylist())


@pytest.mark.needs_pyarrow
def test_row_groups_bound_the_memory_and_pages_come_home_at_once(
    tmp_path: Path, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    from pagepool.cli import parquet_file

    monkeypatch.setattr(parquet_file, "_GROUP_FRAMES", 100)
    file = parquet_file.ParquetFile(str(tmp_path / "x.parquet"))
    for _ in range(25):
        with RecordingQueue(pool).batch([b"z" * 100] * 10) as batch:
            file.write(0, batch)
        assert pool.lent == 0
    file.close()
    file.close()
    assert [pq.read_metadata(file.path).row_group(i).num_rows for i in range(3)] == [100, 100, 50]
    assert file.frames == 250


@pytest.mark.needs_pyarrow
def test_a_parquet_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOOPBACK, "1", "--write", "/nonexistent/x.parquet"]) == 1
    assert capsys.readouterr().err == "pagepool: cannot write /nonexistent/x.parquet: No such file or directory\n"


# -- how a result looks ------------------------------------------------------------------------------------------------


def result(rows: list[tuple[Any, ...]], columns: tuple[str, ...] = ("name", "n"), **other: Any) -> WindowResult:
    return WindowResult(
        **{"number": 3, "seconds": 1.0, "frames": 1200, "missed": 0, "has_more": False} | other,
        columns=columns,
        rows=rows,
    )


def test_a_table_is_aligned_and_fits() -> None:
    rows: list[tuple[Any, ...]] = [(f"host {i}", i * 1000) for i in range(30)]
    lines = table_lines(result(rows), 20, 6)
    assert lines == [
        "name       n",
        "host 0     0",
        "host 1  1000",
        "host 2  2000",
        "host 3  3000",
        "... and 26 more rows",
    ]
    assert max(map(len, table_lines(result(rows), 9, 50))) == 9
    assert table_lines(result([]), 80, 5) == ["name  n"]


def test_values_of_any_kind_are_one_line() -> None:
    values = [None, True, 1.5, 12345678.9, b"\x00\xff", "a\nb\x1b[31m", decimal.Decimal("1.50"), "x" * 60, [1, 2]]
    lines = table_lines(result([(value,) for value in values], ("value",)), 80, 50)
    assert [line.strip() for line in lines[1:]] == [
        "-", "true", "1.5", "12345679", "00ff", "a b [31m", "1.50", "x" * 39 + "…", "[1, 2]",
    ]  # fmt: skip


def test_the_headline_says_what_was_missed() -> None:
    assert headline(result([("a", 1)])) == "window 3: 1,200 frames in 1.00 s, 1 row"
    assert headline(result([], has_more=True, missed=7)).endswith("0 and more rows; 7 frames were in no window")


def test_json_takes_any_value() -> None:
    values = (datetime.datetime(2026, 1, 2), b"\x01", decimal.Decimal("2.5"), [b"\x02", None], {"k": b"\x03"}, 1, "x")
    row = json.loads(json.dumps(result([values], tuple("abcdefg")).as_dict()))["rows"][0]
    assert row == ["2026-01-02T00:00:00", "01", "2.5", ["02", None], {"k": "03"}, 1, "x"]


@pytest.mark.parametrize("height", [14, 24, 50])
@pytest.mark.parametrize("rows", [0, 1, 100])
def test_the_live_screen_with_a_result_fits(height: int, rows: int) -> None:
    console = Console(width=80, height=height, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    report = LiveReport(console, 10)
    report.begin(Loopback(WireOptions(), "no AF_XDP on a veth pair for this user: netns: EPERM"), sample(0, 0))
    try:
        report.window(result([("host" * 30, i) for i in range(rows)]))
        now = sample(1, 2_400_000, lost=1000)
        console.print(report.screen(now, rates(sample(0, 0), now)))
        lines = console.export_text().splitlines()
    finally:
        report.close()
    assert len(lines) <= height, lines
    assert max(map(len, lines)) < 80
    assert any("window 3" in line for line in lines)
