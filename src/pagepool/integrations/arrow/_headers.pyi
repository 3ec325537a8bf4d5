# SPDX-License-Identifier: MIT
from typing import Any

HAS_ETHERTYPE: int
HAS_VLAN: int
HAS_IP: int
HAS_PROTO: int
HAS_SRC_PORT: int
HAS_DST_PORT: int
IS_IPV6: int

def read_headers(flat: Any, starts: Any, lengths: Any, out: Any) -> None: ...
def address_views(headers: Any, destination: bool, views: Any, data: Any) -> int: ...
