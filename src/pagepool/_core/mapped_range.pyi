# SPDX-License-Identifier: MIT
from typing import final

@final
class MappedRange:
    def __init__(self, vaddr: int, size_bytes: int) -> None: ...
    @property
    def vaddr(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
