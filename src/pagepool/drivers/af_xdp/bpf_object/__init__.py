# SPDX-License-Identifier: MIT
"""A user's own XDP program out of an object file, as clang makes it (``clang -O2 -g -target bpf -c``).

`elf` reads the file, `btf` the maps that it declares, `maps` makes them, `xdp_object` joins maps and code and loads it.
Public are `XdpObject`, `BpfMap` and `ObjectFileError`.
"""

from pagepool.drivers.af_xdp.bpf_object.elf import ObjectFileError
from pagepool.drivers.af_xdp.bpf_object.maps import BpfMap
from pagepool.drivers.af_xdp.bpf_object.xdp_object import XdpObject

__all__ = ["BpfMap", "ObjectFileError", "XdpObject"]
