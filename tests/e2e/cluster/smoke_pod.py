"""Runs in each of the two pods of the smoke test: reaches the other one, the shared volume and the API server."""

import os
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ME = int(os.environ["JOB_COMPLETION_INDEX"])
OTHER = f"smoke-{1 - ME}.smoke.smoke.svc.cluster.local"
SHARED = Path("/shared")
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def main() -> None:
    threading.Thread(target=serve, daemon=True).start()
    (SHARED / f"from-{ME}").write_text("hello")
    answer = patiently(greet)
    text = patiently((SHARED / f"from-{1 - ME}").read_text)
    gpus = os.environ["NVIDIA_VISIBLE_DEVICES"]
    sys.stdout.write(f"{answer}; volume says {text}; api server says {ask_api_server()}; gpus {gpus}\n")
    sys.stdout.flush()
    (SHARED / f"done-{ME}").touch()
    patiently((SHARED / "go").read_text)  # until the test has looked into the running pods
    patiently((SHARED / f"done-{1 - ME}").read_text)


def serve() -> None:
    with socket.create_server(("", 5000)) as server:
        while True:
            peer, _ = server.accept()
            with peer:
                peer.sendall(f"pod {ME} says hello".encode())


def greet() -> str:
    with socket.create_connection((OTHER, 5000), timeout=1) as peer:
        return peer.recv(100).decode()


def ask_api_server() -> str:
    request = urllib.request.Request("https://kubernetes.default.svc/readyz")
    request.add_header("Authorization", f"Bearer {(ACCOUNT / 'token').read_text()}")
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=5, context=trusted) as response:
        return str(response.read().decode())


def patiently(act: Callable[[], str], seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while True:
        try:
            return act()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


main()
