/* SPDX-License-Identifier: MIT
 *
 * rte_mempool in the shape of our bulk rows: take n objects of 4 KiB, put them back at once, from one lcore with its
 * cache of 512 objects, as DPDK's drivers use it.
 *
 * A line "N TIMES" on standard input is answered by a line with the nanoseconds that TIMES rounds of N took; so the
 * benchmark that starts this program can measure it in turns with its own rows.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_lcore.h>
#include <rte_mempool.h>

#define OBJECTS 16383
#define OBJECT_BYTES 4096
#define CACHE_OBJECTS 512
#define MOST 64

static uint64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* Inlined with a constant n, as an application that knows its burst size would have it. */
static inline __attribute__((always_inline)) uint64_t take_and_put(struct rte_mempool *pool, unsigned int n, uint64_t times)
{
	void *objects[MOST];
	uint64_t start = now_ns();

	for (uint64_t i = 0; i < times; i++) {
		if (rte_mempool_get_bulk(pool, objects, n) != 0)
			exit(2);
		rte_mempool_put_bulk(pool, objects, n);
	}
	return now_ns() - start;
}

static uint64_t measure(struct rte_mempool *pool, unsigned int n, uint64_t times)
{
	switch (n) {
	case 1:
		return take_and_put(pool, 1, times);
	case 4:
		return take_and_put(pool, 4, times);
	case 8:
		return take_and_put(pool, 8, times);
	case 32:
		return take_and_put(pool, 32, times);
	case 64:
		return take_and_put(pool, 64, times);
	default:
		exit(3);
	}
}

int main(int argc, char **argv)
{
	struct rte_mempool *pool;
	unsigned int n;
	uint64_t times;

	if (rte_eal_init(argc, argv) < 0)
		return 1;
	pool = rte_mempool_create("pages", OBJECTS, OBJECT_BYTES, CACHE_OBJECTS, 0, NULL, NULL, NULL, NULL,
				  (int)rte_socket_id(), 0);
	if (pool == NULL) {
		fprintf(stderr, "rte_mempool_create failed\n");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	while (scanf("%u %" SCNu64, &n, &times) == 2) {
		printf("%" PRIu64 "\n", measure(pool, n, times));
		fflush(stdout);
	}
	return 0;
}
