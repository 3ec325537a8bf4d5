// SPDX-License-Identifier: MIT
/*
 * A NIC in software that obeys flow rules, for tests in a virtual machine: no device that QEMU emulates does.
 *
 * Two interfaces: what is sent on the wire, "rule-wire", is received by the NIC, "rule-nic". The NIC has QUEUES receive
 * queues and PLACES for rules (ethtool -N). The rule at the lowest place that matches names the queue; what none matches
 * goes to queue 0, and what the NIC sends goes nowhere.
 *
 * What a rule means is not said here: the kernel translates it (ethtool_rx_flow_rule_create), the kernel's dissector
 * takes the frame apart, and what is left is a comparison under masks. So a rule that user space has put together
 * wrongly goes wrong here as it would in a chip. One kind is compared here: of a rule of type ETHER_FLOW the kernel's
 * translation (7.3) loses the stations, and demands EtherType 0 where none is asked for.
 *
 * Context: rules change under rtnl and are read under RCU.
 */
#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <net/dst.h>
#include <net/flow_dissector.h>
#include <net/flow_offload.h>

#define QUEUES 4
#define PLACES 64

struct rule {
	struct ethtool_rx_flow_spec spec;
	struct ethtool_rx_flow_rule *flow;
	struct rcu_head rcu;
};

/* What the dissector finds in a frame. */
struct found {
	struct flow_dissector_key_control control;
	struct flow_dissector_key_basic basic;
	struct flow_dissector_key_ipv4_addrs ipv4;
	struct flow_dissector_key_ipv6_addrs ipv6;
	struct flow_dissector_key_ports ports;
	struct flow_dissector_key_ip ip;
	struct flow_dissector_key_vlan vlan;
	struct flow_dissector_key_eth_addrs eth;
} __aligned(BITS_PER_LONG / 8);

#define KEY(id, field) { FLOW_DISSECTOR_KEY_##id, offsetof(struct found, field) }
static const struct flow_dissector_key keys[] = {
	KEY(CONTROL, control), KEY(BASIC, basic), KEY(IPV4_ADDRS, ipv4), KEY(IPV6_ADDRS, ipv6),
	KEY(PORTS, ports),     KEY(IP, ip),	  KEY(VLAN, vlan),	 KEY(ETH_ADDRS, eth),
};

#define SIZE(field) sizeof_field(struct found, field)
static const size_t sizes[ARRAY_SIZE(keys)] = {
	0, /* CONTROL: no rule asks for it */
	SIZE(basic), SIZE(ipv4), SIZE(ipv6), SIZE(ports), SIZE(ip), SIZE(vlan), SIZE(eth),
};

static struct flow_dissector dissector __read_mostly;
static struct rule __rcu *rules[PLACES];
static struct net_device *nic, *wire;

/* -- receiving ------------------------------------------------------------------------------------------------ */

static bool is_alike(const u8 *found, const u8 *key, const u8 *mask, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++)
		if ((found[i] ^ key[i]) & mask[i])
			return false;
	return true;
}

static bool is_ether(const struct ethtool_rx_flow_spec *spec)
{
	return (spec->flow_type & ~(FLOW_EXT | FLOW_MAC_EXT)) == ETHER_FLOW;
}

static bool matches_ether(const struct ethtool_rx_flow_spec *spec, const struct sk_buff *skb, const struct found *found)
{
	struct ethhdr header = *eth_hdr(skb);

	header.h_proto = found->basic.n_proto; /* behind tags */
	return is_alike((u8 *)&header, (u8 *)&spec->h_u.ether_spec, (u8 *)&spec->m_u.ether_spec, sizeof(header));
}

static bool matches(const struct rule *rule, const struct sk_buff *skb, struct found *found)
{
	const struct flow_rule *flow = rule->flow->rule;
	const struct flow_match *match = &flow->match;
	bool ether = is_ether(&rule->spec);
	int i;

	if (ether && !matches_ether(&rule->spec, skb, found))
		return false;
	for (i = 0; i < ARRAY_SIZE(keys); i++) {
		enum flow_dissector_key_id id = keys[i].key_id;

		if (ether && id == FLOW_DISSECTOR_KEY_BASIC)
			continue;
		if (sizes[i] && flow_rule_match_key(flow, id) &&
		    !is_alike((u8 *)found + keys[i].offset, skb_flow_dissector_target(match->dissector, id, match->key),
			      skb_flow_dissector_target(match->dissector, id, match->mask), sizes[i]))
			return false;
	}
	return true;
}

/* Return the queue for a frame whose data begin behind its Ethernet header. Context: RCU. */
static u16 queue_for(const struct sk_buff *skb)
{
	struct found found = {};
	int i;

	if (!(nic->features & NETIF_F_NTUPLE))
		return 0;
	skb_flow_dissect(skb, &dissector, &found, FLOW_DISSECTOR_F_PARSE_1ST_FRAG);
	for (i = 0; i < PLACES; i++) {
		const struct rule *rule = rcu_dereference(rules[i]);

		if (rule && matches(rule, skb, &found))
			return ethtool_get_flow_spec_ring(rule->spec.ring_cookie);
	}
	return 0;
}

static netdev_tx_t wire_xmit(struct sk_buff *skb, struct net_device *dev)
{
	skb_orphan(skb);
	skb_dst_drop(skb);
	if (!netif_running(nic)) {
		dev_kfree_skb_any(skb);
		return NETDEV_TX_OK;
	}
	skb->protocol = eth_type_trans(skb, nic);
	skb_reset_network_header(skb);
	rcu_read_lock();
	skb_record_rx_queue(skb, queue_for(skb));
	rcu_read_unlock();
	netif_rx(skb);
	return NETDEV_TX_OK;
}

static netdev_tx_t nic_xmit(struct sk_buff *skb, struct net_device *dev)
{
	dev_kfree_skb_any(skb);
	return NETDEV_TX_OK;
}

/* -- rules ---------------------------------------------------------------------------------------------------- */

static void free_rule(struct rcu_head *head)
{
	struct rule *rule = container_of(head, struct rule, rcu);

	ethtool_rx_flow_rule_destroy(rule->flow);
	kfree(rule);
}

static int put_rule(u32 place, struct rule *rule)
{
	struct rule *before;

	if (place >= PLACES)
		return -EINVAL;
	before = rtnl_dereference(rules[place]);
	if (!rule && !before)
		return -ENOENT;
	rcu_assign_pointer(rules[place], rule);
	if (before)
		call_rcu(&before->rcu, free_rule);
	return 0;
}

static int insert(const struct ethtool_rx_flow_spec *spec)
{
	struct ethtool_rx_flow_spec_input input = { .fs = spec };
	struct rule *rule;
	int error;

	if (ethtool_get_flow_spec_ring(spec->ring_cookie) >= QUEUES)
		return -EINVAL;
	rule = kzalloc(sizeof(*rule), GFP_KERNEL);
	if (!rule)
		return -ENOMEM;
	rule->spec = *spec;
	rule->flow = ethtool_rx_flow_rule_create(&input);
	if (IS_ERR(rule->flow)) {
		error = PTR_ERR(rule->flow);
		kfree(rule);
		return error;
	}
	error = put_rule(spec->location, rule);
	if (error)
		free_rule(&rule->rcu);
	return error;
}

static int set_rxnfc(struct net_device *dev, struct ethtool_rxnfc *asked)
{
	switch (asked->cmd) {
	case ETHTOOL_SRXCLSRLINS:
		return insert(&asked->fs);
	case ETHTOOL_SRXCLSRLDEL:
		return put_rule(asked->fs.location, NULL);
	default:
		return -EOPNOTSUPP;
	}
}

static int get_rxnfc(struct net_device *dev, struct ethtool_rxnfc *asked, u32 *places)
{
	const struct rule *rule;
	u32 i, count = 0;

	switch (asked->cmd) {
	case ETHTOOL_GRXCLSRULE:
		rule = asked->fs.location < PLACES ? rtnl_dereference(rules[asked->fs.location]) : NULL;
		if (!rule)
			return -ENOENT;
		asked->fs = rule->spec;
		return 0;
	case ETHTOOL_GRXCLSRLCNT:
	case ETHTOOL_GRXCLSRLALL:
		for (i = 0; i < PLACES; i++) {
			if (!rtnl_dereference(rules[i]))
				continue;
			if (asked->cmd == ETHTOOL_GRXCLSRLALL) {
				if (count == asked->rule_cnt)
					return -EMSGSIZE;
				places[count] = i;
			}
			count++;
		}
		asked->rule_cnt = count;
		asked->data = PLACES;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static u32 get_rx_ring_count(struct net_device *dev)
{
	return QUEUES;
}

static void get_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	channels->max_rx = channels->rx_count = QUEUES;
	channels->max_tx = channels->tx_count = 1;
}

static const struct ethtool_ops nic_ethtool = {
	.get_channels = get_channels,
	.get_rx_ring_count = get_rx_ring_count,
	.get_rxnfc = get_rxnfc,
	.set_rxnfc = set_rxnfc,
};

/* -- the two interfaces --------------------------------------------------------------------------------------- */

static int open(struct net_device *dev)
{
	netif_carrier_on(dev);
	return 0;
}

static int stop(struct net_device *dev)
{
	netif_carrier_off(dev);
	return 0;
}

static const struct net_device_ops nic_ops = { .ndo_open = open, .ndo_stop = stop, .ndo_start_xmit = nic_xmit };
static const struct net_device_ops wire_ops = { .ndo_open = open, .ndo_stop = stop, .ndo_start_xmit = wire_xmit };

static struct net_device *make(const char *name, const struct net_device_ops *ops, unsigned int queues)
{
	struct net_device *dev = alloc_netdev_mqs(0, name, NET_NAME_USER, ether_setup, 1, queues);
	int error;

	if (!dev)
		return ERR_PTR(-ENOMEM);
	eth_hw_addr_random(dev);
	dev->netdev_ops = ops;
	if (ops == &nic_ops) {
		dev->ethtool_ops = &nic_ethtool;
		dev->hw_features |= NETIF_F_NTUPLE;
	}
	netif_carrier_off(dev);
	error = register_netdev(dev);
	if (error) {
		free_netdev(dev);
		return ERR_PTR(error);
	}
	return dev;
}

static void drop(struct net_device *dev)
{
	unregister_netdev(dev);
	free_netdev(dev);
}

static int __init rule_nic_init(void)
{
	skb_flow_dissector_init(&dissector, keys, ARRAY_SIZE(keys));
	nic = make("rule-nic", &nic_ops, QUEUES);
	if (IS_ERR(nic))
		return PTR_ERR(nic);
	wire = make("rule-wire", &wire_ops, 1);
	if (IS_ERR(wire)) {
		drop(nic);
		return PTR_ERR(wire);
	}
	return 0;
}

static void __exit rule_nic_exit(void)
{
	int i;

	drop(wire); /* first: it sends to the other */
	rtnl_lock();
	for (i = 0; i < PLACES; i++)
		put_rule(i, NULL);
	rtnl_unlock();
	drop(nic);
	rcu_barrier();
}

module_init(rule_nic_init);
module_exit(rule_nic_exit);
MODULE_DESCRIPTION("A NIC in software that obeys flow rules");
MODULE_LICENSE("Dual MIT/GPL");
