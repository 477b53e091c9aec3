"""What clients see of endpoints that fail: errors and latencies, with failover turned on everywhere.

README.md says what the figures mean. It takes what `run` has installed and built, and builds the load.
"""

import random
import threading
from statistics import median

from measure import BACKEND, LOAD_CORE, Child, free_port, wait_ready
from scenes import ODD, Play, Scene

DOWN_SECONDS, UP_SECONDS = 0.3, 0.7


class Mortals:
    """Three backends, of which one at a time is killed at random, and started again."""

    def __init__(self, folder):
        self.folder = folder
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self.children = [self.start(n) for n in range(3)]
        for n, child in enumerate(self.children):
            wait_ready(child, self.addresses[n].rsplit(":", 1)[1], True)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def start(self, n):
        return Child([str(BACKEND), self.addresses[n]], LOAD_CORE, self.folder, f"backend{n}")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        for child in self.children:
            child.stop()

    def run(self):
        chance = random.Random(7)
        while not self.over.wait(UP_SECONDS):
            n = chance.randrange(3)
            self.children[n].process.kill()
            self.children[n].process.wait()
            self.over.wait(DOWN_SECONDS)
            self.children[n] = self.start(n)


def spread(values, form):
    return f"{median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


def row(samples):
    errors = spread([one["errors"] for one in samples], ",.0f")
    share = spread([one["errors"] / one["requests"] * 100 for one in samples], ".2f")
    return [errors, share] + [spread([one[part] / 1000 for one in samples], ",.2f") for part in ("p50", "p99", "p999")]


def scene(title, backends=(), **more):
    return Scene(title, list(backends), failover=True, **more)


if __name__ == "__main__":
    slow = ["--delay", f"{ODD}=200"]
    ours = ("gateway", "least_request")  # others do not hedge
    Play(
        name="failing",
        about="What clients see of endpoints that fail.",
        scenes={
            "none": scene("nothing fails"),
            "refuse": scene("one endpoint of three refuses connections", ["--refuse", str(ODD)]),
            "hang": scene("one endpoint of three never answers", ["--delay", f"{ODD}=600000"]),
            "503": scene("all endpoints answer 503", [word for n in range(3) for word in ("--fail", f"{n}=503")]),
            "kill": scene("endpoints are killed and started again at random", origins=Mortals),
            "slow": scene("one endpoint of three answers 200 ms later", slow, alone=ours),
            "hedge": scene("the same, hedged after p95", slow, alone=ours, hedge=True),
        },
        turns=[
            ("gateway", "round_robin"),
            ("gateway", "least_request"),
            ("envoy", "round_robin"),
            ("nginx", "round_robin"),
            ("haproxy", "round_robin"),
            ("tower-p2c", "peak_ewma"),
            ("tower-p2c", "pending_requests"),
        ],
        rate=5000,
        head=["errors", "errors %", "p50 ms", "p99 ms", "p99.9 ms"],
        row=row,
    ).run()
