# SPDX-License-Identifier: MIT
"""``pagepool rx``: receive into recycled pages, show the pool at work, and sum up what it saved.

The options, what they mean together, and which of them exclude each other; `pagepool.cli.receiving` does it.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from pagepool.cli.failure import UsageError
from pagepool.cli.forwarding import Forwarding
from pagepool.cli.live import LiveReport
from pagepool.cli.pci_wire import IOMMUS, PciNic
from pagepool.cli.per_queue import parse_filters, parse_rules
from pagepool.cli.plain import JsonReport, PlainReport
from pagepool.cli.query import Query
from pagepool.cli.receiving import Report, receive
from pagepool.cli.tap import ACTIONS
from pagepool.cli.window import Window, parse_window
from pagepool.cli.wire import Wire, WireOptions, choose_wire

__all__ = ["rx_command"]


def rx_command(
    ifname: Annotated[
        list[str] | None,
        typer.Argument(metavar="IFACE", help="Interfaces; without one, see above.", show_default=False),
    ] = None,
    queue: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Receive queue of each; may be repeated. Default: those that --filter and --steer name, else 0.",
        ),
    ] = None,
    forward: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Send what comes in on IFACE out of this interface, and the other way."),
    ] = None,
    action: Annotated[
        str | None,
        typer.Option(metavar="drop|pass|tx", help="What becomes of each frame. Default: pass on IFACE, else drop."),
    ] = None,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[N:]EXPRESSION",
            help="Frames to take, such as 'udp port 53'; the stack gets the others. "
            "'2:udp port 53' is for queue 2 alone; may be repeated.",
        ),
    ] = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N:EXPRESSION",
            help="Have the NIC itself send such frames to queue N, as long as this runs; may be repeated.",
        ),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(metavar="FILE.o[:NAME]", help="An XDP program of yours instead of --filter; fills its xsks_map."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads for all queues; one each by default, 1 polls them in turn."),
    ] = None,
    cpu: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=0, help="Keep a thread on this CPU; one for each thread, in their order."),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Also write every frame to FILE.pcapng, or with its columns to FILE.parquet."
        ),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(metavar="SELECT", help="Ask DuckDB about the table packets, window after window; see below."),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="1s|10000", help="How long a window of --sql is: a time, 1s by default, or frames."),
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
    iommu: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(IOMMUS), help="With --pci: which interface of the kernel; auto takes iommufd if it can."
        ),
    ] = None,
    loopback: Annotated[bool, typer.Option("--loopback", help="Use the loopback NIC, as without privilege.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a second, then one with the summary.")] = False,
) -> None:
    """Receive into recycled pages and show the pool at work.

    On IFACE, frames come by AF_XDP; each queue has a pool and, unless --threads says less, a thread of its own. Without
    IFACE, root gets a veth pair in namespaces of its own with a traffic generator, and real AF_XDP on it; everybody
    else gets the loopback NIC, a NIC in software.

    With --forward, two interfaces become one wire, on all their queues: frames move from one to the other by the ids of
    their pages, without a copy.

    With --sql, the table packets has the columns timestamp, interface, queue, page, length, ethertype, vlan, src_ip,
    dst_ip, proto, src_port, dst_port and payload. DuckDB reads the frames where they lie.

    With --write, FILE.pcapng is readable from the first batch on; FILE.parquet, which has its index at the end, takes
    the place of a former file when it is whole.

    Ctrl-C ends it with the summary and exit status 0. Nothing is left behind.
    """
    ifnames = tuple(dict.fromkeys(ifname or ()))
    _check_forward(forward, ifnames, action)
    if action is None:
        action = "forward" if forward else "pass" if ifnames else "drop"
    if not forward and action not in ACTIONS:
        raise UsageError(f"--action {action}: it is one of {', '.join(ACTIONS)}")
    filters, rules = parse_filters(filter or ()), parse_rules(steer or ())
    if program is not None and filters:
        raise UsageError("--program decides by itself what to take: leave --filter away")
    if rules and not ifnames:
        raise UsageError("--steer gives rules to the NIC of an interface: give IFACE")
    named = [number for number, _ in (*filters.own, *rules)]
    queues = tuple(dict.fromkeys(queue or named or (0,))) if not forward or queue else ()
    kept = bool(write or sql)  # with the time at which each frame came
    options = WireOptions(queues, filters, rate, program, timestamps=kept, steer=rules)
    if rate is not None and (ifnames or loopback or pci is not None):
        raise UsageError("--rate is for the generator of our own veth pair: leave one of them away")
    if window is not None and sql is None:
        raise UsageError("--window is how long --sql gathers frames: give --sql too, or leave it away")
    if loopback and ifnames:
        raise UsageError("--loopback is a NIC of its own: leave it, or IFACE, away")
    if pci is not None and (ifnames or loopback):
        raise UsageError("--pci is a device of its own: leave IFACE and --loopback away")
    if pci is not None and action == "pass":
        raise UsageError("--action pass: there is no network stack behind --pci; take drop or tx")
    if iommu is not None and pci is None:
        raise UsageError("--iommu is how a PCI device is reached: give --pci too, or leave it away")
    choice = next((name for name in IOMMUS if name == (iommu or "auto")), None)
    if choice is None:
        raise UsageError(f"--iommu {iommu}: it is one of {', '.join(IOMMUS)}")
    wire: Wire
    if pci is not None:
        wire = PciNic(pci, options, choice)
    elif forward is not None:
        wire = Forwarding(ifnames[0], forward, options)
    else:
        wire = choose_wire(ifnames, options, loopback=loopback)
    seconds_long, frames_long = parse_window("1s" if window is None else window)
    query = None if sql is None else Query(sql, Window(seconds_long, frames_long, shared=action != "drop"))
    try:
        receive(
            wire,
            action,
            _report(json, seconds),
            seconds=seconds,
            write=write,
            threads=threads,
            cpus=cpu or None,
            query=query,
        )
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _check_forward(other: str | None, ifnames: tuple[str, ...], action: str | None) -> None:
    if other is None:
        return
    if len(ifnames) != 1 or other in ifnames:
        raise UsageError("--forward OTHER joins two interfaces: give one IFACE, and another as OTHER")
    if action is not None:
        raise UsageError("--forward is what becomes of each frame: leave --action away")


def _report(json: bool, seconds: float | None) -> Report:
    if json:
        return JsonReport()
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReport(console, seconds)
    return PlainReport()
