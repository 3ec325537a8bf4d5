# SPDX-License-Identifier: MIT
"""A Debian kernel, unpacked: its uncompressed image and the modules we want with all they depend on.

QEMU starts the uncompressed ``vmlinux`` by its PVH entry, 1.3 s sooner than the kernel would unpack itself in
emulation.
"""

from __future__ import annotations

import gzip
import lzma
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

from . import hosttools

# Offsets in the header of a bzImage: Documentation/arch/x86/boot.rst of the kernel.
SETUP_SECTS, PAYLOAD_OFFSET = 0x1F1, 0x248
SECTOR_BYTES = 512
PACKERS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}


@dataclass(frozen=True)
class Kernel:
    """One kernel out of an unpacked ``linux-image`` package.

    Parameters
    ----------
    tree : Path
        The package set, unpacked.
    tools : Path
        A tree with ``zstd`` and ``lz4``.
    """

    tree: Path
    tools: Path
    _modules: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    @property
    def release(self) -> str:
        """What ``uname -r`` will say, such as ``6.1.0-56-cloud-amd64``."""
        return self._module_folder.name

    @property
    def _module_folder(self) -> Path:
        return next(path.parent for prefix in ("usr", ".") for path in self.tree.glob(f"{prefix}/lib/modules/*/kernel"))

    @property
    def _bzimage(self) -> Path:
        beside_modules = self._module_folder / "vmlinuz"  # since Debian's 7.x; in /boot before
        return beside_modules if beside_modules.exists() else self.tree / "boot" / f"vmlinuz-{self.release}"

    def vmlinux(self, folder: Path) -> Path:
        """Return the uncompressed image, cut out of the package's bzImage into ``folder`` the first time."""
        path = folder / f"vmlinux-{self.release}"
        if not path.exists():
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(_unpack_payload(self._bzimage.read_bytes(), self.tools))
            partial.rename(path)
        return path

    def modules(self, wanted: list[str]) -> list[tuple[str, bytes]]:
        """Return (name, uncompressed content) of ``wanted`` and of all they depend on, in order of loading.

        Names that are built in, or that this kernel does not have, are left out: suites say what they need.
        """
        if not self._modules:
            for path in self._module_folder.glob("kernel/**/*.ko*"):
                self._modules[path.name.partition(".ko")[0].replace("-", "_")] = path
        found: dict[str, bytes] = {}
        for name in wanted:
            self._add_module(name, found)
        return list(found.items())

    def _add_module(self, name: str, found: dict[str, bytes]) -> None:
        name = name.replace("-", "_")  # dependencies are written either way
        if name in found or name not in self._modules:
            return
        content = self._read_module(self._modules[name])
        for other in _depends(content):
            self._add_module(other, found)
        found[name] = content

    def _read_module(self, path: Path) -> bytes:
        content = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(content)
        if path.suffix == ".zst":
            return hosttools.decompress(self.tools, "zstd", content)
        return content


def load_order(modules: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """Return (name, content) of ``modules``, each after those of them that it depends on."""
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in modules and name not in ordered:
            for other in _depends(modules[name]):
                add(other)
            ordered[name] = modules[name]

    for name in modules:
        add(name)
    return list(ordered.items())


def _depends(module: bytes) -> list[str]:
    """Return the names of the modules that one says it depends on, with underscores."""
    depends = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    return depends[1].decode().replace("-", "_").split(",") if depends and depends[1] else []


def _unpack_payload(bzimage: bytes, tools: Path) -> bytes:
    """Return the ELF file inside a bzImage.

    The payload ends with its unpacked size, 4 bytes little endian: part of gzip's own format, added by the
    kernel's build to the others.
    """
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD_OFFSET)
    start = (bzimage[SETUP_SECTS] + 1) * SECTOR_BYTES + offset
    payload = bzimage[start : start + length]
    (unpacked_bytes,) = struct.unpack("<I", payload[-4:])
    if payload[:4] in PACKERS:
        elf = hosttools.decompress(tools, PACKERS[payload[:4]], payload[:-4])
    elif payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.decompress(payload[:-4])
    elif payload.startswith(b"\x1f\x8b"):
        elf = gzip.decompress(payload)
    else:
        raise ValueError(f"kernel image packed in an unknown way: {payload[:6].hex()}")
    if len(elf) != unpacked_bytes or not elf.startswith(b"\x7fELF"):
        raise ValueError(f"kernel image unpacks to {len(elf)} bytes, not to an ELF file of {unpacked_bytes}")
    return elf
