/* SPDX-License-Identifier: MIT
 * Have igb offer its n-tuple rules on the 82576 that QEMU emulates. The driver offers them from the i350 on; the
 * registers that it writes for EtherTypes and stations are there since the 82576. Load it after igb has its devices.
 */
#include <linux/ethtool.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>

static bool is_igb(struct net_device *dev)
{
	return dev->dev.parent && dev->dev.parent->driver && !strcmp(dev->dev.parent->driver->name, "igb");
}

static int __init igb_ntuple_init(void)
{
	struct net_device *dev;

	rtnl_lock();
	for_each_netdev(&init_net, dev)
		if (is_igb(dev))
			dev->hw_features |= NETIF_F_NTUPLE;
	rtnl_unlock();
	return 0;
}

static void __exit igb_ntuple_exit(void)
{
}

module_init(igb_ntuple_init);
module_exit(igb_ntuple_exit);
MODULE_DESCRIPTION("n-tuple rules for igb's older devices");
MODULE_LICENSE("Dual MIT/GPL");
