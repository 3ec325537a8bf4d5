# SPDX-License-Identifier: MIT
from array import array
from typing import Any, final

from pagepool._core.page_pool import PagePool

@final
class Lease:
    @property
    def pool(self) -> PagePool: ...
    offset: int
    length: int
    strided: bool
    @property
    def ids(self) -> array[int]: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
