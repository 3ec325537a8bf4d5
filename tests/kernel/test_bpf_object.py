# SPDX-License-Identifier: MIT
"""A user's own XDP program: from C where there is clang, hand-made everywhere; its maps; and what is refused."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elf_writer import counting_program
from queues import SMALL, frame_to_near, take

from pagepool.drivers.af_xdp import AfXdpQueue, ObjectFileError, XdpObject
from pagepool.errors import DeviceError
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]
needs_clang = pytest.mark.needs_clang

SOURCES = Path(__file__).parent / "bpf"
Compile = Callable[..., Path]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Return a function that makes an object of a source in tests/kernel/bpf."""

    def compile(source: str, *options: str) -> Path:
        made = tmp_path / f"{source}.o"
        include = Path("/usr/include") / f"{os.uname().machine}-linux-gnu"  # where Debian keeps asm/
        command = ["clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", f"-I{include}", *options]
        subprocess.run([*command, "-c", str(SOURCES / f"{source}.c"), "-o", str(made)], check=True)
        return made

    return compile


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    path = tmp_path / "hand_made.o"
    path.write_bytes(counting_program())
    return path


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("veth", [{"gro": True}], indirect=True)
def test_a_program_by_its_file(veth: VethPair, by_hand: Path, mode: str) -> None:
    frame = frame_to_near(veth)
    with (
        AfXdpQueue("near", program=by_hand, mode=mode, **SMALL) as queue,  # type: ignore[arg-type]
        LiveGenerator(veth.far, frame) as generator,
    ):
        generator.send(200)
        assert take(queue, 200) == [frame] * 200
        assert queue.program is not None
        hits = queue.program.maps["hits"]
        assert hits[0] == 200
        assert queue.stats().steering.redirected == 200
        hits[0] = 7
        generator.send(1)
        # what the queue passes goes to the stack, and not to the program once more
        take(queue, 1, judge=lambda batch: batch.pass_())
        assert take(queue, 1, timeout=0.1) == []
        assert hits[0] == 8
    with pytest.raises(DeviceError, match="EBADF"):
        hits[0]
    assert open_descriptors("bpf") == 0


def open_descriptors(kind: str) -> int:
    """Count our descriptors of a kind."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += kind in os.readlink(entry)
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


@needs_clang
def test_allow_list_and_counters(veth: VethPair, compiled: Compile) -> None:
    wanted, other = frame_to_near(veth, dst_port=53), frame_to_near(veth, dst_port=54)
    with XdpObject(compiled("allow_list")) as program:
        assert set(program.maps) == {"allowed", "counters", "totals", ".bss", ".data", ".rodata"}
        allowed, counters = program.maps["allowed"], program.maps["counters"]
        with (
            AfXdpQueue("near", program=program, **SMALL) as queue,
            LiveGenerator(veth.far, wanted) as first,
            LiveGenerator(veth.far, other) as second,
        ):
            assert queue.program is program

            def send() -> list[bytes]:
                first.send(10)
                second.send(20)
                return take(queue, 99, timeout=0.3)

            assert send() == []
            allowed[53] = 1
            assert send() == [wanted] * 10
            allowed[54] = 1
            del allowed[53]
            assert send() == [other] * 20
            assert list(allowed) == [54]
            assert dict(allowed.items()) == {54: 1}
            assert 54 in allowed
            assert 53 not in allowed
            with pytest.raises(KeyError):
                allowed[53]
            with pytest.raises(KeyError):
                del allowed[53]
            assert (counters.sum(0), counters.sum(1)) == (3 * 30, 3 * 60)
            per_cpu = counters[0]
            assert isinstance(per_cpu, tuple)
            assert len(per_cpu) == (os.cpu_count() or 1)
            counters[0] = 0
            assert counters.sum(0) == 0
            assert struct.unpack("=QQ", program.maps["totals"][0]) == (30, 60)  # type: ignore[arg-type]
            assert program.maps[".bss"][0] == 90
            assert program.maps[".data"][0] == 3
            program.maps[".data"][0] = 5
            second.send(1)
            assert len(take(queue, 1)) == 1
            assert counters.sum(0) == 5
            assert (queue.stats().steering.redirected, queue.stats().steering.passed) == (31, 60)
            with pytest.raises(DeviceError, match="EPERM"):
                program.maps[".rodata"][0] = 1
    assert open_descriptors("bpf") == 0


@needs_clang
def test_a_program_by_its_name(veth: VethPair, compiled: Compile) -> None:
    path = compiled("old_maps")
    with pytest.raises(
        ObjectFileError, match=r"say which: nothing \(section xdp.frags\), everything \(section xdp/everything\)"
    ):
        XdpObject(path)
    with pytest.raises(ObjectFileError, match="no XDP program 'of_another_kind'; it has of_another_kind"):
        XdpObject(path, "of_another_kind")
    with XdpObject(path, "nothing") as nothing:
        assert nothing.frags
    frame = frame_to_near(veth)
    with (
        XdpObject(path, "everything") as program,
        AfXdpQueue("near", program=program, **SMALL) as queue,
        LiveGenerator(veth.far, frame) as generator,
    ):
        generator.send(5)
        assert take(queue, 5) == [frame] * 5
        assert [program.maps["verdicts"][key] for key in program.maps["verdicts"]] == [0, 5, 0, 0]


@needs_clang
@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("NO_XSKMAP", "need one BPF_MAP_TYPE_XSKMAP, and it has none"),
        ("PINNED", "map xsks_map: pinned maps are not supported"),
        ("STRANGE_MEMBER", "a member 'colour' that is not known"),
        ("KSYM", "'kernel_function' is extern"),
        ("CORE", "CO-RE relocations"),
        ("NO_XDP", r"no program in a section named xdp; it has broken \(section socket\)"),
    ],
)
def test_what_a_file_may_not_have(compiled: Compile, mistake: str, says: str) -> None:
    path = compiled("refused", f"-D{mistake}")
    with pytest.raises(ObjectFileError, match=says) as caught:
        XdpObject(path)
    assert str(path) in str(caught.value)
    assert open_descriptors("bpf") == 0


@needs_clang
def test_the_verifier_is_quoted(veth: VethPair, compiled: Compile) -> None:
    with pytest.raises(DeviceError, match=r"EACCES; verifier: .*invalid access to packet"):
        AfXdpQueue("near", program=compiled("refused", "-DBEYOND"), **SMALL)
    assert open_descriptors("bpf") == 0
    AfXdpQueue("near", **SMALL).close()


@needs_clang
def test_maps_without_btf(compiled: Compile) -> None:
    with pytest.raises(ObjectFileError, match="clang -g"):
        XdpObject(compiled("allow_list", "-g0"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"machine": 62}, "it is for EM_X86_64, not BPF"),
        ({"section": "tc"}, r"no program in a section named xdp; it has program \(section tc\)"),
        ({"relocation": 9}, "a relocation of type 9 to 'hits' in maps is not known"),
    ],
)
def test_hand_made_mistakes(tmp_path: Path, options: dict[str, object], says: str) -> None:
    path = tmp_path / "mistake.o"
    path.write_bytes(counting_program(**options))
    with pytest.raises(ObjectFileError, match=says):
        XdpObject(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "some.o"
    for content in (b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\2\1\1" + bytes(57)):
        path.write_bytes(content)
        with pytest.raises(ObjectFileError, match=r"some\.o: "):
            XdpObject(path)
    with pytest.raises(FileNotFoundError):
        XdpObject(tmp_path / "missing.o")


def test_damaged_files_are_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever a byte is changed to: an error that names the file, the kernel's refusal, or a program that loads."""
    whole = counting_program()
    path = tmp_path / "damaged.o"
    chance = random.Random(4711)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            with XdpObject(path) as program, program.load():
                pass
        except (ObjectFileError, DeviceError):
            continue
    assert open_descriptors("bpf") == 0


@pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)
def test_queues_of_an_interface_share_the_program(veth: VethPair, by_hand: Path) -> None:
    with AfXdpQueue("near", 0, program=by_hand, **SMALL) as first:
        with AfXdpQueue("near", 1, program=str(by_hand), **SMALL) as second:
            assert first.program is second.program
        with pytest.raises(ValueError, match="all its queues share it"):
            AfXdpQueue("near", 1, **SMALL)
    with AfXdpQueue("near", 0, **SMALL), pytest.raises(ValueError, match="with filters"):
        AfXdpQueue("near", 1, program=by_hand, **SMALL)
    with pytest.raises(ValueError, match="leave filter= away"):
        AfXdpQueue("near", program=by_hand, filter="udp", **SMALL)
    with (
        XdpObject(by_hand) as program,
        AfXdpQueue("near", program=program, **SMALL),
        VethPair() as other,
        other.near.ns,
        pytest.raises(ValueError, match="on another interface"),
    ):
        AfXdpQueue("near", program=program, **SMALL)


def test_maps_refuse_what_does_not_fit(by_hand: Path) -> None:
    with XdpObject(by_hand) as program:
        hits = program.maps["hits"]
        hits[b"\0\0\0\0"] = b"12345678"
        assert hits[0] == int.from_bytes(b"12345678", "little")
        hits[0] = -1
        assert hits[0] == 2**64 - 1
        for key in (b"1", b"12345"):
            with pytest.raises(ValueError, match="the key is 4 bytes"):
                hits[key]
        with pytest.raises(ValueError, match="does not fit 8 bytes"):
            hits[0] = 2**64
        with pytest.raises(ValueError, match="the value is 8 bytes, not 3"):
            hits[0] = b"123"
        with pytest.raises(ValueError, match="2 values"):
            hits[0] = [1, 2]
        with pytest.raises(KeyError):
            hits[1]
        with pytest.raises(DeviceError, match="E2BIG"):
            hits[1] = 1
        with pytest.raises(DeviceError, match="EINVAL"):
            del hits[0]
        assert list(hits) == [0]
