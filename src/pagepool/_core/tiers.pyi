# SPDX-License-Identifier: MIT
from pagepool._core.page import Home
from pagepool._core.ptr_ring import PtrRing

class Tiers(Home):
    ring: PtrRing
