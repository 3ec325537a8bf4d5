# SPDX-License-Identifier: MIT
from typing import Any

CPU_DEVICE: tuple[int, int]

class HeldBuffer:
    def __init__(self, exporter: Any) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def array_interface(exporter: Any) -> dict[str, Any]: ...
def capsule(
    exporter: Any,
    *,
    stream: None = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None,
    copy: bool | None = None,
    device: tuple[int, int] = (1, 0),
    is_copy: bool = False,
) -> Any: ...
def host_device(device: Any) -> tuple[int, int]: ...
