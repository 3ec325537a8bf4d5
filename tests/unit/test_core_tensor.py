# SPDX-License-Identifier: MIT
"""Pages as tensors: DLPack, the array interface and the buffer protocol say the same, and the page comes home."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_doubles import Scripted, mapping, memory
from dlpack_consumer import IS_COPIED, READ_ONLY, Taken

from pagepool import Page, PagePool
from pagepool.dma import Bounce, Counting, HostDevice
from pagepool.errors import DeadPageError, PagePoolError

V1 = (1, 0)
NUMPY = tuple(map(int, np.__version__.split(".")[:2]))


@pytest.fixture
def pool() -> PagePool:
    return PagePool(memory=memory())


class Described:
    """What has an array interface and nothing else."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


class Old:
    """A page for consumers that know no versions, as NumPy before 2.1; a newer one makes a read-only array of it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.page.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.page.__dlpack_device__()


DOORS: dict[str, Callable[[Page], np.ndarray[Any, Any]]] = {
    "buffer": np.asarray,
    "dlpack": np.from_dlpack,
    "old dlpack": lambda page: np.from_dlpack(Old(page)),
    "array interface": lambda page: np.asarray(Described(page.__array_interface__)),
}


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Callable[[Page], np.ndarray[Any, Any]]:
    return DOORS[request.param]


# -- the same bytes, held as long as somebody looks ------------------------------------------------------------


def test_each_door_shows_the_page_itself(pool: PagePool, door: Callable[[Page], Any]) -> None:
    page = pool.alloc_pages()
    array = door(page)
    assert (array.dtype, array.shape, array.ctypes.data) == (np.uint8, (4096,), page.vaddr)
    page[5] = 77
    assert array[5] == 77


def test_the_page_comes_home_with_the_last_tensor_and_not_before(pool: PagePool, door: Callable[[Page], Any]) -> None:
    page = pool.alloc_pages()
    page[0] = 9
    number, array = page.id, door(page)
    page.put()
    assert pool.lent == 1
    other = pool.alloc_pages()
    assert other.id != number
    other[0] = 1
    assert array[0] == 9
    del array
    assert pool.lent == 1
    assert pool.alloc_pages().id == number
    pool.check()


def test_a_tensor_outlives_handle_and_pool(pool: PagePool, door: Callable[[Page], Any]) -> None:
    page = pool.alloc_pages()
    page[:3] = b"\1\2\3"
    array = door(page)
    del page
    pool.close()
    assert pool.lent == 1
    assert array[:3].tolist() == [1, 2, 3]
    del array
    assert pool.lent == 0
    pool.check()


def test_a_part_of_a_page_is_a_tensor_of_that_part(pool: PagePool, door: Callable[[Page], Any]) -> None:
    first, second = pool.alloc_frag(100), pool.alloc_frag(200)
    array = door(second)
    assert (array.shape, array.ctypes.data) == ((256,), second.vaddr)
    first.put()
    second.put()
    assert array.sum() >= 0
    assert pool.lent == 1
    del array
    assert pool.lent == 0
    pool.check()


def test_pages_that_left_the_pool_are_tensors_too(pool: PagePool, door: Callable[[Page], Any]) -> None:
    page = pool.alloc_pages()
    array = door(page)
    foreign = pool.get_page(page)
    with pytest.raises(PagePoolError, match="other references"):
        pool.release_page(foreign)
    page.put()
    second = door(foreign)
    assert second.ctypes.data == array.ctypes.data
    foreign[0] = 4
    foreign.put()
    del array
    assert second[0] == 4
    detached = pool.alloc_pages()
    third = door(detached)
    pool.release_page(detached)
    detached[0] = 5
    detached.put()
    assert third[0] == 5
    free = pool.arena.nr_free_pages
    del second, third
    assert pool.arena.nr_free_pages == free + 2
    pool.check()
    pool.arena.check()


def test_a_large_page_is_one_tensor(pool: PagePool) -> None:
    large = PagePool(memory=pool.memory, order=9, pool_size=4)
    page = large.alloc_pages()
    array = np.from_dlpack(page).view(np.float32).reshape(512, 1024)
    assert array.ctypes.data == page.vaddr
    page.put()
    assert (large.lent, array.size) == (1, 512 * 1024)
    del array
    assert large.lent == 0


# -- the capsule, byte by byte -----------------------------------------------------------------------------------


def test_the_versioned_capsule(pool: PagePool) -> None:
    page = pool.alloc_pages()
    page[:4] = b"pack"
    for asked in (V1, (1, 3), (2, 0)):
        taken = Taken(page.__dlpack__(max_version=asked))
        assert (taken.versioned, taken.version, taken.flags) == (True, V1, 0)
        assert (taken.data, taken.byte_offset, taken.device) == (page.vaddr, 0, (1, 0))
        assert (taken.dtype, taken.shape, taken.strides) == ((1, 8, 1), (4096,), (1,))
        assert taken.read(4) == b"pack"
        taken.write(b"TACK")
        assert page[:4] == b"TACK"
        page[:4] = b"pack"
        taken.delete()
    assert page.refcount == 1


def test_the_capsule_for_those_who_know_no_versions(pool: PagePool) -> None:
    page = pool.alloc_pages()
    for asked in (None, (0, 8)):
        taken = Taken(page.__dlpack__(max_version=asked))
        assert (taken.versioned, taken.data, taken.shape, taken.strides) == (False, page.vaddr, (4096,), (1,))
        assert (taken.dtype, taken.device, page.refcount) == ((1, 8, 1), (1, 0), 2)
        taken.delete()
    assert page.refcount == 1


def test_an_empty_page_has_no_pointer(pool: PagePool) -> None:
    (number,) = pool.alloc_bulk(1)
    page = pool.page(number, 64, 0)
    taken = Taken(page.__dlpack__(max_version=V1))
    assert (taken.data, taken.shape) == (None, (0,))
    taken.delete()
    copied = Taken(page.__dlpack__(copy=True))
    assert (copied.data, copied.shape) == (None, (0,))
    copied.delete()
    assert np.from_dlpack(page).size == 0


@pytest.mark.parametrize("version", [None, V1])
def test_a_capsule_that_nobody_takes_lets_go_by_itself(pool: PagePool, version: tuple[int, int] | None) -> None:
    page = pool.alloc_pages()
    capsule = page.__dlpack__(max_version=version)
    assert page.refcount == 2
    del capsule
    assert page.refcount == 1
    capsule = page.__dlpack__(max_version=version)
    del page
    assert pool.lent == 1
    del capsule
    assert pool.lent == 0


@pytest.mark.parametrize("version", [None, V1])
def test_a_capsule_is_taken_once(pool: PagePool, version: tuple[int, int] | None) -> None:
    page = pool.alloc_pages()
    capsule = page.__dlpack__(max_version=version)
    taken = Taken(capsule)
    with pytest.raises(ValueError, match="used_dltensor"):
        Taken(capsule)
    del capsule  # named "used_": its death is not the tensor's
    assert page.refcount == 2
    page.put()
    assert pool.lent == 1
    taken.delete()
    assert pool.lent == 0
    pool.check()


def test_the_deleter_runs_in_any_thread(pool: PagePool) -> None:
    pages = [pool.alloc_pages() for _ in range(8)]
    taken = [Taken(page.__dlpack__(max_version=V1)) for page in pages]
    for page in pages:
        page.put()
    assert pool.lent == 8
    threads = [threading.Thread(target=each.delete) for each in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (pool.lent, pool.stats().ring) == (0, 8)
    pool.check()


def test_the_deleter_runs_while_an_exception_is_on_its_way(pool: PagePool) -> None:
    page = pool.alloc_pages()

    def fail() -> None:
        kept = np.from_dlpack(page)
        page.put()
        raise ValueError(f"mine, with {kept.size} bytes")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert pool.lent == 0


def test_a_device_that_fails_in_the_deleter_is_reported_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Scripted(needs_sync=True)
    pool = PagePool(memory=memory(), **mapping(device, sync=64))
    page = pool.alloc_pages()
    taken = Taken(page.__dlpack__(max_version=V1))
    page.put()
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(report.exc_value))

    def refuse(_: int) -> None:
        raise OSError("no sync today")

    device.on_sync = refuse
    taken.delete()
    assert [str(error) for error in seen] == ["no sync today"]
    assert (pool.lent, pool.stats().left_sync) == (0, 1)
    pool.check()


# -- what is asked ------------------------------------------------------------------------------------------------


def test_a_copy_is_the_consumers_own_and_keeps_no_page(pool: PagePool) -> None:
    page = pool.alloc_pages()
    page[:4] = b"mine"
    for source in (page, page.toreadonly()):
        taken = Taken(source.__dlpack__(max_version=V1, copy=True))
        assert taken.flags == IS_COPIED
        assert taken.data not in (None, page.vaddr)
        assert taken.read(4) == b"mine"
        taken.write(b"your")
        taken.delete()
        old = Taken(source.__dlpack__(copy=True))
        assert (old.versioned, old.read(4)) == (False, b"mine")
        old.delete()
    del source
    assert page.refcount == 1
    kept = Taken(page.__dlpack__(max_version=V1, copy=True))
    page.put()
    assert pool.lent == 0
    assert kept.read(4) == b"mine"
    kept.delete()


def test_no_copy_is_what_one_gets_anyway(pool: PagePool) -> None:
    page = pool.alloc_pages()
    taken = Taken(page.__dlpack__(max_version=V1, copy=False, dl_device=(1, 0), stream=None))
    assert (taken.data, taken.flags) == (page.vaddr, 0)
    taken.delete()


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"stream": 1}, BufferError, "stream 1"),
        ({"stream": -1}, BufferError, "no streams"),
        ({"dl_device": (2, 0)}, BufferError, r"dl_device \(2, 0\): this is host memory"),
        ({"dl_device": (3, 0)}, BufferError, r"dl_device \(3, 0\)"),
        ({"dl_device": (1, 1)}, BufferError, "dl_device"),
        ({"dl_device": (2, 0), "copy": True}, BufferError, "host memory"),
        ({"dl_device": 1}, TypeError, "pair of ints"),
        ({"dl_device": ("cpu", 0)}, TypeError, "pair of ints"),
        ({"max_version": 1}, TypeError, "max_version is a pair"),
        ({"max_version": (1,)}, TypeError, "max_version is a pair"),
        ({"max_version": ("a", "b")}, TypeError, "max_version is a pair"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_what_cannot_be_done_is_refused_and_holds_nothing(
    pool: PagePool, asked: dict[str, Any], error: type[Exception], text: str
) -> None:
    page = pool.alloc_pages()
    with pytest.raises(error, match=text):
        page.__dlpack__(**asked)
    assert page.refcount == 1


def test_a_dead_handle_exports_nothing(pool: PagePool) -> None:
    page = pool.alloc_pages()
    page.put()
    for use in (page.__dlpack__, lambda: page.__array_interface__, page.toreadonly, lambda: np.from_dlpack(page)):
        with pytest.raises(DeadPageError, match="was put"):
            use()
    assert pool.lent == 0


# -- read-only ----------------------------------------------------------------------------------------------------


def test_a_read_only_handle_says_so_at_each_door(pool: PagePool) -> None:
    page = pool.alloc_pages()
    reader = page.toreadonly()
    assert (page.readonly, reader.readonly) == (False, True)
    assert "read-only" in repr(reader)
    assert memoryview(reader).readonly
    assert not np.asarray(reader).flags.writeable
    assert not np.asarray(Described(reader.__array_interface__)).flags.writeable
    taken = Taken(reader.__dlpack__(max_version=V1))
    assert taken.flags == READ_ONLY
    taken.delete()
    with pytest.raises(BufferError, match="read-only, which a capsule without a version cannot say"):
        reader.__dlpack__()
    with pytest.raises(TypeError, match="read-only"):
        reader[0] = 1
    with pytest.raises(TypeError, match="read-only"):
        reader[0:2] = b"no"
    page[0] = 8
    assert reader[0] == 8
    assert np.asarray(page).flags.writeable


def test_numpy_hears_it(pool: PagePool) -> None:
    """It learnt to ask for a version with 2.1, and to believe what it is told with 2.2: before, all is read-only."""
    page = pool.alloc_pages()
    reader = page.toreadonly()
    assert np.from_dlpack(page).flags.writeable == (NUMPY >= (2, 2))
    if NUMPY < (2, 1):
        with pytest.raises(BufferError, match="max_version"):
            np.from_dlpack(reader)
        return
    array = np.from_dlpack(reader)
    assert not array.flags.writeable
    assert array.ctypes.data == np.from_dlpack(page, copy=False).ctypes.data == page.vaddr
    own = np.from_dlpack(reader, copy=True)
    assert own.flags.writeable == (NUMPY >= (2, 2))
    assert own.ctypes.data != page.vaddr


def test_a_read_only_handle_holds_the_page_by_itself(pool: PagePool) -> None:
    page = pool.alloc_pages()
    reader = page.toreadonly()
    again = reader.toreadonly()
    page.put()
    reader.put()
    with pytest.raises(DeadPageError):
        reader[0]
    assert pool.lent == 1
    del again
    assert pool.lent == 0
    foreign_page = pool.alloc_pages()
    foreign = pool.get_page(foreign_page)
    foreign_page.put()
    reader = foreign.toreadonly()
    foreign.put()
    free = pool.arena.nr_free_pages
    assert reader[0] in range(256)
    reader.put()
    assert pool.arena.nr_free_pages == free + 1
    pool.check()


def test_a_page_with_a_reader_does_not_leave_the_pool(pool: PagePool) -> None:
    page = pool.alloc_pages()
    reader = page.toreadonly()
    with pytest.raises(PagePoolError, match="other references"):
        pool.release_page(page)
    reader.put()
    pool.release_page(page)


def test_a_strict_pool_names_a_reader_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PagePool(memory=memory(), strict=True)
    page = pool.alloc_pages()
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(str(report.exc_value)))
    reader = page.toreadonly()
    del reader
    assert len(seen) == 1
    array = np.from_dlpack(page)
    page.put()
    del array
    assert len(seen) == 1
    assert pool.lent == 0


# -- the array interface ------------------------------------------------------------------------------------------


def test_the_interface_holds_the_page_and_is_no_pair(pool: PagePool) -> None:
    page = pool.alloc_pages()
    interface = page.__array_interface__
    assert {key: interface[key] for key in ("version", "shape", "typestr", "strides")} == {
        "version": 3,
        "shape": (4096,),
        "typestr": "|u1",
        "strides": None,
    }
    with pytest.raises(TypeError):
        interface["data"][0]
    assert page.refcount == 2
    page.put()
    assert pool.lent == 1
    array = np.asarray(Described(interface))
    del interface
    assert pool.lent == 1
    array[0] = 1
    del array
    assert pool.lent == 0


# -- whose memory it is -------------------------------------------------------------------------------------------


class Pinned(HostDevice):
    """A device that says its mapping pins host memory for CUDA."""

    dlpack_device: Any = (3, 0)


def test_memory_that_a_device_has_pinned_says_so(pool: PagePool) -> None:
    pinned = PagePool(memory=memory(), **mapping(Pinned("cuda:0")))
    page = pinned.alloc_pages()
    assert page.__dlpack_device__() == (3, 0)
    for asked, told in ((None, (3, 0)), ((3, 0), (3, 0)), ((1, 0), (1, 0))):
        taken = Taken(page.__dlpack__(max_version=V1, dl_device=asked))
        assert (taken.device, taken.data) == (told, page.vaddr)
        taken.delete()
    assert np.from_dlpack(page).ctypes.data == page.vaddr
    assert pool.alloc_pages().__dlpack_device__() == (1, 0)


def test_layers_pass_it_on_and_bounce_buffers_do_not() -> None:
    layered = PagePool(memory=memory(), **mapping(Counting(Pinned("cuda:0"))))
    assert layered.alloc_pages().__dlpack_device__() == (3, 0)
    bounced = PagePool(memory=memory(), **mapping(Bounce(Pinned("cuda:0"))))
    assert bounced.alloc_pages().__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("named", [(2, 0), (3,), "cuda", None])
def test_a_device_that_claims_what_no_page_is(named: Any) -> None:
    device = Pinned("odd")
    device.dlpack_device = named
    pool = PagePool(memory=memory(), **mapping(device))
    page = pool.alloc_pages()
    for use in (page.__dlpack__, page.__dlpack_device__):
        with pytest.raises(BufferError, match="a page is host memory"):
            use()
    assert page.refcount == 1


# -- the end of the process ---------------------------------------------------------------------------------------


def _run(program: str) -> subprocess.CompletedProcess[str]:
    here = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {here!r})\n" + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60)


def test_tensors_may_outlive_the_interpreter() -> None:
    result = _run(
        """
        import ctypes, threading
        import pagepool as pp
        from dlpack_consumer import Taken
        pool = pp.PagePool()
        page = pool.alloc_pages()
        kept = [page.__dlpack__(), page.__dlpack__(max_version=(1, 0)), page.__array_interface__, page.toreadonly()]
        # A tensor of static storage in C++: the C library calls its deleter after the interpreter has gone.
        libc = ctypes.CDLL(None)
        libc.__cxa_atexit.argtypes = [ctypes.c_void_p] * 3
        for version in (None, (1, 0)):
            taken = Taken(page.__dlpack__(max_version=version))
            assert libc.__cxa_atexit(taken.deleter_at, taken.at, None) == 0
        page.put()
        assert pool.lent == 1
        print("out")
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "out\n", "")


@pytest.mark.parametrize("fields", ["", "pool_size=1", "track=True"])
def test_the_interpreter_may_end_while_a_library_lets_go(fields: str) -> None:
    program = f"""
        import ctypes, threading, time
        import pagepool as pp
        from dlpack_consumer import Taken
        pool = pp.PagePool({fields})
        taken = []
        for number in range(64):
            with pool.alloc_pages() as page:
                taken.append(Taken(page.__dlpack__(max_version=(1, 0) if number % 2 else None)))
        # Threads of C, which call a deleter without ever having had the GIL, while the interpreter ends around them.
        libc = ctypes.CDLL(None)
        for each in taken[:16]:
            assert libc.pthread_create(
                ctypes.byref(ctypes.c_ulong()), None, ctypes.c_void_p(each.deleter_at), ctypes.c_void_p(each.at)
            ) == 0
        def drop():
            for each in taken[16:]:
                time.sleep(0.0005)
                each.delete()
        threading.Thread(target=drop, daemon=True).start()
        time.sleep(0.003)
        """
    for _ in range(3):
        result = _run(program)
        assert (result.returncode, result.stderr) == (0, "")


def test_it_imports_no_array_library() -> None:
    result = _run(
        """
        import sys
        import pagepool._core.page, pagepool._core.tensor
        core = [name for name in sys.modules if name.split(".")[0] in ("torch", "cupy", "jax")]
        print(core)
        """
    )
    assert result.stdout == "[]\n", result.stderr


def test_the_structs_have_the_size_of_dlpack_h() -> None:
    from dlpack_consumer import _Managed, _Tensor, _Versioned

    # 64-bit: pointers and int64 of 8 bytes, an enum of 4.
    assert [ctypes.sizeof(kind) for kind in (_Tensor, _Managed, _Versioned)] == [48, 64, 80]
