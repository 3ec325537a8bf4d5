# SPDX-License-Identifier: MIT
"""Real AF_XDP: the pool is the UMEM, registered once; UDP is sent back, everything else is dropped.

As root on an interface: ``python examples/09_af_xdp.py eth0`` (with ``filter="udp port 9"`` the rest of the traffic
stays with the kernel's stack). Without one it makes a veth pair in namespaces of its own and sends itself a thousand
frames. Without root it says what is missing.
"""

import sys
from threading import Timer

from pagepool import probe
from pagepool.drivers.af_xdp import AfXdpQueue


def reflect(ifname: str, timeout: float | None = None) -> None:
    """Send UDP back until no frame has come for `timeout` seconds."""
    with AfXdpQueue(ifname, queue=0) as rxq:  # the pool is the UMEM: registered once
        for batch in rxq.poll_forever(budget=64, timeout=timeout):
            udp = batch.headers(42)[:, 23] == 17  # NumPy over the frames of the batch
            batch.tx(udp)  # a verdict each: drop, pass, tx, redirect, keep
        print(f"{rxq.xdp_stats.rx_frames} frames received, {rxq.xdp_stats.tx} sent back")
        print(f"{rxq.pool.stats().maps} mapping for {rxq.pool.inflight} pages")


def on_veth() -> None:
    """Make a veth pair that is gone afterwards, and send a thousand frames over it."""
    from pagepool.testing.frames import udp_frame
    from pagepool.testing.generator import LiveGenerator
    from pagepool.testing.veth import VethPair

    with VethPair(gro=True) as pair:
        near, far = pair.near, pair.far
        frame = udp_frame(src=far.mac, dst=near.mac, src_ip=far.ipv4, dst_ip=near.ipv4)
        with near.ns, LiveGenerator(far, frame, rate_pps=5000) as generator:
            Timer(0.5, generator.start, [1000]).start()
            reflect(near.ifname, timeout=1.5)


missing = [f"{name}: {answer.reason}" for name in ("netns", "af_xdp") if not (answer := probe.probe(name))]
if len(sys.argv) > 1:
    reflect(sys.argv[1])
elif missing:
    print("this example needs root:", "; ".join(missing))
else:
    on_veth()
