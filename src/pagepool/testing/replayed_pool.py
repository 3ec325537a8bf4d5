# SPDX-License-Identifier: MIT
"""Our pool in a replay: takes the calls of a recording, under the kernel's numbers for pages.

It knows who holds what, since a recording says only which page a call is about: whole pages, fragments, references of
the pool's (views here) and of others. What a call returns is what the pool decided. It compares nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pagepool._core.page import Page
from pagepool._core.page_pool import PagePool
from pagepool._core.params import PPFlag
from pagepool.dma import FaultInjector, HostDevice, MapGranularity, Tracer
from pagepool.dma.call import DmaOp
from pagepool.dma.tracer import DmaEvent
from pagepool.testing.recording import changes

__all__ = ["RESERVE_PAGES", "ReplayedPool"]

Found = dict[str, Any]

#: Of the allocator, in recordings with pages out of the emergency reserve.
RESERVE_PAGES = 8


@dataclass
class _Out:
    """What is out of one page. Views go before the handle that they are of."""

    handles: list[Page] = field(default_factory=list)  # one of a whole page, as many as there are fragments
    views: list[memoryview] = field(default_factory=list)
    holders: list[Page] = field(default_factory=list)
    emergency: bool = False

    def last(self, count: int) -> bool:
        """Whether these are the last references, of a page that may be recycled."""
        recyclable = not self.holders and not self.emergency
        return recyclable and len(self.handles) + len(self.views) == count


class ReplayedPool:
    """One pool.

    Parameters
    ----------
    params : dict
        As in a recording.
    memory : PageAllocator or alike
    elsewhere : ThreadPoolExecutor
        Of one thread: makes the calls that the kernel got from outside the pool's poll.

    Attributes
    ----------
    refused : list of int
        Pages that the last call let go of because the kernel's ring refused them.
    events : list of (str, int, int)
        What the pool's observer was told: event, page (0 where it is about none), count.
    """

    def __init__(self, params: dict[str, Any], memory: Any, elsewhere: ThreadPoolExecutor) -> None:
        fields = dict(params)
        napi = fields.pop("napi", True)
        self._tracer: Tracer | None = None
        if PPFlag.DMA_MAP & fields.get("flags", 0):
            self._faults = FaultInjector(HostDevice(granularity=MapGranularity.PAGE, needs_sync=True))
            self._tracer = fields["dev"] = Tracer(self._faults, callback=self._asked)
        self._dma: list[tuple[str, int, int, list[int]]] = []
        self._entering: set[int] = set()  # mapped, and not counted yet
        self.pool = PagePool(memory=memory, **fields)
        self.pool.direct_recycling = bool(napi)  # without a NAPI the kernel's does not know its consumer
        self.pool.set_observer(self._observe)
        self.ring_size = self.pool.params.pool_size
        self.refused: list[int] = []
        self.events: list[tuple[str, int, int]] = []
        self._refuse = False
        self._users: list[Callable[[], None]] = [self.pool.close]
        self._elsewhere, self._memory = elsewhere, memory
        self._numbers: dict[int, int] = {}  # our id -> the number under which it entered
        self._out: dict[int, _Out] = {}
        self._entered = self._carved = self._back = 0

    def refuse(self, refuse: bool) -> None:
        """Say whether the next call must let go of the pages that would get into the ring beyond what it says."""
        self._refuse, self.refused = refuse, []

    def give_up(self) -> None:
        """Give everything back and destroy the pool."""
        for out in self._out.values():
            for view in out.views:
                view.release()
            for page in (*out.handles, *out.holders):
                page.put()
        self._out.clear()
        self.pool.set_observer(None)
        while self._users:
            self._users.pop()()

    def dma_calls(self) -> list[list[Any]]:
        """Return what the device was asked since the last time, as ``[op, page, offset, size]``."""
        calls = [[op, number or self._numbers[page_id], *where] for op, number, page_id, where in self._dma]
        self._dma.clear()
        return calls

    # -- calls of a driven pool ----------------------------------------------------------------------------------

    def call_take(self, call: Found) -> Found:
        """A page, or a part of one."""
        size = call["size"]
        if not size:
            page = self.pool.dev_alloc_pages()
        else:
            page = self.pool.alloc(size) if call["rest"] else self.pool.alloc_frag(size)
        if page is None:
            return {"page": 0, "offset": 0, "length": 0}
        return {"page": self._lend(page), "offset": page.offset, "length": len(page)}

    def call_reserve(self, call: Found) -> Found:
        """A page, while there is no memory left but for emergencies."""
        with PagePool(memory=self._memory) as hog:
            ids = hog.alloc_bulk(self._memory.arena.nr_free_pages - RESERVE_PAGES)
            number = self._lend(self.pool.alloc_pages())
            hog.put_bulk(ids)
        self._out[number].emergency = True
        return {"page": number}

    def call_give(self, call: Found) -> Found:
        """One pool reference back."""
        out = self._out[call["page"]]
        keepers = self._keepers([call["page"]], 1, 0)
        if out.views:
            self._run(call, out.views.pop().release)
        else:
            at = next(at for at, page in enumerate(out.handles) if page.offset == call["offset"])
            self._run(call, self.pool.put_page, out.handles.pop(at), call["sync_bytes"], bool(call["direct"]))
        self._dropped(keepers)
        return {}

    def call_bulk(self, call: Found) -> Found:
        """Many whole pages back with one call."""
        outs = [self._out[number] for number in call["pages"]]
        keepers = self._keepers(call["pages"], 1, sum(changes(call).get(name, 0) for name in ("cached", "ring")))
        handles = [out.handles.pop() for out in outs]  # kept: one that dies is a put
        ids = array("I", (page.id for page in handles))
        done: list[int] = []
        self._run(call, lambda: done.append(self.pool.put_bulk(ids)))
        self._dropped(keepers)
        assert done == [len(ids)], f"{done} of {len(ids)} pages were put"
        return {}

    def call_get(self, call: Found) -> Found:
        """Another holder of the memory comes."""
        out = self._out[call["page"]]
        out.holders.append(self.pool.get_page(out.handles[0]))
        return {}

    def call_drop(self, call: Found) -> Found:
        """And goes."""
        self._out[call["page"]].holders.pop().put()
        return {}

    def call_ref(self, call: Found) -> Found:
        """More references of the pool's."""
        out = self._out[call["page"]]
        out.views += [memoryview(out.handles[0]) for _ in range(call["count"])]
        return {}

    def call_unref(self, call: Found) -> Found:
        """Many of them back at once."""
        out, count = self._out[call["page"]], call["count"]
        keepers = self._keepers([call["page"]], count, 0)
        ends: list[Callable[[], None]] = [view.release for view in out.views[:count]]
        del out.views[:count]
        ends += [out.handles.pop().put] if len(ends) < count else []
        for end in ends:
            self._run(call, end)
        self._dropped(keepers)
        return {}

    def call_sync_cpu(self, call: Found) -> Found:
        """The driver wants to look at what the device wrote."""
        self.pool.dma_sync_for_cpu(self._out[call["page"]].handles[0], call["offset"], call["size"])
        return {}

    def call_nid(self, call: Found) -> Found:
        """The pool moves to another node."""
        (self.pool.nid_changed if call["if_changed"] else self.pool.update_nid)(call["nid"])
        return {}

    def call_auto_direct(self, call: Found) -> Found:
        """The pool is told its consumer, or to forget it."""
        self.pool.direct_recycling = bool(call["on"])
        return {}

    def call_user(self, call: Found) -> Found:
        """The pool gets another user."""
        self.pool.get_user()
        self._users.append(self.pool.put_user)
        return {}

    def call_fail_map(self, call: Found) -> Found:
        """The device will refuse a map."""
        self._faults.clear()
        self._faults.fail("map", nth=call["at"], times=1)
        return {}

    # -- calls of a watched pool ---------------------------------------------------------------------------------

    def call_alloc(self, call: Found) -> Found:
        """A whole page."""
        return {"page": self._lend(self.pool.alloc_pages())}

    def call_frag(self, call: Found) -> Found:
        """A part of a page; says how many of those before it are back."""
        self._bring_back(call["back"])
        page = (self.pool.alloc if call["takes_rest"] else self.pool.alloc_frag)(call["size"])
        assert page is not None
        number = self._lend(page)
        if number != self._carved or page.offset == 0:
            self._carved, self._back = number, 0
        return {"page": number, "offset": page.offset}

    def _bring_back(self, count: int) -> None:
        while self._back < count:
            self.pool.put_page(self._out[self._carved].handles.pop(0))
            self._back += 1

    def call_put(self, call: Found) -> Found:
        """The last reference back; those before it did not show."""
        out = self._out[call["page"]]
        while len(out.handles) > 1:
            self.pool.put_page(out.handles.pop(0))
        keepers = self._keepers([call["page"]], 1, 0)
        if call["refs"] > 1:
            keepers.append(self.pool.get_page(out.handles[0]))
        if call["direct"]:
            self.pool.put_page(out.handles.pop(), -1, True)
        else:
            self._elsewhere.submit(self.pool.put_page, out.handles.pop()).result()
        self._dropped(keepers)
        return {}

    def call_mark(self, call: Found) -> Found:
        """Nothing; netlink's figures of this moment."""
        return {"stats": self.pool.stats().kernel() | {"inflight": self.pool.inflight}}

    # -- of either -----------------------------------------------------------------------------------------------

    def call_destroy(self, call: Found) -> Found:
        """A user goes; the last one destroys the pool."""
        self._bring_back(call["back"])
        self._users.pop()()
        return {}

    def _lend(self, page: Page) -> int:
        number = self._numbers[page.id]
        self._out.setdefault(number, _Out()).handles.append(page)
        return number

    def _run(self, call: Found, put: Callable[..., Any], *arguments: Any) -> None:
        if call["consumer"]:
            put(*arguments)
        else:
            self._elsewhere.submit(put, *arguments).result()

    def _keepers(self, numbers: list[int], count: int, kept: int) -> list[Page]:
        """Keep the pages that this call must let go of from being recycled, but for the first `kept` of them."""
        if not self._refuse:
            return []
        self.refused = [number for number in numbers if self._out[number].last(count)][kept:]
        return [self.pool.get_page(self._out[number].handles[0]) for number in self.refused]

    def _dropped(self, keepers: list[Page]) -> None:
        for keeper in keepers:
            keeper.put()

    # -- looking on ----------------------------------------------------------------------------------------------

    def _observe(self, event: str, page_id: int, count: int) -> None:
        if event == "hold":
            self._entered += 1
            self._numbers[page_id] = self._entered
            self._entering.discard(page_id)
        self.events.append((event, self._numbers[page_id] if event in ("hold", "release") else 0, count))

    def _asked(self, event: DmaEvent) -> None:
        """Note what the device was asked; a page that is entering gets its number later."""
        call, order = event.call, self.pool.params.order
        start = call.vaddr if call.vaddr is not None else call.dma_addr
        assert start is not None
        at = start - self.pool.arena.base_vaddr
        page_id = at >> 12 >> order << order
        where = [at - (page_id << 12), call.size_bytes]
        if event.errno:
            self._dma.append((f"{call.op}_failed", -1, page_id, [0, call.size_bytes]))
            return
        if call.op is DmaOp.MAP:
            self._entering.add(page_id)
        number = 0 if page_id in self._entering else self._numbers[page_id]
        self._dma.append((str(call.op), number, page_id, where))
