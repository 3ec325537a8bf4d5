# SPDX-License-Identifier: MIT
"""The filter language of AF_XDP queues: tcpdump's words for what a steering program should take.

`words` takes the text apart, `grammar` says in which order words make sense, `tree` has what they are made into,
`meaning` says what that means for a frame, and `code` makes instructions of it. Public are `parse_filter`, `matches`
and `FilterError`.
"""

from pagepool.drivers.af_xdp.filter.grammar import parse_filter
from pagepool.drivers.af_xdp.filter.meaning import matches
from pagepool.drivers.af_xdp.filter.tree import FilterError, Node

__all__ = ["FilterError", "Node", "matches", "parse_filter"]
