# SPDX-License-Identifier: MIT
"""The kernel as oracle, asked directly: real page pools driven call by call, and ours with the same calls.

`oracle` watches a driver's pools; here a kernel module of our own (``modules/pool_driver``) is the driver, so that
every call of the API can be made, in every order: what no driver of this machine does too. After each call are
compared: the page and offset handed out, all eleven counters, cache and ring, hold and release counts, and each call
that the device was asked.
"""

from __future__ import annotations

import base64
import errno
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagepool import PagePool
from pagepool.dma import HostDevice, MapGranularity
from pagepool.testing.replay import Replay

from .support.pool_driver import BULK_QUEUE, DrivenPool, PoolDriver
from .support.pool_sequences import RandomCalls
from .support.suite import cases

BOOTS = ("newest",)
MODULES = ("pool_driver",)
TRACING = Path("/sys/kernel/tracing")
MAP, SYNC, SYSTEM, UNREADABLE = 1, 2, 4, 8
BIDIRECTIONAL, TO_DEVICE, FROM_DEVICE, NONE = range(4)
MAPPED = {"flags": MAP, "dma_dir": FROM_DEVICE}
SYNCED = {"flags": MAP | SYNC, "dma_dir": FROM_DEVICE, "max_len": 4096}


def compare(pool: DrivenPool, workload: str, *, save: str = "") -> Replay:
    """Give ours the same calls; with `save` print the recording for ``tests/data``."""
    recording = pool.recording(workload)
    replay = Replay(recording, pin=True)
    try:
        replay.run()
    finally:
        allowed = {name: count for name, count in vars(replay.allowed).items() if count}
        print(f"{workload}: {len(recording.calls)} calls, {replay.compared} values equal, allowed for: {allowed}")
    if save:
        print("RECORDING", save, base64.b64encode(zlib.compress(json.dumps(vars(recording)).encode())).decode())
    return replay


def finish(pool: DrivenPool, pages: list[int]) -> None:
    """Give what is left back to the cache, and destroy the pool."""
    for page in pages:
        pool.recycle_direct(page)
    pool.destroy()


def take(pool: DrivenPool, count: int) -> list[int]:
    return [pool.take()[0] for _ in range(count)]


# -- creation ---------------------------------------------------------------------------------------------------------

CREATION = {  # parameters: (the kernel's errno, whether ours refuses)
    "plain": ({}, 0, False),
    "order 9": ({"order": 9}, 0, False),
    "order 11": ({"order": 11}, errno.EINVAL, True),
    "unknown flag": ({"flags": 1 << 4}, errno.EINVAL, True),
    "all bits": ({"flags": 0xFFFF0000}, errno.EINVAL, True),
    "sync without map": ({"flags": SYNC, "max_len": 4096}, errno.EINVAL, True),
    "sync of nothing": ({**SYNCED, "max_len": 0}, errno.EINVAL, True),
    "to device": ({**MAPPED, "dma_dir": TO_DEVICE}, errno.EINVAL, True),
    "no direction": ({**MAPPED, "dma_dir": NONE}, errno.EINVAL, True),
    "to device, not mapped": ({"dma_dir": TO_DEVICE}, 0, False),
    "from device": (MAPPED, 0, False),
    "both ways": ({**MAPPED, "dma_dir": BIDIRECTIONAL}, 0, False),
    "synced": (SYNCED, 0, False),
    "part of the page": ({**SYNCED, "max_len": 1500, "offset": 256}, 0, False),
    "a ring of one": ({"pool_size": 1}, 0, False),
    "a ring too long": ({"pool_size": 40000}, 0, False),
    # On the list of differences.
    "order 10": ({"order": 10}, 0, True),
    "system pool": ({"flags": SYSTEM}, 0, True),
    "beyond the page": ({**SYNCED, "offset": 1}, 0, True),
}


def test_creation() -> None:
    """The same parameters are refused, each alone; and the ring has the same length."""
    for name, (params, expected, ours_refuses) in CREATION.items():
        with PoolDriver() as driver:
            found, ring = 0, 0
            try:
                pool = driver.create(**params)
                ring = pool.ring_size
                pool.destroy()
            except OSError as error:
                found = error.errno or -1
        assert found == expected, f"{name}: the kernel's errno is {found}, not {expected}"
        refused = ""
        fields = params | ({"dev": HostDevice()} if params.get("flags", 0) & MAP else {})
        try:
            with PagePool(**fields) as ours:
                assert ours.params.pool_size == ring, f"{name}: ring of {ring} and {ours.params.pool_size}"
        except ValueError as error:
            refused = str(error)
        assert bool(refused) == ours_refuses, f"{name}: ours {refused or 'takes it'}"
        print(f"{name}: kernel {errno.errorcode.get(found, 'ring of ' + str(ring))}, ours {refused or 'the same'}")


# -- tiers ------------------------------------------------------------------------------------------------------------


@cases("0", "1", "3", "9")
def test_cache_is_a_stack_of_128(order: str) -> None:
    with PoolDriver() as driver:
        pool = driver.create(order=int(order), pool_size=32)
        most = 8 if order == "9" else 180
        pages = take(pool, most)
        for page in pages:
            pool.recycle_direct(page)  # the cache, then the ring, then out
        pages = take(pool, most)
        finish(pool, pages)
        compare(pool, f"order {order}: cache full, ring full, and back")


@cases("1", "2", "5", "33", "64", "0")
def test_ring_is_a_queue_that_refuses(pool_size: str) -> None:
    """From anywhere into the ring: until it is full, again when a refill has made room, and over its end."""
    with PoolDriver() as driver:
        pool = driver.create(pool_size=int(pool_size))
        size = pool.ring_size
        pages = take(pool, size + 70)
        for turn in range(1 if size > 100 else 4):
            for at, page in enumerate(pages):
                pool.give(page, consumer=False, softirq=at % 2 == 0, cpu=turn % 2)
            pages = take(pool, min(size, 90) + 30)
        assert pool.figures()["ring_full"] > 0
        finish(pool, pages)
        compare(pool, f"ring of {size}")


def test_who_may_put_directly() -> None:
    """In the poll of the pool's NAPI; said so; told to, and told not to."""
    for napi in (1, 0):
        with PoolDriver() as driver:
            pool = driver.create(napi=napi)
            pages = take(pool, 60)
            for on in (None, False, True) if napi else (None,):
                if on is not None:
                    pool.auto_direct(on)
                pool.give(pages.pop())
                pool.give(pages.pop(), direct=True)
                pool.give(pages.pop(), what="PUT_FULL_PAGE")
                pool.recycle_direct(pages.pop())
                pool.give(pages.pop(), consumer=False)
                pool.give(pages.pop(), consumer=False, softirq=True)
                pool.give(pages.pop(), consumer=False, softirq=True, cpu=1)
                pool.bulk([pages.pop() for _ in range(3)])
                pool.bulk([pages.pop() for _ in range(3)], consumer=False, cpu=1)
                pages += take(pool, 4)
            finish(pool, pages)
            compare(
                pool, f"who may put directly, {'with' if napi else 'without'} a NAPI", save="direct" if napi else ""
            )


@cases("plain", "synced")
def test_bulk(case: str) -> None:
    """Into the cache, into the ring, a ring that fills up half way, pages among them that may not be recycled."""
    with PoolDriver() as driver:
        pool = driver.create(pool_size=40, **(SYNCED if case == "synced" else {}))
        for turn in range(4):
            pages = take(pool, 200)
            for page in pages[::7]:
                pool.get(page)
            held = pages[::7]
            while pages:
                batch = [pages.pop() for _ in range(min(len(pages), 1 + len(pages) % BULK_QUEUE))]
                pool.bulk(batch, consumer=turn % 2 == 0, cpu=turn // 2)
            for page in held:
                pool.drop(page)
        finish(pool, take(pool, 10))
        compare(pool, f"bulk, {case}")


def test_bulk_of_several_pools() -> None:
    with PoolDriver() as driver:
        pools = [driver.create(0, pool_size=20), driver.create(1, pool_size=100), driver.create(2, order=1)]
        pages = [(pool, page) for _ in range(60) for pool in pools for page in take(pool, 1)]
        for turn, start in enumerate(range(0, len(pages), 36)):
            batch = [page for at in range(12) for page in pages[start + 3 * at : start + 3 * at + 3]]
            driver.put_bulk(batch[turn:] + batch[:turn], consumer=turn % 2 == 0)
        for pool in pools:
            finish(pool, take(pool, 80))
            compare(pool, f"bulk of three pools, order {pool.params['order']}, ring of {pool.ring_size}")


# -- references -------------------------------------------------------------------------------------------------------


@cases("0", "3")
def test_fragments(order: str) -> None:
    """Carved, carved with the rest, whole; given up in use, carved anew in place, put in any order."""
    with PoolDriver() as driver:
        pool = driver.create(order=int(order))
        whole = 4096 << int(order)
        out: list[tuple[int, int]] = []
        for size in (64, 1024, 1280, 2048, 2112, 3072, whole // 2, whole // 2 + 64, whole):
            for rest, va in ((False, False), (True, False), (True, True)):
                for _ in range(5):
                    page, offset, _ = pool.take(size, rest=rest, va=va)
                    out.append((page, offset))
                if size % 256 == 0:  # the page that is carved has nobody now: it is carved anew in place
                    for page, offset in out:
                        pool.give(page, offset, consumer=offset % 128 == 0)
                    out.clear()
        for page, offset in out[::-1]:
            pool.give(page, offset, what="FREE_VA")
        pool.destroy()
        compare(pool, f"fragments, order {order}", save="fragments" if order == "0" else "")


def test_carved_page_with_another_holder() -> None:
    """When its fragments are back it may not be carved anew: it leaves."""
    with PoolDriver() as driver:
        pool = driver.create(**SYNCED)
        for held in (True, False, True):
            page, offset, _ = pool.take(2048)
            if held:
                pool.get(page)
            pool.give(page, offset)
            other, offset, _ = pool.take(3072)
            pool.give(other, offset)
            if held:
                pool.drop(page)
        last, offset, _ = pool.take(2048)
        pool.get(last)
        pool.give(last, offset)
        pool.destroy()
        pool.drop(last)
        compare(pool, "a carved page with another holder")


def test_references_of_the_pools() -> None:
    """Taken one by one or at once, dropped one by one or at once: the last one decides."""
    with PoolDriver() as driver:
        pool = driver.create()
        for fragment in (True, False):
            for count in (1, 2, 7):
                for drops in ([1] * (count + 1), [count + 1], [count, 1], [1, count]):
                    (page,) = take(pool, 1)
                    pool.ref(page, count, fragment=fragment)
                    for drop in drops:
                        pool.unref(page, drop, consumer=count % 2 == 0)
        pool.destroy()
        compare(pool, "references of the pool's")


def test_other_holders() -> None:
    """A page that somebody else holds at the put leaves; one whose holder is gone by then does not."""
    with PoolDriver() as driver:
        pool = driver.create(**SYNCED)
        for consumer in (True, False):
            for holders, gone in ((1, 0), (3, 0), (1, 1), (3, 2), (3, 3)):
                (page,) = take(pool, 1)
                for _ in range(holders):
                    pool.get(page)
                for _ in range(gone):
                    pool.drop(page)
                pool.give(page, consumer=consumer)
                for _ in range(holders - gone):
                    pool.drop(page)
        pool.destroy()
        compare(pool, "other holders", save="holders")


def test_leaving() -> None:
    """The kernel's drivers have no ``page_pool_release_page`` any more; what they do in its place is the same."""
    with PoolDriver() as driver:
        pool = driver.create(**MAPPED)
        pages = take(pool, 5)
        for page in pages[:3]:
            pool.get(page)
            pool.give(page, consumer=False)
            pool.drop(page)
        kernel = pool.figures()
        unmapped = [event[1] for call in pool.calls for event in call.get("dma", []) if event[0] == "unmap"]
        finish(pool, pages[3:])
    device = HostDevice(granularity=MapGranularity.PAGE)
    with PagePool(flags=MAP, dma_dir=FROM_DEVICE, dev=device) as ours:
        handles = [ours.alloc_pages() for _ in range(5)]
        for handle in handles[:3]:
            ours.release_page(handle)
            handle.put()
        stats = ours.stats()
        assert unmapped == pages[:3], unmapped
        assert (stats.hold_cnt, stats.release_cnt) == (kernel["hold_cnt"], kernel["release_cnt"])
        assert stats.unmaps == len(unmapped)
        same = {
            name: value for name, value in kernel.items() if name in ("fast", "slow", "cached", "ring", "ring_full")
        }
        assert same == {name: getattr(stats, name) for name in same}
        assert (kernel["released_refcnt"], stats.released_refcnt) == (3, 0)  # it was never put
        for handle in handles[3:]:
            handle.put()


def test_emergency_pages_are_not_recycled() -> None:
    """Real ones: node 1 has no memory left, and the pool asks with ``__GFP_MEMALLOC``."""
    with PoolDriver() as driver:
        pool = driver.create()
        driver.hog(1)
        try:
            pages = [pool.take_reserve(cpu=1) for _ in range(9)]
            pool.give(pages[0], cpu=1)
            pool.recycle_direct(pages[1])
            pool.give(pages[2], consumer=False)
            pool.bulk(pages[3:7], cpu=1)
            pool.bulk(pages[7:], consumer=False, cpu=1)
        finally:
            driver.hog(-1)
        seen = pool.figures()
        assert seen["released_refcnt"] == 9, seen
        finish(pool, take(pool, 3))
        compare(pool, "emergency pages", save="emergency")


# -- the device -------------------------------------------------------------------------------------------------------


@cases("0-4096-0", "0-1500-256", "1-8192-0", "1-64-4096", "2-1-16383")
def test_dma(case: str) -> None:
    """Mapped once, synced as far as it was written, unmapped when it leaves: call by call."""
    order, max_len, offset = (int(word) for word in case.split("-"))
    with PoolDriver() as driver:
        params = {**SYNCED, "max_len": max_len, "offset": offset}
        pool = driver.create(order=order, pool_size=10, **params)
        pages = take(pool, 20)
        for at, sync_bytes in enumerate((-1, 0, 1, 63, 64, 1499, 1500, 1501, 4096, 8192, 1 << 20)):
            pool.sync_for_cpu(pages[-1], 0, min(64, max_len))
            pool.give(pages.pop(), sync_bytes=sync_bytes, consumer=at % 2 == 0)
        pool.get(pages[-1])
        pool.give(pages[-1])
        pool.drop(pages.pop())
        page, at, _ = pool.take(1024)
        pool.give(page, at, sync_bytes=64)
        for page in pages:
            pool.give(page, consumer=False)
        finish(pool, take(pool, 5))
        compare(pool, f"DMA, order {order}, {max_len} bytes at {offset}", save="dma" if order == 2 else "")


@cases("0", "2")
def test_a_map_that_fails(order: str) -> None:
    with PoolDriver() as driver:
        pool = driver.create(order=int(order), **SYNCED | {"max_len": 64})
        pages = []
        for at in (1, 2, 64, 1):
            pool.fail_map(at)
            pages += [page for page in take(pool, 10 if int(order) else 70) if page]
        finish(pool, pages)
        compare(pool, f"maps that fail, order {order}", save="map_failed" if int(order) else "")


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_update_nid() -> None:
    """The cache goes, uncounted; the ring follows at refills, one stray page each; to the same node only if asked."""
    with PoolDriver() as driver:
        pool = driver.create(nid=0, **MAPPED)
        pages = take(pool, 150)
        for page in pages[:70]:
            pool.give(page, consumer=False)
        pool.update_nid(0, if_changed=True)
        pool.update_nid(0)
        pages = pages[70:] + take(pool, 20)
        pool.update_nid(1, if_changed=True)
        pages += take(pool, 200)
        for page in pages[::3]:
            pool.give(page, consumer=False, cpu=1)
        for page in pages[1::3]:
            pool.give(page)
        pool.update_nid(0)
        rest = pages[2::3] + take(pool, 120)
        assert pool.figures()["waive"] > 3
        finish(pool, rest)
        compare(pool, "page_pool_update_nid", save="update_nid")


# -- the end ----------------------------------------------------------------------------------------------------------


def test_users() -> None:
    with PoolDriver() as driver:
        pool = driver.create()
        pool.user()
        pool.user()
        pages = take(pool, 3)
        pool.destroy()
        pages += take(pool, 70)
        pool.destroy()
        finish(pool, pages)
        assert pool.gone
        compare(pool, "three users", save="users")


def test_destroyed_with_pages_out() -> None:
    """Idle pages go at once, those out are unmapped at once and once; put late they go, the last ends the pool."""
    with PoolDriver() as driver:
        pool = driver.create(**SYNCED)
        pages = take(pool, 70)
        for page in pages[40:]:
            pool.give(page, consumer=False)
        part = pool.take(1024)
        pool.ref(pages[0], 2)
        pool.get(pages[1])
        pool.destroy()
        unmapped = [event[1] for event in pool.calls[-1]["dma"]]
        assert sorted(unmapped) == sorted(set(unmapped)), "a page was unmapped twice"
        assert len(unmapped) == pool.figures()["hold_cnt"], "a page was not unmapped"
        pool.unref(pages[0], 3)
        pool.give(pages[1])
        pool.drop(pages[1])
        pool.bulk(pages[2:10])
        pool.give(part[0], part[1], consumer=False, cpu=1)
        for first in (10, 20, 30):  # each waits for the timer of the kernel's, a second
            pool.bulk(pages[first : first + 10], consumer=False)
        assert pool.gone
        replay = compare(pool, "destroyed with pages out", save="destroyed")
        assert replay.allowed.late_in_ring == 1 + 8 + 1 + 20


def test_tracepoints() -> None:
    """Our observer is told the same, in the same order, where the kernel has tracepoints."""
    with PoolDriver() as driver, traced() as trace:
        pool = driver.create(nid=0)
        pages = take(pool, 70)
        for page in pages[:20]:
            pool.give(page, consumer=False)
        pool.get(pages[20])
        pool.give(pages[20])
        pool.drop(pages[20])
        pool.update_nid(1)
        finish(pool, pages[21:] + take(pool, 100))
    replay = compare(pool, "tracepoints")
    kernels = kernel_events(trace)
    assert {event for event, _, _ in kernels} == {"hold", "release", "update_nid", "pool_release"}, trace[-20:]
    assert kernels == replay.events, [pair for pair in zip(kernels, replay.events, strict=False) if pair[0] != pair[1]]
    print(f"{len(kernels)} events equal")


@contextmanager
def traced() -> Iterator[list[str]]:
    """Trace what page pools say meanwhile, and hand out the lines at the end."""
    lines: list[str] = []
    (TRACING / "trace").write_text("")
    (TRACING / "tracing_on").write_text("1")
    for text in ("1", "0"):
        (TRACING / "events/page_pool/enable").write_text(text)
        if text == "1":
            yield lines
    lines += (TRACING / "trace").read_text().splitlines()


def kernel_events(lines: list[str]) -> list[tuple[str, int, int]]:
    """Return the events of one pool as `Replay.events` has ours."""
    found, numbers = [], {}
    for line in lines:
        if not (match := re.search(r": page_pool_(state_hold|state_release|update_nid|release): (.*)", line)):
            continue
        event, values = match[1], dict(re.findall(r"(\w+)=(\S+)", match[2]))
        if event == "state_hold":
            numbers[values["pfn"]] = int(values["hold"])
            found.append(("hold", numbers[values["pfn"]], int(values["hold"])))
        elif event == "state_release":
            found.append(("release", numbers[values["pfn"]], int(values["release"])))
        elif event == "update_nid":
            found.append((event, 0, int(values["new_nid"])))
        else:
            found.append(("pool_release", 0, int(values["inflight"])))
    return found


# -- everything -------------------------------------------------------------------------------------------------------

CALLS, SHORT = 1000, 250
RANDOM = {
    "plain": {"pool_size": 100},
    "small_ring": {"pool_size": 20},
    "synced": {"pool_size": 64, **SYNCED, "max_len": 1500, "offset": 128},
    "order_2": {"pool_size": 50, "order": 2},
    "no_napi": {"pool_size": 150, "napi": 0},
    "nodes": {"pool_size": 200, "nid": 0},
    "saved": {"pool_size": 40, **SYNCED, "max_len": 1536},
}


@cases("plain-1", "small_ring-2", "synced-3", "order_2-4", "no_napi-5", "nodes-6", "saved-7")
def test_random_calls(case: str) -> None:
    name, _, seed = case.partition("-")
    with PoolDriver() as driver:
        pool = driver.create(**RANDOM[name])
        RandomCalls(pool, int(seed), nodes=name == "nodes").run(SHORT if name == "saved" else CALLS)
        kinds = {kind: sum(call["call"] == kind for call in pool.calls) for kind in {c["call"] for c in pool.calls}}
        print(kinds)
        compare(pool, f"random calls, {name}, seed {seed}", save="random" if name == "saved" else "")
