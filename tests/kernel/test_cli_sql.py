# SPDX-License-Identifier: MIT
"""A query over frames of a real veth pair, beside the verdict that they get; the same frames in Parquet."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from commands import started
from test_cli_rx import frame_to_near

from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]


def lines_while(send: LiveGenerator, count: int, *arguments: str) -> list[dict[str, Any]]:
    """Receive while `send` sends `count` frames; return what was printed after the first line."""
    with started("near", "--json", *arguments) as process:
        send.send(count)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.needs_duckdb
def test_the_query_sees_the_frames_that_the_stack_gets_too(veth: VethPair) -> None:
    sql = "select dst_ip, dst_port, count(*), min(payload) from packets group by all having count(*) > 0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((veth.near.ipv4, 4001))
        receiver.settimeout(2)
        with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=500) as generator:
            *lines, summary = lines_while(generator, 40, "--window", "20s", "--sql", sql)
        for _ in range(40):
            receiver.recv(2048)
    (window,) = [line for line in lines if line["type"] == "window"]
    assert window["frames"] == summary["frames"] == summary["query"]["frames"] == 40
    assert window["rows"] == [[veth.near.ipv4, 4001, 40, frame_to_near(veth).hex()]]


@pytest.mark.needs_duckdb
def test_frames_that_only_the_query_wants_lend_it_their_pages(veth: VethPair) -> None:
    with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=20_000) as generator:
        sql = "select sum(octet_length(payload)) from packets"
        *lines, summary = lines_while(generator, 10_000, "--action", "drop", "--window", "100ms", "--sql", sql)
    windows = [line for line in lines if line["type"] == "window"]
    assert summary["frames"] == 10_000
    assert sum(window["frames"] for window in windows) + summary["query"]["missed"] == 10_000
    assert all(window["rows"][0][0] in (None, 60 * window["frames"]) for window in windows)
    assert summary["maps"] == 1


@pytest.mark.needs_pyarrow
def test_parquet_holds_the_frames(veth: VethPair, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "frames.parquet"
    with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=5000) as generator:
        *_, summary = lines_while(generator, 2000, "--action", "drop", "--write", str(path))
    table = pq.read_table(path)
    assert summary["capture"] == {"path": str(path), "frames": 2000}
    assert table["payload"].to_pylist() == [frame_to_near(veth)] * 2000
    assert set(table["src_ip"].to_pylist()) == {veth.far.ipv4}
    assert set(table["interface"].to_pylist()) == {"near"}
