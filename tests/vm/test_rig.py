# SPDX-License-Identifier: MIT
"""The rig's own tests: nothing is downloaded and nothing is booted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .guest.support.frames import HEADER_BYTES, echo_of, make_frame
from .rig import crossing, hosttools, packages, qemu
from .rig.apt import Mirror, Suite, machine_mirror
from .rig.boots import BOOTS
from .rig.cpio import CpioWriter
from .rig.devices import DEVICES, NICS
from .rig.discovery import GuestTest, discover, modules_of
from .rig.frames import FramePort
from .rig.kernel import load_order
from .rig.packages import PackageCache, PackageSet
from .rig.results import Outcome, Results
from .rig.unavailable import Unavailable

BOTH = [Suite("trixie"), Suite("trixie-backports")]
OS_RELEASE = "ID=debian\nVERSION_CODENAME=bookworm\n"


def test_results_are_read_line_by_line() -> None:
    results = Results()
    for line in (
        'BOOT {"kernel": "6.1"}',
        *("SUITE dma", "RUN map", "mapped 3 pages", "PASS map"),
        *("RUN unmap[igb]", "Traceback", "FAIL unmap[igb]: OSError: 22", "SKIP late: no device", "RUN hang"),
    ):
        results.feed(line)
    assert results.boot == {"kernel": "6.1"}
    assert results.outcome("dma", "map", "") == Outcome("PASS", "", "mapped 3 pages")
    assert results.outcome("dma", "unmap[igb]", "") == Outcome("FAIL", "OSError: 22", "Traceback")
    assert results.outcome("dma", "late", "") == Outcome("SKIP", "no device")
    assert "still running when the machine ended: panic" in results.outcome("dma", "hang", "panic").message
    assert "no result from the guest" in results.outcome("dma", "never", "panic").message
    assert not results.done


def test_suites_are_found_without_importing_them(tmp_path: Path) -> None:
    (tmp_path / "nic.py").write_text(
        'import no_such_module\nBOOTS = ("a", "b")\ndef test_one(): ...\ndef helper(): ...\n'
        '@cases("igb", "e1000e")\n@only_on("b")\ndef test_two(model): ...\n'
    )
    found = [str(test) for test in discover(["a", "b", "c"], tmp_path)]
    assert found == ["a-nic-one", "b-nic-one", "b-nic-two[igb]", "b-nic-two[e1000e]"]


def test_modules_that_suites_want(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('MODULES = ("spy", "iommufd")\n')
    (tmp_path / "two.py").write_text('import no_such_module\nMODULES = ("spy",)\n')
    (tmp_path / "three.py").write_text("")
    assert modules_of(["two", "one", "three", "two"], tmp_path) == ["spy", "iommufd"]


def test_modules_load_after_what_they_depend_on() -> None:
    modules = {"a": b"depends=b-c,kernels_own\0", "b_c": b"x\0depends=d\0", "d": b"depends=\0"}
    assert [name for name, _ in load_order(modules)] == ["d", "b_c", "a"]


def test_programs_of_a_tree_start_one_another(tmp_path: Path) -> None:
    """`echo` and `sh` of this machine, copied into a tree with its loader and C library, stand for a compiler."""
    tree = tmp_path / "a tree"
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    for name in ("ld-linux-x86-64.so.2", "libc.so.6"):
        places = (Path("/", folder, name) for folder in hosttools.LIBRARY_FOLDERS)
        shutil.copy(next(path for path in places if path.exists()), libraries)
    (tree / "usr/bin").mkdir()
    shutil.copy("/bin/echo", tree / "usr/bin/echo")
    (tree / "usr/bin/script").write_text("#!/bin/sh\n")
    (tree / "usr/bin/script").chmod(0o755)
    for _ in range(2):  # again after the tree was moved
        hosttools.make_runnable(tree, ["usr/bin"])
        tree = tree.rename(tmp_path / "moved")
        hosttools.make_runnable(tree, ["usr/bin"])
        run = subprocess.run([tree / "usr/bin/echo", "two  words"], capture_output=True, text=True, check=True)
        assert run.stdout == "two  words\n"
        assert str(tree) in (tree / "usr/bin/echo").read_text()
    assert sorted(path.name for path in (tree / "usr/bin").iterdir()) == ["echo", "echo.elf", "script"]


def test_every_boot_has_the_smoke_suite() -> None:
    tests = discover([boot.name for boot in BOOTS])
    assert {GuestTest(boot.name, "smoke", "versions") for boot in BOOTS} <= set(tests)


def test_archive_is_read_by_cpio(tmp_path: Path) -> None:
    path = tmp_path / "a.cpio"
    with CpioWriter(path) as archive:
        archive.add_file("usr/bin/tool", b"#!", mode=0o755)
        archive.add_file("usr/bin/tool", b"second: ignored")
        archive.add_link("bin", "usr/bin")
    content = path.read_bytes()
    assert len(content) % 512 == 0
    assert content.count(b"070701") == 5
    assert (
        content.index(b"usr\0")
        < content.index(b"usr/bin\0")
        < content.index(b"usr/bin/tool\0")
        < content.index(b"TRAILER!!!")
    )
    assert b"ignored" not in content


def test_frames_are_good_ipv4_and_differ() -> None:
    frames = [make_frame(index, seed=3) for index in range(300)]
    assert len({frame[HEADER_BYTES:] for frame in frames}) == 300
    assert {len(frame) % 2 for frame in frames} == {0, 1}
    for frame in frames:
        words = [int.from_bytes(frame[at : at + 2], "big") for at in range(14, 34, 2)]
        total = sum(words)
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
        assert int.from_bytes(frame[16:18], "big") == len(frame) - 14
        assert echo_of(echo_of(frame)) == frame


def test_a_cable_carries_frames_and_counts_echoes() -> None:
    import socket
    import threading

    port = FramePort("52:54:00:00:00:01")
    nic = socket.socket(fileno=port.fileno_for_qemu())

    def echo() -> None:
        for index in range(50):
            frame = nic.recv(2048)
            nic.send(frame if index == 7 else echo_of(frame))  # one of them wrong: MACs not exchanged
        nic.send(echo_of(make_frame(7, destination=port.destination)))

    guest = threading.Thread(target=echo)
    guest.start()
    result = port.inject(50, window=8, seed=0, min_bytes=60, max_bytes=1514)
    guest.join()
    nic.detach()
    port.close()
    assert (result["echoed"], result["wrong"], result["lost"]) == (50, 1, 0)


def test_frames_cross_from_one_cable_to_another_and_faults_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest here forwards, but changes a frame, sends one back where it came from, and talks of its own accord."""
    import socket
    import threading

    monkeypatch.setattr(crossing, "QUIET_SECONDS", 0.5)
    ports = [FramePort(f"52:54:00:00:00:0{n}") for n in (1, 2)]
    nics = [socket.socket(fileno=port.fileno_for_qemu()) for port in ports]
    nics[1].send(b"\x33" * 12 + b"\x86\xdd" + bytes(40))

    def forward(here: socket.socket, there: socket.socket, bad: bool) -> None:
        for index in range(20):
            frame = here.recv(2048)
            if bad and index == 3:
                frame = frame[:-1] + bytes([frame[-1] ^ 1])
            (here if bad and index == 5 else there).send(frame)

    guest = [
        threading.Thread(target=forward, args=(*nics, True)),
        threading.Thread(target=forward, args=(*nics[::-1], False)),
    ]
    for thread in guest:
        thread.start()
    result = crossing.cross(*ports, count=20, window=8, seed=0, min_bytes=60, max_bytes=1514)
    for thread, nic, port in zip(guest, nics, ports, strict=True):
        thread.join()
        nic.detach()
        port.close()
    assert result == {"exact": 38, "wrong": 2, "lost": 2}


def test_mirror_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(OS_RELEASE)
    folder = tmp_path / "apt/sources.list.d"
    folder.mkdir(parents=True)
    with pytest.raises(Unavailable, match="no source for bookworm"):
        machine_mirror(tmp_path)
    (tmp_path / "apt/sources.list").write_text("deb [arch=amd64 signed-by=/k.gpg] http://m/debian bookworm main\n")
    assert machine_mirror(tmp_path) == Mirror("http://m/debian", "http://m/debian-security", "/k.gpg")
    (tmp_path / "apt/sources.list").unlink()
    (folder / "debian.sources").write_text(
        "Types: deb\nURIs: http://d/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.pgp\n\n"
        "Types: deb\nURIs: http://d/sec\nSuites: bookworm-security\n"
    )
    assert machine_mirror(tmp_path) == Mirror("http://d/debian", "http://d/sec", "/k.pgp")


def test_not_debian_is_said(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("ID=fedora\n")
    with pytest.raises(Unavailable, match="not Debian but fedora"):
        machine_mirror(tmp_path)


class Archive:
    """Stands for apt: answers without a network, or says that there is none."""

    asked = 0
    reachable = True

    def __init__(self, folder: Path, mirror: None) -> None:
        pass

    def update(self, suites: list[Suite]) -> None:
        if not self.reachable:
            raise Unavailable("no network")

    def resolve(self, suites: list[Suite], names: list[str], *, prefer: str) -> list[str]:
        type(self).asked += 1
        return [f"{name}_1" for name in names]

    def fetch(self, suites: list[Suite], files: list[str], tree: Path) -> None:
        tree.mkdir(parents=True)


def test_a_changed_set_is_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Archive, "asked", 0)
    monkeypatch.setattr(packages, "PrivateApt", Archive)
    monkeypatch.setattr(packages, "machine_mirror", lambda: None)
    sets = [PackageSet("tools", BOTH[:1], ["qemu"]), PackageSet("tools", BOTH[:1], ["qemu", "zstd"])]
    sets += [PackageSet("tools", BOTH, ["qemu"]), PackageSet("tools", BOTH, ["qemu"], prefer=BOTH[1].name)]
    first = PackageCache(tmp_path).tree(sets[0])
    assert PackageCache(tmp_path).tree(sets[0]) == first
    assert Archive.asked == 1, "the answer was kept"
    assert PackageCache(tmp_path).tree(sets[1]) != first
    for changed in sets[2:]:
        PackageCache(tmp_path).tree(changed)
    assert Archive.asked == 4
    monkeypatch.setattr(Archive, "reachable", False)
    assert PackageCache(tmp_path, refresh=True).tree(sets[3]).is_dir(), "an older answer to the same question"
    with pytest.raises(Unavailable, match="no network"):
        PackageCache(tmp_path, refresh=True).tree(PackageSet("tools", BOTH, ["gcc"]))


def test_command_line_names_every_device(tmp_path: Path) -> None:
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "ld-linux-x86-64.so.2").touch()
    files = qemu.Files(tmp_path, tmp_path / "vmlinux", tmp_path / "initrd")
    words = qemu.command_line(tmp_path, BOOTS[0], files, {nic.name: 10 + at for at, nic in enumerate(NICS)}, 9)
    assert [word for word in words if word.endswith("-dev") or "-dev," in word] == [
        next(word for word in words if f"id={device.name}-dev" in word) for device in DEVICES
    ]
    assert "kvm" not in subprocess.list2cmdline(words)
    assert any("mem-path=/proc/self/fd/9," in word for word in words), "shared memory with a name would stay behind"
    assert len({device.bdf for device in DEVICES}) == len(DEVICES)
