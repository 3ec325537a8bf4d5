# SPDX-License-Identifier: MIT
"""``pagepool rx --pci``: the command receives from a NIC that VFIO has, and says so in its summary."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

from .support import host
from .support.command import Command
from .support.pci import PciDevice
from .support.plan import device
from .support.suite import Skip, cases

BOOTS = ("newest",)
FRAMES = 40


@cases("igb0")
def test_the_command_receives(name: str) -> None:
    receive(name)


def receive(name: str, *options: str) -> str:
    """Run the command on a NIC, have the host send it some frames, and return what it says it received from."""
    nic = PciDevice(device(name).bdf)
    before = nic.driver
    nic.bind("vfio-pci")
    try:
        command = Command("rx", "--pci", nic.bdf, *options, "--seconds", "20", "--json")
        samples = []
        sent = False
        for line in command.stdout:
            samples.append(json.loads(line))
            if not sent and samples[-1]["type"] != "summary":
                assert host.send(name, FRAMES).result()["sent"] == FRAMES
                sent = True
            if samples[-1].get("frames", 0) >= FRAMES:
                break
        command.terminate()  # ends with the summary, as Ctrl-C does
        samples.extend(json.loads(line) for line in command.stdout)
        errors, status = command.stderr.read(), command.wait()
    finally:
        nic.bind(before)
    summary = samples[-1]
    print(summary)
    assert (status, errors) == (0, ""), errors
    assert summary["type"] == "summary"
    assert summary["frames"] == FRAMES
    assert nic.bdf in summary["source"]
    return str(summary["source"])


@cases("auto", "iommufd")
def test_a_nic_that_cannot_be_had_is_refused_in_one_line(iommu: str) -> None:
    """The kernel has it, or it is bound and wanted by an interface that this kernel lacks: the reason is named."""
    nic = PciDevice(device("virtio0").bdf)
    if iommu == "auto":
        said, status = run_the_program("rx", "--pci", nic.bdf, "--seconds", "1")
        assert nic.bdf in said
    else:
        before = nic.driver
        nic.bind("vfio-pci")
        try:
            command = Command("rx", "--pci", nic.bdf, "--iommu", iommu, "--seconds", "1")
            said, status = command.stderr.read(), command.wait()
        finally:
            nic.bind(before)
        assert "CONFIG_IOMMUFD" in said
    print(said)
    assert status == 1
    assert said.count("\n") == 1


def run_the_program(*arguments: str) -> tuple[str, int]:
    """Run it as a program of its own; return what it says on standard error, and its exit status."""
    if importlib.util.find_spec("typer") is None:
        raise Skip("typer is not in the guest")
    command = [sys.executable, "-m", "pagepool.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stderr, done.returncode
