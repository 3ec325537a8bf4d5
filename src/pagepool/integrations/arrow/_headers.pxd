# SPDX-License-Identifier: MIT
# Header of _headers.py: what is read of one frame.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, int64_t

ctypedef struct pp_header_t:
    uint16_t ethertype       # behind the tags
    uint16_t vlan            # number of the outermost tag
    uint16_t src_port
    uint16_t dst_port
    uint8_t proto            # of IPv6: behind its extension headers
    uint8_t has              # HAS_*
    uint8_t src_ip[16]       # of IPv4: the first four bytes
    uint8_t dst_ip[16]

cpdef enum:
    HAS_ETHERTYPE = 1
    HAS_VLAN = 2
    HAS_IP = 4
    HAS_PROTO = 8
    HAS_SRC_PORT = 16
    HAS_DST_PORT = 32
    IS_IPV6 = 64

cdef enum:
    ETHERNET_BYTES = 14
    TAG_BYTES = 4
    MAX_TAGS = 2
    TAG_8021Q = 0x8100
    TAG_8021AD = 0x88A8
    IPV4 = 0x0800
    IPV6 = 0x86DD
    IPV4_BYTES = 20
    IPV6_BYTES = 40
    MAX_EXTENSIONS = 8       # more is an attack, not a packet
    FRAGMENT_OFFSET = 0x1FFF

# IP protocols, and IPv6 extension headers, which share the numbers.
cdef enum:
    HOP_BY_HOP = 0
    TCP = 6
    UDP = 17
    DCCP = 33
    ROUTING = 43
    FRAGMENT = 44
    AUTHENTICATION = 51
    DESTINATION = 60
    SCTP = 132
    UDP_LITE = 136

cdef enum:
    INLINE_BYTES = 12        # of a view: longer values lie in a data buffer
    TEXT_BYTES = 46          # INET6_ADDRSTRLEN

cdef extern from "<arpa/inet.h>" nogil:
    int AF_INET6
    const char *inet_ntop(int family, const void *source, char *to, uint32_t size_bytes)

cdef inline uint32_t be16(const uint8_t *at) noexcept nogil:
    return (<uint32_t>at[0] << 8) | at[1]

cdef void _ethernet(const uint8_t *frame, int64_t end, pp_header_t *out) noexcept nogil
cdef void _ipv4(const uint8_t *packet, int64_t end, pp_header_t *out) noexcept nogil
cdef void _ipv6(const uint8_t *packet, int64_t end, pp_header_t *out) noexcept nogil
cdef void _ports(const uint8_t *at, int64_t end, pp_header_t *out) noexcept nogil
cdef uint32_t _write_text(const uint8_t *ip, bint is_ipv6, uint8_t *to) noexcept nogil
