"""Somebody to be reached: answers on TCP and UDP, at `ADDRESS PORT...`, or everywhere on a rank's ports and others."""

import selectors
import signal
import socket
import sys

ADDRESS, *PORTS = sys.argv[1:] or ("", "8000", "8443", "9400", "29400")
BOTH = not ADDRESS and socket.has_dualstack_ipv6()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the first process of a container would not end
    with selectors.DefaultSelector() as selector:
        for port in PORTS:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                selector.register(listener(kind, int(port)), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                answer(key.fileobj)


def listener(kind: int, port: int) -> socket.socket:
    """Of IPv6 too, where there is any and no address is named."""
    made = socket.socket(socket.AF_INET6 if BOTH else socket.AF_INET, kind)
    if BOTH:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((ADDRESS, port))
    if kind == socket.SOCK_STREAM:
        made.listen(128)
    return made


def answer(waiting: socket.socket) -> None:
    if waiting.type == socket.SOCK_STREAM:
        waiting.accept()[0].close()
    else:
        waiting.sendto(b"here", waiting.recvfrom(512)[1])


main()
