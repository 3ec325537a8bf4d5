# SPDX-License-Identifier: MIT
"""Where the frames come from: an interface of this machine, a veth pair made for the occasion, or the loopback NIC.

A wire opens the queues and starts the traffic if it is ours; it receives nothing. Invariant: leaving the ``with``
block closes the queues and takes away everything that was made for them, whatever happened in between.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pagepool import probe
from pagepool.cli.failure import CannotError, UsageError, explain, is_up
from pagepool.cli.per_queue import Filters
from pagepool.cli.steered import Steered, check_rules, steer
from pagepool.drivers.af_xdp import AfXdpQueue, XdpObject, nr_rx_queues, pages_for_queue
from pagepool.drivers.loopback import LoopbackNic, LoopbackQueue, UdpFlows
from pagepool.drivers.rx_queue import RxQueue

if TYPE_CHECKING:
    from pagepool.cli.tap import Verdict

__all__ = ["Interface", "Loopback", "Veth", "Wire", "WireOptions", "choose_wire"]

_FRAME_BYTES = 60  # what the wire calls a frame of 64 bytes, with its check sequence
_NR_FLOWS = 64
_LOOPBACK_QUEUES = 128


@dataclass(frozen=True, slots=True)
class WireOptions:
    """What the command line asks of a wire.

    Attributes
    ----------
    queues : tuple of int
        Hardware queues, each once; none for all that an interface has.
    filters : Filters
        Which frames to take; the others go to the stack.
    rate_pps : float or None
        Frames per second of our own generator; None for as fast as it goes.
    program : str or None
        An XDP program of the user's instead of the filter: its object file, ``FILE`` or ``FILE:NAME``.
    promiscuous : bool
        Whether to receive what is for other stations too.
    timestamps : bool
        Whether to note when each frame came, where the interface can say and no program of the user's decides.
    steer : tuple of (int, str)
        Queues, and what the NICs are to send there by themselves, as filters.
    """

    queues: tuple[int, ...] = (0,)
    filters: Filters = field(default_factory=Filters)
    rate_pps: float | None = None
    program: str | None = None
    promiscuous: bool = False
    timestamps: bool = False
    steer: tuple[tuple[int, str], ...] = ()


class Wire(ABC):
    """Queues, and what is around them.

    Attributes
    ----------
    queues : list
        Open inside the ``with`` block, in the order asked for.
    reason : str
        Why this wire and no better one; empty where there is nothing to explain.
    directions : tuple of (str, str)
        Which interface's frames go out of which, where they do.
    steered : list of Steered
        What the NICs were told.
    """

    reason = ""
    directions: tuple[tuple[str, str], ...] = ()

    def __init__(self, options: WireOptions) -> None:
        self.options = options
        self.queues: list[RxQueue] = []
        self.steered: list[Steered] = []
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._open(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    @abstractmethod
    def _open(self, undo: ExitStack) -> None:
        """Fill `queues`; what is to be undone goes on the stack."""

    @property
    @abstractmethod
    def title(self) -> str:
        """str : what it is, in a few words."""

    @abstractmethod
    def look(self, queue: RxQueue) -> tuple[int, int]:
        """Return the pages that the device has, and the frames that were lost before the pool saw them."""

    def verdict(self, queue: RxQueue) -> Verdict | None:
        """Return what becomes of the frames of a queue, None where that is the user's to say."""
        return None

    def start(self) -> None:
        """Start the traffic, if it is ours."""
        return None

    def stop(self) -> None:
        """Stop the traffic, if it is ours."""
        return None

    def sent(self) -> int | None:
        """Return the frames that our generator has sent, None where the traffic is not ours."""
        return None


class Interface(Wire):
    """Queues of one or more interfaces by AF_XDP, all over one UMEM."""

    def __init__(self, ifnames: tuple[str, ...], options: WireOptions) -> None:
        super().__init__(options)
        self.ifnames = ifnames

    def _program(self, undo: ExitStack) -> XdpObject | None:
        """Return the user's program, one for each interface: its map has one place for each queue number."""
        if self.options.program is None:
            return None
        path, name = self.options.program, None
        if not os.path.exists(path) and ":" in path:
            path, _, name = path.rpartition(":")
        try:
            return undo.enter_context(XdpObject(path, name))
        except FileNotFoundError:
            raise CannotError(f"no such file: {path}") from None

    def _open(self, undo: ExitStack) -> None:
        options = self.options
        check_rules(options.steer)
        asked = [(ifname, index) for ifname in self.ifnames for index in self._queues_of(ifname)]
        self._check_named({index for _, index in asked})
        programs = {ifname: self._program(undo) for ifname in self.ifnames}
        first: AfXdpQueue | None = None
        for ifname, index in asked:
            try:
                queue = AfXdpQueue(
                    ifname,
                    index,
                    filter=options.filters.of(index),
                    program=programs[ifname],
                    frames=len(asked) * pages_for_queue(),
                    promiscuous=options.promiscuous,
                    timestamps=options.timestamps and options.program is None,
                    share_umem_with=first,
                )
            except OSError as error:
                raise explain(error, ifname, index) from None
            undo.callback(queue.close)
            self.queues.append(queue)
            if not is_up(ifname):
                raise CannotError(f"{ifname} is down: ip link set {ifname} up")
            first = first or queue
        for ifname in self.ifnames if options.steer else ():
            self.steered += steer(ifname, options.steer, undo)

    def _check_named(self, indices: set[int]) -> None:
        for option, named in (("--filter", self.options.filters.own), ("--steer", self.options.steer)):
            for index, expression in named:
                if index not in indices:
                    there = ", ".join(map(str, sorted(indices)))
                    raise UsageError(f"{option} {index}:{expression}: queue {index} is not received from, but {there}")

    def _queues_of(self, ifname: str) -> tuple[int, ...]:
        if self.options.queues:
            return self.options.queues
        try:
            return tuple(range(nr_rx_queues(ifname)))
        except OSError as error:
            raise explain(error, ifname, 0) from None

    @property
    def title(self) -> str:
        queues = [queue for queue in self.queues if isinstance(queue, AfXdpQueue)]
        ways = dict.fromkeys(f"{queue.mode}, {'zero copy' if queue.is_zerocopy else 'copy'}" for queue in queues)
        return f"{' and '.join(self.ifnames)}, AF_XDP {' and '.join(ways)}"

    def look(self, queue: RxQueue) -> tuple[int, int]:
        assert isinstance(queue, AfXdpQueue)
        stats = queue.stats()
        rings, socket = stats.rings, stats.socket
        return rings.nr_fill + rings.nr_rx + rings.nr_tx_outstanding, socket.rx_dropped + socket.rx_ring_full


class Veth(Interface):
    """A veth pair between two namespaces without a name, with a traffic generator at the far end."""

    def __init__(self, options: WireOptions) -> None:
        super().__init__(("near",), options)
        self._generators: list[Any] = []

    def _open(self, undo: ExitStack) -> None:
        # Imported here: without root nothing of it is of use, and pyroute2 is an extra.
        from pagepool.testing.frames import udp_frame
        from pagepool.testing.generator import LiveGenerator
        from pagepool.testing.veth import VethPair

        nr_queues = max(self.options.queues) + 1
        cpus = self._cpus(nr_queues)
        pair = undo.enter_context(VethPair(nr_queues=nr_queues))
        with pair.near.ns:
            super()._open(undo)
        near, far = pair.near, pair.far
        frame = udp_frame(src=far.mac, dst=near.mac, src_ip=far.ipv4, dst_ip=near.ipv4, length=_FRAME_BYTES)
        if self.options.rate_pps is not None:
            rate = self.options.rate_pps / len(self.options.queues)
        else:
            rate = None
        for cpu in cpus:
            generator = LiveGenerator(far, frame, rate_pps=rate, nr_flows=_NR_FLOWS, cpu=cpu)
            self._generators.append(undo.enter_context(generator))

    def _cpus(self, nr_queues: int) -> list[int | None]:
        # A live frame arrives on the queue of the CPU that sent it.
        if nr_queues == 1:
            return [None]
        cpus = sorted(os.sched_getaffinity(0))
        found: list[int | None] = []
        for queue in self.options.queues:
            fitting = [cpu for cpu in cpus if cpu % nr_queues == queue]
            if not fitting:
                raise CannotError(
                    f"no frame would reach queue {queue}: on veth the sending CPU chooses the queue, and this "
                    f"process has {len(cpus)}; take --queue {' --queue '.join(map(str, range(len(cpus))))}"
                )
            found.append(fitting[0])
        return found

    @property
    def title(self) -> str:
        return f"veth pair in its own namespaces, {super().title.partition(', ')[2]}"

    def start(self) -> None:
        for generator in self._generators:
            generator.start()

    def stop(self) -> None:
        for generator in self._generators:
            generator.stop()

    def sent(self) -> int | None:
        return sum(int(generator.sent) for generator in self._generators)


class Loopback(Wire):
    """The NIC in software, with generated flows; a pool for each queue, no privilege."""

    def __init__(self, options: WireOptions, reason: str = "") -> None:
        if options.program is not None:
            raise CannotError("--program needs AF_XDP: run it as root, without --loopback")
        if options.filters:
            raise CannotError(f"--filter needs AF_XDP, and this is the loopback NIC{f' ({reason})' if reason else ''}")
        if options.rate_pps is not None:
            raise CannotError(f"--rate needs AF_XDP, and this is the loopback NIC{f' ({reason})' if reason else ''}")
        if max(options.queues) >= _LOOPBACK_QUEUES:
            raise CannotError(
                f"the loopback NIC has {_LOOPBACK_QUEUES} queues: take --queue 0 to {_LOOPBACK_QUEUES - 1}"
            )
        super().__init__(options)
        self.reason = reason

    def _open(self, undo: ExitStack) -> None:
        nic = undo.enter_context(LoopbackNic(max(self.options.queues) + 1, UdpFlows(_NR_FLOWS, _FRAME_BYTES)))
        self.queues.extend(undo.enter_context(nic.queue(index)) for index in self.options.queues)

    @property
    def title(self) -> str:
        return "loopback NIC (software, in this process)"

    def look(self, queue: RxQueue) -> tuple[int, int]:
        assert isinstance(queue, LoopbackQueue)
        port, stats = queue.port, queue.stats()
        waiting = stats.rx_frames - stats.xdp["rx_frames"]  # written, and not yet judged
        return port.rx.nr_posted + waiting + port.tx.nr_posted, stats.rx_dropped


def choose_wire(ifnames: tuple[str, ...], options: WireOptions, *, loopback: bool = False) -> Wire:
    """Return the best wire there is, not yet open.

    Parameters
    ----------
    ifnames : tuple of str
        The user's interfaces; none for traffic of our own.
    loopback : bool
        Take the loopback NIC whatever else there is.
    """
    if ifnames:
        return Interface(ifnames, options)
    if loopback:
        return Loopback(options)
    for name in ("netns", "af_xdp"):
        answer = probe.probe(name)
        if not answer:
            return Loopback(options, f"no AF_XDP on a veth pair for this user: {name}: {answer.reason}")
    return Veth(options)
