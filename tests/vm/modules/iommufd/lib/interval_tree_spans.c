// SPDX-License-Identifier: MIT
/*
 * The one thing of the kernel proper that iommufd needs and a kernel without it does not have:
 * interval_tree_span_iter_*(). They come from the kernel's own file, under their own names; the rest of that
 * file is in every kernel, so it gets other names here.
 */
#define interval_tree_insert spans_interval_tree_insert
#define interval_tree_remove spans_interval_tree_remove
#define interval_tree_subtree_search spans_interval_tree_subtree_search
#define interval_tree_iter_first spans_interval_tree_iter_first
#define interval_tree_iter_next spans_interval_tree_iter_next

#include "interval_tree.c"

#include <linux/module.h>

MODULE_DESCRIPTION("Spans of interval trees, for iommufd");
MODULE_LICENSE("Dual MIT/GPL");
