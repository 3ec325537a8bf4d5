# SPDX-License-Identifier: MIT
"""The compiled filter, run by the kernel, against the specification; and the specification against libpcap."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from filter_cases import MACS, expressions, frames, primitives, untagged_primitives
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pcap import PcapFilter

from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap, XskMap
from pagepool.drivers.af_xdp.bpf_program import XdpProgram
from pagepool.drivers.af_xdp.filter import FilterError, Node, matches, parse_filter
from pagepool.drivers.af_xdp.filter.grammar import MAX_PRIMITIVES
from pagepool.drivers.af_xdp.xdp_program import steering_code
from pagepool.testing.xsk_map import xsk_map

XDP_PASS, XDP_REDIRECT = 2, 4
SLOW_START = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def parsed(expression: str) -> Node | None:
    """Return None for what is too much of a good thing: a third tag, too many or too deep."""
    try:
        return parse_filter(expression)
    except FilterError:
        return None


@pytest.fixture(scope="module")
def maps() -> Iterator[tuple[XskMap, PerCpuArrayMap]]:
    with xsk_map() as xsks, PerCpuArrayMap(3) as counters:
        yield xsks, counters


@pytest.mark.needs_root
@pytest.mark.needs_af_xdp
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW_START)
@given(expression=expressions(primitives, 16), some=st.lists(frames(), min_size=1, max_size=24))
def test_the_kernel_decides_as_the_specification(
    expression: str, some: list[bytes], maps: tuple[XskMap, PerCpuArrayMap]
) -> None:
    node = parsed(expression)
    assume(node is not None)
    assert node is not None
    with XdpProgram(steering_code(*maps, expression)) as program:
        for frame in some:
            verdict = program.verdict(frame)
            assert verdict == (XDP_REDIRECT if matches(node, frame) else XDP_PASS), frame.hex()


@pytest.mark.needs_libpcap
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW_START)
@given(st.data())
def test_whole_frames_mean_what_they_mean_to_libpcap(data: st.DataObject) -> None:
    """With as many tags as the filter names, and without extension headers, the two are the same."""
    expression = data.draw(expressions(untagged_primitives))
    tags = data.draw(st.integers(0, 2))
    for _ in range(tags):
        vlan = data.draw(st.sampled_from(("vlan", "vlan 100", "vlan 1")))
        expression = f"{vlan} and ({expression})" if not expression.startswith("vlan") else f"{vlan} and {expression}"
    with PcapFilter(expression) as reference:
        for frame in data.draw(st.lists(frames(tags=tags, odd=False), min_size=1, max_size=12)):
            assert matches(expression, frame) == reference.matches(frame), (expression, frame.hex())


@pytest.mark.needs_root
@pytest.mark.needs_af_xdp
@pytest.mark.parametrize("joint", ["and", "or", "and not", "or not"])
@pytest.mark.parametrize(
    "primitive",
    [
        "src and dst net 2001:db8::/63",
        "portrange 1-{}",
        f"ether host {MACS[0]}",
        "vlan {}",
        "ip6 proto {}",
        "ip host 10.0.0.{}",
        "less {}",
        "(udp port {} or not vlan 7 or tcp dst port {} and not arp)",
    ],
)
def test_the_longest_filter_passes_the_verifier(
    primitive: str, joint: str, maps: tuple[XskMap, PerCpuArrayMap]
) -> None:
    nr_parts = MAX_PRIMITIVES // (4 if "(" in primitive else 1)
    if "vlan {}" in primitive and joint == "and":
        nr_parts = 2  # one tag each
    expression = f" {joint} ".join(primitive.replace("{}", str(index % 250 + 1)) for index in range(nr_parts))
    code = steering_code(*maps, expression, generic=True)
    XdpProgram(code).close()


@pytest.mark.needs_root
@pytest.mark.needs_af_xdp
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW_START)
@given(st.lists(expressions(primitives), min_size=60, max_size=60))
def test_long_mixed_filters_pass_the_verifier(maps: tuple[XskMap, PerCpuArrayMap], parts: list[str]) -> None:
    expression = ""
    for index, part in enumerate(parts):
        longer = f"({part})" if not expression else f"({expression}) {'and' if index % 3 else 'or'} ({part})"
        if parsed(longer) is not None:
            expression = longer
    XdpProgram(steering_code(*maps, expression or "all")).close()
