# SPDX-License-Identifier: MIT
"""Early demux: one port comes here without a copy, and the kernel's stack keeps the rest as if nobody were there.

As root on an interface: ``python examples/12_demux.py eth0``. Without one it makes a veth pair in namespaces of its own
and sends frames to two ports. Without root it says which of some frames a filter would take.
"""

import socket
import sys

from pagepool import probe
from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.drivers.af_xdp.filter import matches
from pagepool.testing.frames import udp_frame

FILTER = "udp dst port 53 or (vlan 100 and udp dst portrange 5000-5999)"
WAYS = {"src": b"\2\0\0\0\0\1", "dst": b"\2\0\0\0\0\2", "src_ip": "10.213.0.2", "dst_ip": "10.213.0.1"}


def take(ifname: str, timeout: float | None = None) -> None:
    """Receive what matches until no frame has come for `timeout` seconds."""
    with AfXdpQueue(ifname, filter=FILTER) as rxq:
        for batch in rxq.poll_forever(timeout=timeout):
            batch.drop()
        counted = rxq.stats().steering
        print(f"taken by the filter: {counted.redirected}, left to the stack: {counted.passed}")


def on_veth() -> None:
    """Send 1000 frames to the queue's port and 10 to a socket's, at the same time."""
    from threading import Timer

    from pagepool.testing.generator import LiveGenerator
    from pagepool.testing.veth import VethPair

    with VethPair(gro=True) as pair, pair.near.ns, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stack:
        stack.bind((pair.near.ipv4, 4001))
        ways = {**WAYS, "src": pair.far.mac, "dst": pair.near.mac}
        with (
            LiveGenerator(pair.far, udp_frame(**ways, dst_port=53), rate_pps=5000) as ours,  # type: ignore[arg-type]
            LiveGenerator(pair.far, udp_frame(**ways, dst_port=4001), rate_pps=50) as others,  # type: ignore[arg-type]
        ):
            Timer(0.5, ours.start, [1000]).start()
            Timer(0.5, others.start, [10]).start()
            take(pair.near.ifname, timeout=1.5)
        print(f"and the stack's socket received {sum(len(stack.recv(100)) > 0 for _ in range(10))} of 10 datagrams")


if len(sys.argv) > 1:
    take(sys.argv[1])
elif probe.probe("netns") and probe.probe("af_xdp"):
    on_veth()
else:
    for port, vlan in ((53, None), (5353, None), (5353, 100)):
        frame = udp_frame(**WAYS, dst_port=port, vlan=vlan)  # type: ignore[arg-type]
        print(f"port {port}, tag {vlan}: {'taken' if matches(FILTER, frame) else 'left to the stack'}")
