# SPDX-License-Identifier: MIT
"""VLAN, addresses, protocol and ports of frames, straight from their pages; addresses as text.

A reader of Ethernet, 802.1Q, IPv4 and IPv6, not a dissector: the 5-tuple and nothing behind it. Compiled, because in
NumPy the masks of every "if" cost five microseconds a frame in batches of 64; here it is twenty nanoseconds. Invariant:
a byte is read only where it lies inside its frame and, behind an IP header, inside the packet that the header
announces. A field of which a byte is missing is not there, so a truncated frame never shows what its page held before.

Sources: IEEE 802.1Q clause 9; RFC 791 section 3.1; RFC 8200 sections 3 and 4; RFC 4302 section 2.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t
from cython.cimports.libc.string import memcpy, memset, strlen

if not cython.compiled:
    raise ImportError("pagepool.integrations.arrow._headers is compiled: run `make build`, or `pip install .`")


def read_headers(
    flat: cython.const[cython.uchar][::1], starts: int64_t[::1], lengths: int64_t[::1], out: cython.uchar[::1]
) -> None:
    """Read the headers of frames.

    Parameters
    ----------
    flat : (size_bytes,) uint8
        The arena, see `pagepool.xdp.FrameMemory`.
    starts, lengths : (n,) int64
        First byte of each frame in it, and bytes of each.
    out : (n * 42,) uint8
        ``pp_header_t`` of each, see `pagepool.integrations.arrow.columns`.

    Raises
    ------
    ValueError
        The buffers do not fit each other, or a frame is outside of `flat`.

    Notes
    -----
    Context: whoever holds the pages. The GIL is held: a few microseconds.
    """
    i: cython.Py_ssize_t
    start: int64_t
    length: int64_t
    n: cython.Py_ssize_t = starts.shape[0]
    if lengths.shape[0] != n or out.shape[0] != n * cython.sizeof(pp_header_t):
        raise ValueError(f"{n} starts, {lengths.shape[0]} lengths and {out.shape[0]} bytes of headers do not fit")
    if n == 0:
        return
    header: cython.pointer[pp_header_t] = cython.cast(cython.pointer[pp_header_t], cython.address(out[0]))
    memset(header, 0, out.shape[0])
    for i in range(n):
        start, length = starts[i], lengths[i]  # once: without a GIL somebody may write to them meanwhile
        if start < 0 or length < 0 or length > flat.shape[0] - start:
            raise ValueError(f"frame {i}: {length} bytes at {start} are not in {flat.shape[0]} bytes")
        if length:
            _ethernet(cython.address(flat[start]), length, header + i)


def _ethernet(frame, end, out):
    at: int64_t = ETHERNET_BYTES
    tags: cython.int = 0
    if end < at:
        return
    kind: uint32_t = be16(frame + 12)
    while tags < MAX_TAGS and (kind == TAG_8021Q or kind == TAG_8021AD):
        if tags == 0 and at + 2 <= end:
            out.vlan = be16(frame + at) & 0xFFF
            out.has |= HAS_VLAN
        if at + TAG_BYTES > end:
            return
        kind = be16(frame + at + 2)
        at += TAG_BYTES
        tags += 1
    out.ethertype = kind
    out.has |= HAS_ETHERTYPE
    if kind == IPV4:
        _ipv4(frame + at, end - at, out)
    elif kind == IPV6:
        _ipv6(frame + at, end - at, out)


def _ipv4(packet, end, out):
    if end < IPV4_BYTES or packet[0] >> 4 != 4:
        return
    header: int64_t = 4 * (packet[0] & 0xF)
    total: int64_t = be16(packet + 2)
    if header < IPV4_BYTES:
        return
    memcpy(out.src_ip, packet + 12, 4)
    memcpy(out.dst_ip, packet + 16, 4)
    out.proto = packet[9]
    out.has |= HAS_IP | HAS_PROTO
    if total and total < end:  # 0 is said of packets too long for the field; behind the packet is padding
        end = total
    if be16(packet + 6) & FRAGMENT_OFFSET == 0 and header <= end:
        _ports(packet + header, end - header, out)


def _ipv6(packet, end, out):
    at: int64_t = IPV6_BYTES
    extensions: cython.int = 0
    if end < at or packet[0] >> 4 != 6:
        return
    payload: int64_t = be16(packet + 4)
    kind: uint32_t = packet[6]
    memcpy(out.src_ip, packet + 8, 16)
    memcpy(out.dst_ip, packet + 24, 16)
    out.has |= HAS_IP | IS_IPV6
    if payload and payload + IPV6_BYTES < end:
        end = payload + IPV6_BYTES
    while kind == HOP_BY_HOP or kind == ROUTING or kind == FRAGMENT or kind == AUTHENTICATION or kind == DESTINATION:
        if extensions == MAX_EXTENSIONS or at + 8 > end:  # none is shorter than 8 bytes
            return
        if kind == FRAGMENT:
            kind = packet[at]
            if be16(packet + at + 2) >> 3:  # a later fragment: what follows is no header
                out.proto = kind
                out.has |= HAS_PROTO
                return
            at += 8
        elif kind == AUTHENTICATION:
            kind = packet[at]
            at += 4 * (packet[at + 1] + 2)
        else:
            kind = packet[at]
            at += 8 * (packet[at + 1] + 1)
        extensions += 1
    out.proto = kind
    out.has |= HAS_PROTO
    if at <= end:
        _ports(packet + at, end - at, out)


def _ports(at, end, out):
    kind: uint32_t = out.proto
    if kind != TCP and kind != UDP and kind != SCTP and kind != DCCP and kind != UDP_LITE:
        return
    if end >= 2:
        out.src_port = be16(at)
        out.has |= HAS_SRC_PORT
    if end >= 4:
        out.dst_port = be16(at + 2)
        out.has |= HAS_DST_PORT


# -- addresses as text -------------------------------------------------------------------------------------------


def address_views(
    headers: cython.const[cython.uchar][::1],
    destination: cython.bint,
    views: cython.uchar[::1],
    data: cython.uchar[::1],
) -> int:
    """Write addresses as text, in Arrow's view layout.

    Parameters
    ----------
    headers : (n * 42,) uint8
        From `read_headers`.
    destination : bool
        Of the two addresses, the destination.
    views : (n * 16,) uint8
        A view for each; zero for a frame that has none.
    data : (n * 46,) uint8
        For texts of more than 12 bytes: data buffer 0 of the views.

    Returns
    -------
    int
        Bytes of `data` that are used.
    """
    i: cython.Py_ssize_t
    used: uint32_t = 0
    length: uint32_t
    ip: cython.pointer[cython.const[uint8_t]]
    n: cython.Py_ssize_t = headers.shape[0] // cython.sizeof(pp_header_t)
    if views.shape[0] != 16 * n or data.shape[0] != TEXT_BYTES * n or data.shape[0] > 0x7FFFFFFF:
        raise ValueError(f"{n} headers, {views.shape[0]} bytes of views and {data.shape[0]} of text do not fit")
    if n == 0:
        return 0
    header: cython.pointer[cython.const[pp_header_t]] = cython.cast(
        cython.pointer[cython.const[pp_header_t]], cython.address(headers[0])
    )
    view: cython.pointer[uint8_t] = cython.address(views[0])
    text: cython.pointer[uint8_t] = cython.address(data[0])
    memset(view, 0, views.shape[0])
    for i in range(n):
        if header[i].has & HAS_IP:
            ip = cython.address(header[i].dst_ip[0]) if destination else cython.address(header[i].src_ip[0])
            length = _write_text(ip, header[i].has & IS_IPV6 != 0, text + used)
            memcpy(view, cython.address(length), 4)
            if length <= INLINE_BYTES:
                memcpy(view + 4, text + used, length)
            else:
                memcpy(view + 4, text + used, 4)
                memcpy(view + 12, cython.address(used), 4)
                used += length
        view += 16
    return used


def _write_text(ip, is_ipv6, to):
    # Return its length; there is room for TEXT_BYTES.
    at: uint32_t = 0
    part: uint32_t
    i: cython.int
    if is_ipv6:
        inet_ntop(AF_INET6, ip, cython.cast(cython.p_char, to), TEXT_BYTES)
        return cython.cast(uint32_t, strlen(cython.cast(cython.p_char, to)))
    for i in range(4):
        part = ip[i]
        if i:
            to[at] = 0x2E
            at += 1
        if part >= 100:
            to[at] = 0x30 + part // 100
            at += 1
        if part >= 10:
            to[at] = 0x30 + part // 10 % 10
            at += 1
        to[at] = 0x30 + part % 10
        at += 1
    return at
