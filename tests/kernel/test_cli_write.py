# SPDX-License-Identifier: MIT
"""``pagepool rx --write`` on a disk that fills up while it writes. The frames are the loopback NIC's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagepool.cli.main import main
from pagepool.drivers.capture import read_capture

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]  # CAP_SYS_ADMIN, to mount


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("suffix", ["pcapng", pytest.param("parquet", marks=pytest.mark.needs_pyarrow)])
def test_disk_that_fills_up(capsys: pytest.CaptureFixture[str], small_disk: Path, suffix: str) -> None:
    """What fits is whole: a pcapng file has the frames that it is said to have, a Parquet file is the former one."""
    path = small_disk / f"frames.{suffix}"
    path.write_bytes(b"last night")
    assert main(["rx", "--loopback", "--seconds", "60", "--json", "--write", str(path)]) == 1
    out, err = capsys.readouterr()
    assert err == f"pagepool: cannot write {path}: No space left on device\n"
    captured = json.loads(out.splitlines()[-1])["capture"]["frames"]
    if suffix == "pcapng":
        assert len(list(read_capture(path))) == captured > 0
    else:
        assert captured == 0
        assert path.read_bytes() == b"last night"
    assert os.listdir(small_disk) == [path.name]
