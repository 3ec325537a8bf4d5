# SPDX-License-Identifier: MIT
from typing import Any

class DmaMap:
    dev: Any
    dma_dir: Any
    granularity: int
    maps: int
    unmaps: int
    def __init__(self, base_vaddr: int, nr_slabs: int, dev: Any, dma_dir: Any) -> None: ...
    def unmap_slab(self, index: int) -> None: ...
    def unmap_all(self) -> None: ...
