# SPDX-License-Identifier: MIT
"""How a pool ends: closed, dropped, in a cycle, at the interpreter's exit; with pages at home and with pages out."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest
from core_doubles import Scripted, mapping, memory, used_pages

import pagepool
from pagepool import PagePool
from pagepool._core import registry
from pagepool.errors import PageLeakWarning, PagePoolError, PoolBusyError, PoolClosedError


def test_close_gives_everything_idle_back() -> None:
    pool = PagePool(memory=memory())
    pool.put_bulk(pool.alloc_bulk(300))
    pool.alloc_frag(100)
    assert used_pages(pool) > 0
    pool.close()
    assert (pool.closed, pool.inflight, pool.lent, used_pages(pool), pool.detach_time) == (True, 0, 0, 0, None)
    pool.close()


def test_a_late_put_is_safe_whoever_and_however() -> None:
    pool = PagePool(memory=memory())
    pages = [pool.alloc_pages() for _ in range(6)]
    ids = pool.alloc_bulk(2)
    view = memoryview(pages[0])
    fragment = pool.alloc_frag(64)
    pool.close()
    assert (pool.lent, pool.inflight) == (9, 9)
    assert pool.detach_time is not None
    pool.put_page(pages[0])
    pool.recycle_direct(pages[1])
    with pages[2]:
        pass
    thread = threading.Thread(target=pages[3].put)
    thread.start()
    thread.join()
    del pages[4]
    assert pool.put_bulk(ids) == 2
    view[0] = 1
    view.release()
    pages.clear()
    assert fragment is not None
    fragment.put()
    pool.check()
    assert (pool.inflight, used_pages(pool), pool.stats().left_closed) == (0, 0, pool.stats().release_cnt)


def test_two_who_close_at_once_close_once() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    pool.alloc_pages().put()

    def close_too(dma_addr: int) -> None:
        device.on_unmap = None
        thread = threading.Thread(target=pool.close)
        thread.start()
        thread.join()

    device.on_unmap = close_too
    pool.close()
    assert (pool.closed, pool.users, pool.inflight, device.mapped, device.unmapped_twice) == (True, 0, 0, {}, [])
    with pytest.raises(PagePoolError, match="no users left"):
        pool.put_user()


def test_a_close_that_a_device_refuses_to_help_with_is_over_all_the_same() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    pool.alloc_pages().put()

    def refuse(dma_addr: int) -> None:
        device.on_unmap = None
        raise RuntimeError("not now")

    device.on_unmap = refuse
    with pytest.raises(RuntimeError, match="not now"):
        pool.close()
    assert (pool.closed, pool.users, pool.inflight) == (True, 0, 0)
    pool.close()


def test_the_owner_gets_nothing_from_a_pool_that_another_thread_is_closing() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    pool.put_bulk(pool.alloc_bulk(200))  # some in the cache, some in the ring
    lent = pool.alloc_pages()
    closing, tried = threading.Event(), threading.Event()

    def stop(dma_addr: int) -> None:
        device.on_unmap = None
        closing.set()
        assert tried.wait(30)

    device.on_unmap = stop
    thread = threading.Thread(target=pool.close)
    thread.start()
    assert closing.wait(30)
    for door in (pool.alloc_pages, pool.dev_alloc_pages, lambda: pool.alloc_bulk(3), lambda: pool.alloc_frag(64)):
        with pytest.raises(PoolClosedError):
            door()
    assert [holder.count for holder in pool.holders()] == [1]
    lent.put()
    tried.set()
    thread.join(30)
    pool.check()
    assert (pool.inflight, device.mapped, device.unmapped_twice, used_pages(pool)) == (0, {}, [], 0)


def test_a_lent_page_is_free_only_when_its_device_has_let_go_of_it() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    pages = [pool.alloc_pages(), pool.alloc_pages()]
    watched = {page.dma_addr: page for page in pages}
    put: list[int] = []

    def put_it_now(dma_addr: int) -> None:
        if dma_addr in watched:  # still being unmapped: nobody may be given its memory
            before = used_pages(pool)
            watched[dma_addr].put()
            put.append(before - used_pages(pool))

    device.on_unmap = put_it_now
    pool.close()
    assert (put, pool.inflight, used_pages(pool), device.unmapped_twice) == ([0, 0], 0, 0, [])
    assert pool.stats().left_closed == pool.stats().release_cnt


def test_leaving_a_with_block_with_pages_out_warns_with_the_list() -> None:
    with (
        pytest.warns(PageLeakWarning, match=r"2 allocated at .*test_core_lifetime.py:\d+"),
        PagePool(memory=memory(), track=True) as pool,
    ):
        held = [pool.alloc_pages() for _ in range(2)]
    held.clear()
    assert pool.inflight == 0
    with PagePool(memory=memory()) as pool:
        pool.alloc_pages()


def test_an_exception_in_a_with_block_is_not_covered_by_the_warning() -> None:
    held = []

    def fail() -> None:
        with PagePool(memory=memory()) as pool:
            held.append(pool.alloc_pages())
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert held[0].is_live


def test_the_last_user_destroys() -> None:
    pool = PagePool(memory=memory())
    assert pool.get_user() is pool
    assert pool.users == 2
    pool.close()
    assert (pool.closed, pool.users) == (False, 1)
    pool.close()
    assert (pool.closed, pool.users) == (False, 1)
    assert pool.alloc_pages() is not None
    pool.put_user()
    assert (pool.closed, pool.users) == (True, 0)
    with pytest.raises(PagePoolError, match="no users left"):
        pool.put_user()
    pool.close()
    assert pool.users == 0


def test_drain_waits_for_a_thread_and_names_the_rest() -> None:
    pool = PagePool(memory=memory(), track=True)
    page, other = pool.alloc_pages(), pool.alloc_pages()
    other.put()
    timer = threading.Timer(0.05, page.put)
    timer.start()
    assert pool.drain(30) == []
    timer.join()
    page = pool.alloc_pages()
    (holder,) = pool.drain(0.01)
    assert (holder.count, holder.ids) == (1, (page.id,))
    assert "in test_drain_waits" in holder.where
    assert holder.oldest_s > 0
    (untracked,) = PagePoolWithOne().holders()
    assert "track=True" in untracked.where


class PagePoolWithOne(PagePool):
    def __init__(self) -> None:
        super().__init__(memory=memory())
        self.kept = self.alloc_bulk(1)


# -- who goes first ------------------------------------------------------------------------------------------


def test_the_pool_goes_first() -> None:
    pool = PagePool(memory=memory())
    gone, arena = weakref.ref(pool), pool.arena
    page = pool.alloc_pages()
    del pool
    gc.collect()
    assert gone() is page.pool
    page[0] = 1
    del page
    gc.collect()
    assert gone() is None
    assert arena.nr_free_pages == arena.nr_added_pages


def test_ids_that_were_never_put_go_home_with_the_pool() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    arena = pool.arena
    pool.alloc_bulk(100)
    del pool
    gc.collect()
    assert arena.nr_free_pages == arena.nr_added_pages
    assert (device.mapped, device.unmapped_twice) == ({}, [])


class Watcher:
    def __init__(self, pool: PagePool) -> None:
        self.pool = pool

    def __call__(self, event: str, page_id: int, count: int) -> None:
        pass


def test_a_pool_in_a_cycle_is_collected() -> None:
    pool = PagePool(memory=memory())
    pool.set_observer(Watcher(pool))
    gone, arena = weakref.ref(pool), pool.arena
    pool.alloc_pages()
    pool.alloc_bulk(2)
    del pool
    gc.collect()
    assert gone() is None
    assert arena.nr_free_pages == arena.nr_added_pages


@pytest.mark.parametrize("where", ["globals", "function", "cycle", "thread", "closed"])
def test_the_interpreter_exits_in_silence_with_pages_out(where: str) -> None:
    program = f"""
        import sys, threading, pagepool
        sys.unraisablehook = (lambda old: lambda args: None if type(args.exc_value).__name__ == "PageLeakError"
                              else old(args))(sys.unraisablehook)
        def make(odd=[0]):
            odd[0] ^= 1
            pool = pagepool.PagePool(memory=pagepool.PageAllocator(8 << 20), strict=odd[0], track=odd[0])
            page = pool.alloc_pages()
            view, keep = memoryview(pool.alloc_pages()), pool.get_page(page)
            return pool, page, view, pool.alloc_frag(9), pool.alloc_bulk(5), keep
        where = {where!r}
        if where == "globals":
            pool, page, view, fragment, ids, keep = make()
            more = make()
        elif where == "function":
            held = [make() for _ in range(3)]
            def keep(): return held
        elif where == "cycle":
            held = [*make(), *make()]; held.append(held)
            pools = [held[0]]; held[0].set_observer(lambda *event: pools)
        elif where == "thread":
            ready = threading.Event()
            def run():
                held = make(), make(); ready.set(); threading.Event().wait()
            threading.Thread(target=run, daemon=True).start(); ready.wait()
        else:
            pool, *held = make(); pool.close()
            pool, *more = make(); pool.close()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- what a device may do to the end ---------------------------------------------------------------------------


def test_pages_in_flight_are_unmapped_exactly_once_at_close() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    pages = [pool.alloc_pages() for _ in range(70)]
    fragment = pool.alloc_frag(64)
    pool.close()
    assert device.mapped == {}
    assert pool.stats().unmaps == pool.stats().maps == 128
    with pytest.raises(PagePoolError, match="not mapped"):
        _ = pages[0].dma_addr
    pages.clear()
    del fragment
    assert (pool.inflight, device.unmapped_twice, pool.stats().unmaps) == (0, [], 128)


@pytest.mark.parametrize("error", [OSError("busy"), KeyboardInterrupt(), ValueError("what")])
def test_a_device_that_will_not_unmap_does_not_keep_pages(error: BaseException) -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    pages = [pool.alloc_pages() for _ in range(3)]
    for page in pages[1:]:
        page.put()

    def refuse(dma_addr: int) -> None:
        raise error

    device.on_unmap = refuse
    with pytest.raises(type(error)):
        pool.close()
    assert (pool.closed, pool.inflight, device.mapped, device.unmapped_twice) == (True, 1, {}, [])
    pool.close()
    pages[0].put()
    pool.check()
    assert (pool.inflight, used_pages(pool), pool.users) == (0, 0, 0)


def test_a_dropped_pool_whose_device_refuses_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: heard.append(args.exc_value))
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    arena = pool.arena
    pool.alloc_bulk(10)

    def refuse(dma_addr: int) -> None:
        raise OSError("gone")

    device.on_unmap = refuse
    del pool
    gc.collect()
    assert arena.nr_free_pages == arena.nr_added_pages
    assert (device.mapped, device.unmapped_twice) == ({}, [])
    assert [str(error) for error in heard] == ["gone"]


def test_close_from_another_thread_waits_for_nobody() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    errors: list[BaseException] = []

    def close_elsewhere(vaddr: int) -> None:
        device.on_map = None

        def run() -> None:
            for act in (pool.close, pool.claim):
                try:
                    act()
                except PoolBusyError as error:
                    errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    device.on_map = close_elsewhere
    page = pool.alloc_pages()
    assert len(errors) == 2
    assert (pool.closed, pool.is_owner, page.is_live) == (False, True, True)
    pool.close()
    page.put()
    assert pool.inflight == 0


# -- the list of pools -----------------------------------------------------------------------------------------


def test_pools_are_listed_while_they_live_or_have_pages_out() -> None:
    events: list[tuple[str, int]] = []
    stop = registry.subscribe(lambda event, pool_id: events.append((event, pool_id)))
    try:
        pool, other = PagePool(memory=memory()), PagePool(memory=memory())
        assert pool in pagepool.pools()
        page = pool.alloc_pages()
        pool.close()
        assert pool in pagepool.pools()
        page.put()
        assert pool not in pagepool.pools()
        other.close()
        assert other not in pagepool.pools()
        mine = [event for event, pool_id in events if pool_id in (pool.id, other.id)]
        assert mine == ["add", "add", "change", "del"]
        assert other.id == pool.id + 1
    finally:
        stop()


def test_repr_says_what_is_out() -> None:
    pool = PagePool(memory=memory())
    page = pool.alloc_pages()
    assert repr(pool) == f"<PagePool {pool.id}: 1 lent, 64 held of 4096 bytes>"
    assert repr(page).startswith(f"<Page {page.id}: 4096 bytes at vaddr 0x")
    pool.close()
    assert repr(pool).endswith("closed>")
