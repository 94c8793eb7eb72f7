"""Who answers: takes [[protocol, address, port], ...] as JSON, tries all at once, writes as many of true and false."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

PATIENCE_S = 4
# A question that name servers answer, and others as any datagram.
QUESTION = b"\0\1\1\0\0\1\0\0\0\0\0\0\x0akubernetes\7default\3svc\7cluster\5local\0\0\1\0\1"


def answers(target: list) -> bool:
    protocol, address, port = target
    try:
        if protocol == "TCP":
            socket.create_connection((address, port), timeout=PATIENCE_S).close()
        else:
            exchange(address, port)
    except OSError:
        return False
    return True


def exchange(address: str, port: int) -> None:
    (family, kind, protocol, _, place), *_ = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
    with socket.socket(family, kind, protocol) as asking:
        asking.settimeout(PATIENCE_S)
        asking.connect(place)
        asking.send(QUESTION)
        asking.recv(512)


targets = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(targets)) as pool:
    sys.stdout.write(json.dumps(list(pool.map(answers, targets))))
