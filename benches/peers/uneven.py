"""What becomes of requests when one endpoint of three is slow, or fails: shares, not costs.

README.md says what the figures mean. It takes what `run` has installed and built, and builds the load.
"""

import os
import signal
import threading
import time
from statistics import median

from measure import tree
from scenes import ODD, Play, Scene

STALL_SECONDS, STALL_EVERY_SECONDS = 0.05, 1.0


class Stalls:
    """Stops a process now and then, as a busy host stops a virtual machine."""

    def __init__(self, pid):
        self.pids = tree(pid)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def run(self):
        while not self.over.wait(STALL_EVERY_SECONDS):
            self.send(signal.SIGSTOP)
            time.sleep(STALL_SECONDS)
            self.send(signal.SIGCONT)

    def send(self, what):
        for pid in self.pids:
            try:
                os.kill(pid, what)
            except ProcessLookupError:
                pass


def percent(values):
    parts = [value * 100 for value in values]
    return f"{median(parts):.2f} % [{min(parts):.2f}..{max(parts):.2f}]"


def row(samples):
    late = percent([one["late"] / one["requests"] for one in samples])
    share = percent([one["endpoints"][ODD] / max(1, sum(one["endpoints"])) for one in samples])
    errors = percent([one["errors"] / one["requests"] for one in samples])
    return [late, share, errors] + [f"{median(one[part] for one in samples):,.0f}" for part in ("p50", "p99")]


if __name__ == "__main__":
    Play(
        name="uneven",
        about="Shares and late requests with one endpoint that is not as the others.",
        scenes={
            "slow": Scene("one endpoint answers 20 ms later", ["--delay", f"{ODD}=20"]),
            "stalls": Scene("the same, and the proxy stands still for 50 ms every second", ["--delay", f"{ODD}=20"], around=Stalls),
            "500": Scene("one endpoint answers 500 at once", ["--fail", str(ODD)]),
        },
        turns=[
            ("gateway", "response_time"),
            ("gateway", "least_request"),
            ("gateway", "round_robin"),
            ("envoy", "least_request"),
            ("envoy", "round_robin"),
            ("nginx", "least_request"),
            ("haproxy", "least_request"),
        ],
        rate=6000,
        head=["over 10 ms", "requests at that endpoint", "errors", "p50 us", "p99 us"],
        row=row,
    ).run()
