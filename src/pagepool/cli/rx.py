# SPDX-License-Identifier: MIT
"""``pagepool rx``: receive into recycled pages, show the pool at work, and sum up what it saved.

Joins a wire, its pollers, a meter and a report; each of them does one thing. Invariant: however it ends (by itself,
Ctrl-C, an error, a lost interface) the generator is stopped, the queues are closed and the terminal is as it was.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, closing
from types import FrameType
from typing import Annotated, NoReturn, Protocol

import typer
from rich.console import Console

from pagepool.cli import without_pool
from pagepool.cli.failure import CannotError
from pagepool.cli.live import LiveReport
from pagepool.cli.meter import Meter, Sample
from pagepool.cli.pci_wire import PciNic
from pagepool.cli.plain import JsonReport, PlainReport
from pagepool.cli.poller import ACTIONS, CaptureFile, Poller
from pagepool.cli.summary import Summary
from pagepool.cli.wire import Wire, WireOptions, choose_wire

__all__ = ["receive", "rx_command"]


class Report(Protocol):
    """How a receive is shown."""

    interval_s: float

    def begin(self, wire: Wire, first: Sample) -> None: ...
    def show(self, now: Sample) -> None: ...
    def end(self, summary: Summary) -> None: ...
    def close(self) -> None: ...


def rx_command(
    ifname: Annotated[
        str | None,
        typer.Argument(metavar="[IFACE]", help="Interface; without one, see above.", show_default=False),
    ] = None,
    queue: Annotated[
        list[int] | None, typer.Option(metavar="N", min=0, help="Receive queue, 0 by default; may be repeated.")
    ] = None,
    action: Annotated[
        str | None,
        typer.Option(metavar="drop|pass|tx", help="What becomes of each frame. Default: pass on IFACE, else drop."),
    ] = None,
    filter: Annotated[
        str,
        typer.Option(metavar="EXPRESSION", help="Frames to take, such as 'udp port 53'; the stack gets the others."),
    ] = "all",
    write: Annotated[
        str | None, typer.Option(metavar="FILE.pcapng", help="Also write every frame to a capture file.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", min=0.0, help="End after so many seconds; default: with Ctrl-C.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="PPS", min=1.0, help="Frames per second of our own generator; default: all it can."),
    ] = None,
    pci: Annotated[
        str | None,
        typer.Option(metavar="BDF", help="A NIC that is bound to vfio-pci, such as 0000:01:00.0, instead of IFACE."),
    ] = None,
    loopback: Annotated[bool, typer.Option("--loopback", help="Use the loopback NIC, as without privilege.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a second, then one with the summary.")] = False,
) -> None:
    """Receive into recycled pages and show the pool at work.

    On IFACE, frames come by AF_XDP. Without IFACE, root gets a veth pair in namespaces of its own with a traffic
    generator, and real AF_XDP on it; everybody else gets the loopback NIC, a NIC in software.

    Ctrl-C ends it with the summary and exit status 0. Nothing is left behind.
    """
    if action is None:
        action = "drop" if ifname is None else "pass"
    if action not in ACTIONS:
        raise typer.BadParameter(f"--action {action}: it is one of {', '.join(ACTIONS)}")
    options = WireOptions(tuple(dict.fromkeys(queue or [0])), filter, rate)
    if pci is not None and (ifname is not None or loopback):
        raise typer.BadParameter("--pci is a device of its own: leave IFACE and --loopback away")
    if pci is not None and action == "pass":
        raise typer.BadParameter("--action pass: there is no network stack behind --pci; take drop or tx")
    wire: Wire = PciNic(pci, options) if pci is not None else choose_wire(ifname, options, loopback=loopback)
    try:
        receive(wire, action, _report(json, seconds), seconds=seconds, write=write)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _report(json: bool, seconds: float | None) -> Report:
    if json:
        return JsonReport()
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReport(console, seconds)
    return PlainReport()


def receive(
    wire: Wire, action: str, report: Report, *, seconds: float | None = None, write: str | None = None
) -> Summary:
    """Receive until the time is up or Ctrl-C, and report.

    Raises
    ------
    CannotError
        Something cannot be done.
    OSError
        The device or the capture file failed; what was received by then has been reported.
    """
    stop = threading.Event()
    with ExitStack() as undo:
        undo.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupt))
        capture = undo.enter_context(closing(_open_capture(write))) if write is not None else None
        undo.enter_context(wire)
        undo.callback(report.close)
        pollers = [Poller(one, action, stop, capture) for one in wire.queues]
        undo.callback(_end, stop, pollers)
        for poller in pollers:
            poller.start()
        meter = Meter(wire, pollers)
        try:
            report.begin(wire, meter.sample())
            wire.start()
            _watch(meter, report, stop, seconds)
        except KeyboardInterrupt:
            pass
        _end(stop, pollers)
        last = meter.sample()
        wire.stop()
        failure = next((poller.failure for poller in pollers if poller.failure is not None), None)
        costs = without_pool.measure(wire.queues[0]) if failure is None else None
        summary = Summary(
            wire.title, wire.reason, action, last, costs, write or "", capture.frames if capture is not None else 0
        )
        report.end(summary)
    if failure is not None:
        raise failure
    return summary


def _watch(meter: Meter, report: Report, stop: threading.Event, seconds: float | None) -> None:
    """Report at even intervals until it is time."""
    start = time.monotonic()
    end = start + seconds if seconds is not None else float("inf")
    due = start
    while not stop.is_set() and (now := time.monotonic()) < end:
        due += report.interval_s
        stop.wait(max(min(due, end) - now, 0.0))
        if time.monotonic() < end or due <= end:
            report.show(meter.sample())


def _end(stop: threading.Event, pollers: list[Poller]) -> None:
    stop.set()
    for poller in pollers:
        poller.join()


def _open_capture(path: str) -> CaptureFile:
    try:
        return CaptureFile(path)
    except OSError as error:
        raise CannotError(f"cannot write {path}: {error.strerror}") from None


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
