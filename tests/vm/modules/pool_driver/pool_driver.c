// SPDX-License-Identifier: MIT
/*
 * A driver without a device: user space drives real page pools with it, call by call. For tests, in a virtual machine.
 *
 * It is what a NIC driver is to page_pool: it creates pools, takes pages and puts them, in the poll of a NAPI of its
 * own or elsewhere, and owns a struct device whose DMA calls it writes down. It decides nothing. Pages are named by
 * the order in which they entered their pool, a number that it writes into the page itself, so that a page that is
 * recycled keeps its name.
 *
 * It is not safe to have: who may open the file can take all memory. Calls that would corrupt the kernel (a page that
 * is not out, a pool that is gone) are refused with an errno.
 *
 * Context: one call at a time for each open file. It runs on the CPU of the caller, who pins himself.
 */
#include <linux/completion.h>
#include <linux/dma-map-ops.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <net/page_pool/helpers.h>

#define POOLS 4
#define NUMBERS 65536 /* pages that may enter one pool in its life */
#define BULK_MOST 64
#define LOG_MOST 4096

/* Where a call is made. */
enum where {
	IN_PROCESS, /* no softirq */
	IN_SOFTIRQ, /* bottom halves off, in no poll */
	IN_POLL, /* in the poll of our NAPI, on the CPU of the caller */
};

enum what {
	LOOK,
	ALLOC_PAGES, /* flags: EMERGENCY -> page, flags: EMERGENCY if it is that */
	ALLOC_FRAG, /* size -> page offset */
	ALLOC, /* size -> page offset size */
	ALLOC_VA, /* size -> page offset size */
	PUT_PAGE, /* page, value: dma_sync_size, flags: DIRECT */
	PUT_FULL_PAGE, /* page, flags: DIRECT */
	RECYCLE_DIRECT, /* page */
	FREE_VA, /* page offset, flags: DIRECT */
	PUT_BULK, /* bulk, count */
	GET_PAGE, /* page: another holder */
	DROP_PAGE, /* page: that holder goes */
	FRAGMENT, /* page, value: pool references from now on */
	REF, /* page, value: so many more */
	UNREF, /* page, value: how many go at once, flags: DIRECT */
	SYNC_FOR_CPU_OF, /* page offset size */
	UPDATE_NID, /* value */
	NID_CHANGED, /* value */
	ENABLE_DIRECT,
	DISABLE_DIRECT,
	GET_USER,
	DESTROY,
	FAIL_MAP, /* value: the how manieth map from now on fails */
	HOG, /* value: take all memory of this node that an atomic allocation gets; -1 gives it back */
	WHATS
};

#define DIRECT 1
#define EMERGENCY 2

struct figures {
	__u64 counters[11]; /* in the order of struct page_pool_stats */
	__u32 in_cache, in_ring;
	__u32 room; /* pages that the ring would take now */
	__u32 hold_cnt, release_cnt;
	__u32 users;
	__s32 nid;
	__u32 reserved;
};

struct pool_call {
	__u32 what, where, pool;
	__u32 page; /* from 1; 0: none */
	__s32 value;
	__u32 flags, offset, size, count;
	__u32 cpu; /* out: where it ran */
	struct {
		__u32 pool, page;
	} bulk[BULK_MOST];
	struct figures figures;
};

struct pool_params {
	__u32 pool, order, pool_size;
	__s32 nid;
	__u32 flags, dma_dir, max_len, offset;
	__u32 dev, napi; /* booleans */
};

#define POOL_CREATE _IOW('p', 1, struct pool_params)
#define POOL_CALL _IOWR('p', 2, struct pool_call)

enum dma_kind { MAP, MAP_FAILED, UNMAP, SYNC_FOR_DEVICE, SYNC_FOR_CPU };

/* One call of the DMA API; what read() gives. */
struct dma_event {
	__u32 kind, pool, page, offset, size, dma_dir;
};

/* What the driver writes into each page. */
struct name {
	__u32 pool, page;
};

struct number {
	struct page *page;
	long refs; /* pool references that user space has */
	long holders; /* page references besides */
};

struct slot {
	struct driver *driver;
	struct page_pool *pool;
	struct number *numbers; /* NUMBERS + 1 of them */
	__u32 index, entered, out; /* out: pages with refs */
	__u32 order, users;
	bool has_napi;
};

struct driver {
	struct mutex lock;
	struct net_device *netdev;
	struct napi_struct napi;
	struct platform_device *platform;
	struct slot slots[POOLS];
	struct pool_call call;
	int result;
	bool pending;
	struct completion polled;
	struct page *hogged;
	long fail_map;
	spinlock_t log_lock;
	struct dma_event *log;
	struct page **log_pages; /* of maps, until the page has its name */
	__u32 logged, named;
};

/* -- the device: it reaches all memory, and writes down what it is asked ------------------------------------------ */

static void note(struct device *dev, enum dma_kind kind, phys_addr_t at, size_t size, enum dma_data_direction dma_dir)
{
	struct driver *driver = dev_get_drvdata(dev);
	struct page *page = pfn_to_page(at >> PAGE_SHIFT), *head = compound_head(page);
	struct name *name = page_address(head);
	unsigned long flags;

	spin_lock_irqsave(&driver->log_lock, flags);
	if (driver->logged < LOG_MOST) {
		struct dma_event *event = &driver->log[driver->logged];

		event->kind = kind;
		event->offset = ((page - head) << PAGE_SHIFT) + (at & ~PAGE_MASK);
		event->size = size;
		event->dma_dir = dma_dir;
		event->pool = name->pool;
		event->page = name->page;
		driver->log_pages[driver->logged] = kind == MAP ? head : NULL;
		driver->logged++;
	}
	spin_unlock_irqrestore(&driver->log_lock, flags);
}

/* Pages have their names once the call that mapped them is over; the sync that follows each map came before too. */
static void name_mapped(struct driver *driver)
{
	__u32 first = driver->named, i;

	for (i = first; i < driver->logged; i++) {
		struct page *page = driver->log_pages[i];
		struct name *name;

		if (!page && i > first && driver->log[i].kind == SYNC_FOR_DEVICE)
			page = driver->log_pages[i - 1];
		if (!page)
			continue;
		name = page_address(page);
		driver->log[i].pool = name->pool;
		driver->log[i].page = name->page;
	}
	driver->named = driver->logged;
}

static dma_addr_t map_phys(struct device *dev, phys_addr_t at, size_t size, enum dma_data_direction dma_dir,
			   unsigned long attrs)
{
	struct driver *driver = dev_get_drvdata(dev);

	if (driver->fail_map && !--driver->fail_map) {
		note(dev, MAP_FAILED, at, size, dma_dir);
		return DMA_MAPPING_ERROR;
	}
	note(dev, MAP, at, size, dma_dir);
	return at;
}

static void unmap_phys(struct device *dev, dma_addr_t at, size_t size, enum dma_data_direction dma_dir,
		       unsigned long attrs)
{
	note(dev, UNMAP, at, size, dma_dir);
}

static void sync_for_device(struct device *dev, dma_addr_t at, size_t size, enum dma_data_direction dma_dir)
{
	note(dev, SYNC_FOR_DEVICE, at, size, dma_dir);
}

static void sync_for_cpu(struct device *dev, dma_addr_t at, size_t size, enum dma_data_direction dma_dir)
{
	note(dev, SYNC_FOR_CPU, at, size, dma_dir);
}

static int dma_supported(struct device *dev, u64 mask)
{
	return 1;
}

static const struct dma_map_ops logging_ops = {
	.map_phys = map_phys,
	.unmap_phys = unmap_phys,
	.sync_single_for_device = sync_for_device,
	.sync_single_for_cpu = sync_for_cpu,
	.dma_supported = dma_supported,
};

/* -- pools -------------------------------------------------------------------------------------------------------- */

/* page_pool calls this once for each page that enters. */
static void entered(netmem_ref netmem, void *arg)
{
	struct slot *slot = arg;
	struct page *page = netmem_to_page(netmem);
	struct name *name = page_address(page);

	name->pool = slot->index;
	name->page = 0;
	if (slot->entered == NUMBERS)
		return;
	name->page = ++slot->entered;
	slot->numbers[name->page].page = page;
}

static int create(struct driver *driver, const struct pool_params *given)
{
	struct page_pool_params params = {
		.order = given->order,
		.pool_size = given->pool_size,
		.nid = given->nid,
		.dev = given->dev ? &driver->platform->dev : NULL,
		.napi = given->napi ? &driver->napi : NULL,
		.dma_dir = given->dma_dir,
		.max_len = given->max_len,
		.offset = given->offset,
		.flags = given->flags,
		.init_callback = entered,
	};
	struct page_pool *pool;
	struct slot *slot;

	if (given->pool >= POOLS)
		return -ECHRNG;
	slot = &driver->slots[given->pool];
	if (slot->pool)
		return -EBUSY;
	/* What the kernel takes on trust from a driver. */
	if ((given->flags & PP_FLAG_DMA_MAP && !given->dev) || given->flags & PP_FLAG_ALLOW_UNREADABLE_NETMEM)
		return -ENXIO;
	if (given->nid != NUMA_NO_NODE && (given->nid < 0 || given->nid >= MAX_NUMNODES || !node_online(given->nid)))
		return -ENXIO;
	params.init_arg = slot;
	memset(slot->numbers, 0, (NUMBERS + 1) * sizeof(*slot->numbers));
	slot->entered = slot->out = 0;
	pool = page_pool_create(&params);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	slot->pool = pool;
	slot->order = given->order;
	slot->users = 1;
	slot->has_napi = given->napi;
	return 0;
}

/* A pool that was destroyed lives as long as a page is out. */
static bool alive(const struct slot *slot)
{
	return slot->pool && (slot->users || slot->out);
}

static void look(const struct slot *slot, struct figures *figures)
{
	const struct page_pool *pool = slot->pool;
	const struct ptr_ring *ring = &pool->ring;
	struct page_pool_stats stats = {};
	int at = ring->producer, head = ring->consumer_head, filled = at - head;

	page_pool_get_stats(pool, &stats);
	memcpy(figures->counters, &stats, sizeof(figures->counters));
	if (filled < 0 || (!filled && ring->queue[head]))
		filled += ring->size;
	figures->in_ring = filled;
	figures->room = 0;
	while (figures->room < ring->size && !ring->queue[at]) {
		figures->room++;
		at = at + 1 == ring->size ? 0 : at + 1;
	}
	figures->in_cache = pool->alloc.count;
	figures->hold_cnt = pool->pages_state_hold_cnt;
	figures->release_cnt = atomic_read(&pool->pages_state_release_cnt);
	figures->users = refcount_read(&pool->user_cnt);
	figures->nid = pool->p.nid;
}

static void destroy(struct driver *driver, struct slot *slot)
{
	bool stop = slot->has_napi && slot->users == 1;

	if (stop) /* page_pool wants the poll to be off when it cuts the pool loose */
		napi_disable(&driver->napi);
	slot->users--;
	page_pool_destroy(slot->pool);
	if (stop)
		napi_enable(&driver->napi);
}

/* -- calls -------------------------------------------------------------------------------------------------------- */

/* The page of that number, if user space has a reference of the pool's. */
static struct number *lent(struct driver *driver, __u32 pool, __u32 page)
{
	struct slot *slot;

	if (pool >= POOLS || !page || page > NUMBERS)
		return NULL;
	slot = &driver->slots[pool];
	return slot->pool && slot->numbers[page].refs > 0 ? &slot->numbers[page] : NULL;
}

static int handed_out(struct slot *slot, struct pool_call *call, struct page *page)
{
	struct name *name;

	call->page = 0;
	if (!page)
		return -ENOMEM;
	call->flags = page_is_pfmemalloc(page) ? EMERGENCY : 0;
	name = page_address(page);
	call->page = name->page;
	if (!name->page)
		return -EOVERFLOW; /* and the page is lost: a test that takes so many is wrong */
	if (!slot->numbers[name->page].refs++)
		slot->out++;
	return 0;
}

static void given_back(struct slot *slot, struct number *number, long refs)
{
	number->refs -= refs;
	if (!number->refs)
		slot->out--;
}

static int put_bulk(struct driver *driver, const struct pool_call *call)
{
	netmem_ref netmems[BULK_MOST];
	__u32 i;

	if (call->count > BULK_MOST)
		return -E2BIG;
	for (i = 0; i < call->count; i++) {
		struct number *number = lent(driver, call->bulk[i].pool, call->bulk[i].page);

		if (!number)
			break;
		netmems[i] = page_to_netmem(number->page);
		given_back(&driver->slots[call->bulk[i].pool], number, 1);
	}
	page_pool_put_netmem_bulk(netmems, i); /* what comes after a page that is not out stays out */
	return i == call->count ? 0 : -ENOENT;
}

static int put(struct driver *driver, struct slot *slot, const struct pool_call *call)
{
	struct number *number = lent(driver, call->pool, call->page);
	bool direct = call->flags & DIRECT;
	long refs = call->what == UNREF ? call->value : 1;

	if (!number || refs < 1 || refs > number->refs)
		return -ENOENT;
	given_back(slot, number, refs);
	switch (call->what) {
	case PUT_PAGE:
		page_pool_put_page(slot->pool, number->page, call->value, direct);
		break;
	case PUT_FULL_PAGE:
		page_pool_put_full_page(slot->pool, number->page, direct);
		break;
	case RECYCLE_DIRECT:
		page_pool_recycle_direct(slot->pool, number->page);
		break;
	case FREE_VA:
		page_pool_free_va(slot->pool, page_address(number->page) + call->offset, direct);
		break;
	case UNREF:
		if (!page_pool_unref_page(number->page, refs))
			page_pool_put_unrefed_page(slot->pool, number->page, -1, direct);
		break;
	}
	return 0;
}

/* Take all of a node's memory that an atomic allocation gets, or give it back. */
static void hog(struct driver *driver, int nid)
{
	gfp_t gfp = GFP_ATOMIC | __GFP_NOWARN | __GFP_THISNODE;
	struct page *page;
	int order;

	while (nid == NUMA_NO_NODE && driver->hogged) {
		page = driver->hogged;
		driver->hogged = (struct page *)page->lru.next;
		__free_pages(page, page_private(page));
	}
	if (nid == NUMA_NO_NODE)
		return;
	for (order = MAX_PAGE_ORDER; order >= 0; order--)
		while ((page = alloc_pages_node(nid, gfp, order))) {
			set_page_private(page, order);
			page->lru.next = (void *)driver->hogged;
			driver->hogged = page;
		}
}

static int alloc(struct slot *slot, struct pool_call *call)
{
	gfp_t gfp = GFP_ATOMIC | __GFP_NOWARN;
	struct page *page = NULL;
	void *vaddr;

	if (call->flags & EMERGENCY) {
		hog(slot->driver, numa_mem_id()); /* once more: somebody may have freed memory since */
		gfp |= __GFP_MEMALLOC | __GFP_THISNODE;
	}
	switch (call->what) {
	case ALLOC_PAGES:
		page = page_pool_alloc_pages(slot->pool, gfp);
		break;
	case ALLOC_FRAG:
		page = page_pool_alloc_frag(slot->pool, &call->offset, call->size, gfp);
		break;
	case ALLOC:
		page = page_pool_alloc(slot->pool, &call->offset, &call->size, gfp);
		break;
	case ALLOC_VA:
		vaddr = page_pool_alloc_va(slot->pool, &call->size, gfp);
		if (vaddr) {
			page = virt_to_head_page(vaddr);
			call->offset = vaddr - page_address(page);
		}
		break;
	}
	return handed_out(slot, call, page);
}

static int refer(struct driver *driver, struct slot *slot, const struct pool_call *call)
{
	struct number *number = &slot->numbers[call->page];
	__s32 i;

	if (!call->page || call->page > NUMBERS)
		return -ENOENT;
	if (call->what == DROP_PAGE) {
		if (!number->holders)
			return -ENOENT;
		number->holders--;
		put_page(number->page);
		return 0;
	}
	if (!lent(driver, call->pool, call->page))
		return -ENOENT;
	if (call->what == SYNC_FOR_CPU_OF && !slot->pool->dma_map)
		return -ENXIO;
	switch (call->what) {
	case GET_PAGE:
		number->holders++;
		get_page(number->page);
		break;
	case FRAGMENT:
		if (number->refs != 1 || call->value < 1)
			return -EINVAL;
		page_pool_fragment_page(number->page, call->value);
		number->refs = call->value;
		break;
	case REF:
		for (i = 0; i < call->value; i++)
			page_pool_ref_page(number->page);
		number->refs += i;
		break;
	case SYNC_FOR_CPU_OF:
		page_pool_dma_sync_for_cpu(slot->pool, number->page, call->offset, call->size);
		break;
	}
	return 0;
}

/* Runs where user space asked for. */
static int carry_out(struct driver *driver)
{
	struct pool_call *call = &driver->call;
	struct slot *slot = &driver->slots[call->pool];
	bool closed = !slot->users;

	call->cpu = raw_smp_processor_id();
	switch (call->what) {
	case LOOK:
		return 0;
	case ALLOC_PAGES:
	case ALLOC_FRAG:
	case ALLOC:
	case ALLOC_VA:
		return closed ? -ESHUTDOWN : alloc(slot, call);
	case PUT_PAGE:
	case PUT_FULL_PAGE:
	case RECYCLE_DIRECT:
	case FREE_VA:
	case UNREF:
		return put(driver, slot, call);
	case PUT_BULK:
		return put_bulk(driver, call);
	case GET_PAGE:
	case DROP_PAGE:
	case FRAGMENT:
	case REF:
	case SYNC_FOR_CPU_OF:
		return refer(driver, slot, call);
	case UPDATE_NID:
	case NID_CHANGED:
		if (closed)
			return -ESHUTDOWN;
		if (call->value != NUMA_NO_NODE && (call->value < 0 || !node_online(call->value)))
			return -ENXIO;
		if (call->what == UPDATE_NID)
			page_pool_update_nid(slot->pool, call->value);
		else
			page_pool_nid_changed(slot->pool, call->value);
		return 0;
	}
	return -ENOSYS;
}

static int poll(struct napi_struct *napi, int budget)
{
	struct driver *driver = container_of(napi, struct driver, napi);
	bool pending = driver->pending;

	if (pending) {
		driver->pending = false;
		driver->result = carry_out(driver);
	}
	napi_complete_done(napi, 0);
	if (pending)
		complete(&driver->polled);
	return 0;
}

/* Calls that are made in the process wherever they were asked for: they wait, or have nothing to do with a pool. */
static int control(struct driver *driver, bool *done)
{
	struct pool_call *call = &driver->call;
	struct slot *slot = &driver->slots[call->pool];

	*done = true;
	switch (call->what) {
	case FAIL_MAP:
		driver->fail_map = call->value;
		return 0;
	case HOG:
		if (call->value != NUMA_NO_NODE && (call->value < 0 || !node_online(call->value)))
			return -ENXIO;
		hog(driver, call->value);
		return 0;
	case GET_USER:
		if (!slot->users)
			return -ESHUTDOWN;
		page_pool_get(slot->pool);
		slot->users++;
		return 0;
	case DESTROY:
		if (!slot->users)
			return -ESHUTDOWN;
		destroy(driver, slot);
		return 0;
	case ENABLE_DIRECT:
	case DISABLE_DIRECT:
		if (!slot->users)
			return -ESHUTDOWN;
		napi_disable(&driver->napi);
		if (call->what == ENABLE_DIRECT)
			page_pool_enable_direct_recycling(slot->pool, &driver->napi);
		else
			page_pool_disable_direct_recycling(slot->pool);
		slot->has_napi = call->what == ENABLE_DIRECT;
		napi_enable(&driver->napi);
		return 0;
	}
	*done = false;
	return 0;
}

static int call_pool(struct driver *driver)
{
	struct pool_call *call = &driver->call;
	struct slot *slot;
	bool done;
	int result;

	if (call->pool >= POOLS || call->what >= WHATS)
		return -ECHRNG;
	slot = &driver->slots[call->pool];
	if (!alive(slot) && call->what != HOG && call->what != FAIL_MAP && call->what != DROP_PAGE)
		return -ENODEV;
	result = control(driver, &done);
	if (!done && call->where == IN_POLL) {
		reinit_completion(&driver->polled);
		driver->pending = true;
		local_bh_disable();
		napi_schedule(&driver->napi);
		local_bh_enable();
		wait_for_completion(&driver->polled);
		result = driver->result;
	} else if (!done && call->where == IN_SOFTIRQ) {
		local_bh_disable();
		result = carry_out(driver);
		local_bh_enable();
	} else if (!done) {
		result = carry_out(driver);
	}
	name_mapped(driver);
	memset(&call->figures, 0, sizeof(call->figures));
	if (alive(slot))
		look(slot, &call->figures);
	return result;
}

/* -- the file ----------------------------------------------------------------------------------------------------- */

static long driver_ioctl(struct file *file, unsigned int request, unsigned long arg)
{
	struct driver *driver = file->private_data;
	void __user *at = (void __user *)arg;
	struct pool_params params;
	long result = -ENOTTY;

	mutex_lock(&driver->lock);
	if (request == POOL_CREATE) {
		result = copy_from_user(&params, at, sizeof(params)) ? -EFAULT : create(driver, &params);
	} else if (request == POOL_CALL) {
		result = -EFAULT;
		if (!copy_from_user(&driver->call, at, sizeof(driver->call))) {
			result = call_pool(driver);
			if (copy_to_user(at, &driver->call, sizeof(driver->call)))
				result = -EFAULT;
		}
	}
	mutex_unlock(&driver->lock);
	return result;
}

static ssize_t driver_read(struct file *file, char __user *to, size_t size, loff_t *offset)
{
	struct driver *driver = file->private_data;
	ssize_t result;

	mutex_lock(&driver->lock);
	result = driver->logged * sizeof(*driver->log);
	if (driver->logged == LOG_MOST)
		result = -EOVERFLOW;
	else if (size < result)
		result = -EMSGSIZE;
	else if (copy_to_user(to, driver->log, result))
		result = -EFAULT;
	driver->logged = driver->named = 0;
	mutex_unlock(&driver->lock);
	return result;
}

static void give_up_slot(struct driver *driver, struct slot *slot)
{
	__u32 i;

	for (i = 1; slot->pool && i <= slot->entered; i++) {
		struct number *number = &slot->numbers[i];

		if (number->refs) {
			long refs = number->refs;

			given_back(slot, number, refs);
			if (!page_pool_unref_page(number->page, refs))
				page_pool_put_unrefed_page(slot->pool, number->page, -1, false);
		}
		for (; number->holders; number->holders--)
			put_page(number->page);
	}
	while (slot->pool && slot->users)
		destroy(driver, slot);
	vfree(slot->numbers);
}

static int driver_release(struct inode *inode, struct file *file)
{
	struct driver *driver = file->private_data;
	int i;

	hog(driver, NUMA_NO_NODE);
	for (i = 0; i < POOLS; i++)
		give_up_slot(driver, &driver->slots[i]);
	if (driver->netdev) {
		napi_disable(&driver->napi);
		netif_napi_del(&driver->napi);
		free_netdev(driver->netdev);
	}
	if (!IS_ERR_OR_NULL(driver->platform))
		platform_device_unregister(driver->platform);
	vfree(driver->log);
	vfree(driver->log_pages);
	kvfree(driver);
	return 0;
}

static int driver_open(struct inode *inode, struct file *file)
{
	struct driver *driver = kvzalloc(sizeof(*driver), GFP_KERNEL);
	int i, result = -ENOMEM;

	if (!driver)
		return -ENOMEM;
	mutex_init(&driver->lock);
	init_completion(&driver->polled);
	spin_lock_init(&driver->log_lock);
	file->private_data = driver;
	driver->log = vzalloc(LOG_MOST * sizeof(*driver->log));
	driver->log_pages = vzalloc(LOG_MOST * sizeof(*driver->log_pages));
	for (i = 0; i < POOLS; i++) {
		driver->slots[i].driver = driver;
		driver->slots[i].index = i;
		driver->slots[i].numbers = vzalloc((NUMBERS + 1) * sizeof(struct number));
		if (!driver->slots[i].numbers)
			goto failed;
	}
	driver->platform = platform_device_register_simple("pool_driver", PLATFORM_DEVID_AUTO, NULL, 0);
	if (IS_ERR(driver->platform)) {
		result = PTR_ERR(driver->platform);
		goto failed;
	}
	platform_set_drvdata(driver->platform, driver);
	set_dma_ops(&driver->platform->dev, &logging_ops);
	result = dma_set_mask(&driver->platform->dev, DMA_BIT_MASK(64)); /* decides whether syncs are wanted */
	driver->netdev = result ? NULL : alloc_netdev_dummy(0);
	if (!driver->log || !driver->log_pages || !driver->netdev) {
		result = result ?: -ENOMEM;
		goto failed;
	}
	netif_napi_add(driver->netdev, &driver->napi, poll);
	napi_enable(&driver->napi);
	return 0;
failed:
	driver_release(inode, file);
	return result;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = driver_open,
	.release = driver_release,
	.read = driver_read,
	.unlocked_ioctl = driver_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pool_driver",
	.fops = &operations,
	.mode = 0600,
};
module_misc_device(device);

MODULE_DESCRIPTION("Lets user space drive page pools, for pagepool's tests");
MODULE_LICENSE("Dual MIT/GPL");
