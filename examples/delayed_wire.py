#!/usr/bin/env python3
"""A wire with latency between two network namespaces, for kernels that lack netem.

    delayed_wire.py DELAY_MS NAMESPACE DEVICE NAMESPACE DEVICE

Makes a TUN device in each and carries every packet to the other, DELAY_MS after it came. Prints a
line once both are there; the caller gives them addresses. Ends with its process.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def make_device(namespace, name):
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as place:
        if libc.setns(place.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def carry(delay_s, ends):
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    under_way = collections.deque()  # (when due, to where, packet): all take the same time
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for end in select.select(ends, [], [], wait_s)[0]:
            under_way.append((time.monotonic() + delay_s, other[end], os.read(end, 65536)))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, packet = under_way.popleft()
            try:
                os.write(end, packet)
            except OSError:
                pass  # not up (yet), or full: lost, as on any wire


def main():
    delay_ms, here, device, there, far = sys.argv[1:]
    ends = [make_device(here, device), make_device(there, far)]
    print("there", flush=True)
    carry(float(delay_ms) / 1000, ends)


if __name__ == "__main__":
    main()
