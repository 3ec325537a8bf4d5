# SPDX-License-Identifier: MIT
"""``pagepool rx --pci``: what it refuses, in one line, before it touches a device."""

from __future__ import annotations

import pytest

from pagepool.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--pci", "0000:ff:1f.7"], 1, "0000:ff:1f.7"),
        (["--pci", "nonsense"], 1, "nonsense"),
        (["--pci", "0000:ff:1f.7", "--filter", "udp"], 1, "--filter"),
        (["--pci", "0000:ff:1f.7", "--action", "pass"], 2, "no network stack"),
        (["--pci", "0000:ff:1f.7", "--loopback"], 2, "--pci"),
        (["--pci", "0000:ff:1f.7", "--rate", "1000"], 2, "--rate"),
        (["--pci", "0000:ff:1f.7", "--iommu", "type1"], 1, "0000:ff:1f.7"),
        (["--pci", "0000:ff:1f.7", "--iommu", "vfio"], 2, "auto, type1, iommufd"),
        (["--iommu", "iommufd"], 2, "give --pci too"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, reason: str
) -> None:
    assert main(["rx", "--seconds", "1", *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert reason in err
