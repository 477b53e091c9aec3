"""A gateway with everything armed under load for long: its memory must stay flat, and no descriptor be left.

The load is wrk on connections that are kept; beside it, clients that come for one request each, clients
that go away in the middle of an answer, and requests with bodies. It ends with status 1 when the resident
memory grew, a descriptor was left, or a request failed.
"""

import argparse
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import ground
from ground import (
    EVERYTHING, Backends, Connection, Failed, Gateway, cpu_seconds, descriptors, need, request, resident_kib, say,
    settings,
)

CONNECTIONS = 64
CHURN_PAUSE = 0.01
# What may be told from noise: pages that the allocator keeps.
GROWTH_KIB, GROWTH_SHARE = 1024, 0.05
# Connections to endpoints that are kept, and their probes'.
LEFT = 3 * 65


class Churn:
    """Clients that come and go, in a thread of their own."""

    def __init__(self, address):
        self.address, self.failures, self.requests = address, [], 0
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        turn = 0
        while not self.is_over.is_set():
            turn += 1
            try:
                if turn % 3 == 0:
                    # Goes away when the answer has begun.
                    with socket.create_connection(self.address, 10) as gone:
                        gone.sendall(request("/64k"))
                        gone.recv(1000)
                else:
                    connection = Connection(self.address)
                    connection.ask(request("/1k", body=bytes(3000 * (turn % 2))))
                    connection.close()
                self.requests += 1
            except (Failed, OSError) as failure:
                self.failures.append(str(failure))
            time.sleep(CHURN_PAUSE)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()


def load(wrk, address, seconds):
    """wrk for so long; returns how many requests were answered."""
    url = f"http://{address[0]}:{address[1]}"
    command = [wrk, "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s"]
    both = [subprocess.Popen([*command, url + path], stdout=subprocess.PIPE, text=True) for path in ("/1k", "/64k")]
    answered = 0
    for one in both:
        output, _ = one.communicate(timeout=seconds + 60)
        if "Socket errors" in output or "Non-2xx" in output:
            raise Failed(output)
        answered += int(re.search(r"(\d+) requests in", output)[1])
    return answered


def main():
    parser = argparse.ArgumentParser(prog="benches/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--gateway", type=Path, help="an example that was built, instead of building it")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    (wrk,) = need("wrk")
    binary = arguments.gateway or ground.build()
    span = max(arguments.seconds // arguments.samples, 1)
    memory, open_files, answered = [], [], 0
    with ground.folder() as name:
        folder = Path(name)
        with Backends(folder) as backends:
            text = settings(backends.addresses, EVERYTHING)
            with Gateway(folder, text, binary, threads=arguments.threads) as gateway:
                before = descriptors(gateway.pid)
                print("| s | requests | resident MiB | descriptors | CPU us a request |\n|---|---|---|---|---|")
                started = time.monotonic()
                with Churn(gateway.address) as churn:
                    for _ in range(arguments.samples):
                        spent = sum(cpu_seconds(gateway.pid))
                        asked = load(wrk, gateway.address, span)
                        spent = (sum(cpu_seconds(gateway.pid)) - spent) / asked * 1e6
                        answered += asked
                        memory.append(resident_kib(gateway.pid))
                        open_files.append(descriptors(gateway.pid))
                        print(
                            f"| {time.monotonic() - started:.0f} | {answered:,} | {memory[-1] / 1024:.1f} "
                            f"| {open_files[-1]} | {spent:.1f} |",
                            flush=True,
                        )
                time.sleep(2)
                left = descriptors(gateway.pid) - before
                status = gateway.stop()
    judge(memory, left, status, churn)


def judge(memory, left, status, churn):
    # The first fifth fills pools, tables and the allocator.
    fifth = max(len(memory) // 5, 1)
    early, late = median(memory[fifth : 2 * fifth] or memory[:1]), median(memory[-fifth:])
    grown = late - early
    print(
        f"\nresident memory went from {early / 1024:.1f} to {late / 1024:.1f} MiB; {left} descriptors are open to "
        f"endpoints; {churn.requests} clients came and went"
    )
    wrong = []
    if grown > max(GROWTH_KIB, GROWTH_SHARE * early):
        wrong.append(f"resident memory grew by {grown} KiB")
    if left > LEFT:
        wrong.append(f"{left} descriptors are left")
    if status != 0:
        wrong.append(f"the gateway ended with {status}")
    if churn.failures:
        wrong.append(f"{len(churn.failures)} clients failed: {churn.failures[0]}")
    if wrong:
        raise Failed("; ".join(wrong))


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"failed: {failure}")
