# SPDX-License-Identifier: MIT
"""``pagepool rx --pci``: the command receives from a NIC that VFIO has, and says so in its summary."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

from .support import host
from .support.pci import PciDevice
from .support.plan import device
from .support.suite import Skip, cases

BOOTS = ("newest",)
FRAMES = 40


@cases("igb0")
def test_the_command_receives(name: str) -> None:
    if importlib.util.find_spec("typer") is None:
        raise Skip("typer is not in the guest")
    nic = PciDevice(device(name).bdf)
    before = nic.driver
    nic.bind("vfio-pci")
    try:
        receive(name, nic.bdf)
    finally:
        nic.bind(before)


def receive(name: str, bdf: str) -> None:
    """Run the command on a NIC and have the host send it some frames."""
    command = [sys.executable, "-m", "pagepool.cli", "rx", "--pci", bdf, "--seconds", "20", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        samples = []
        sent = False
        for line in process.stdout:
            samples.append(json.loads(line))
            if not sent and samples[-1]["type"] != "summary":
                assert host.send(name, FRAMES).result()["sent"] == FRAMES
                sent = True
            if samples[-1].get("frames", 0) >= FRAMES:
                break
        process.terminate()  # ends with the summary, as Ctrl-C does
        rest, errors = process.communicate(timeout=60)
    samples.extend(json.loads(line) for line in rest.splitlines())
    summary = samples[-1]
    print(summary)
    assert (process.returncode, errors) == (0, ""), errors
    assert summary["type"] == "summary"
    assert summary["frames"] == FRAMES
    assert bdf in summary["source"]


def test_a_nic_that_the_kernel_has_is_refused_in_one_line() -> None:
    if importlib.util.find_spec("typer") is None:
        raise Skip("typer is not in the guest")
    command = [sys.executable, "-m", "pagepool.cli", "rx", "--pci", device("virtio0").bdf, "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    print(done.stderr)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert device("virtio0").bdf in done.stderr
