"""What becomes of requests when one endpoint of three is slow, or fails: shares, not costs.

README.md says what the figures mean. It takes what `run` has installed and built, and builds the load.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import measure
from contestants import CASES, PEERS, TARGET, Gateway, Run
from measure import LOAD_CORE, PROXY_CORE, Child, Failed, Origins, free_port, positive, rotated, tree, wait_ready
from prepare import say

LOAD = TARGET / "release" / "load"
UNEVEN = 1  # the endpoint that is not as the others
STALL_SECONDS, STALL_EVERY_SECONDS = 0.05, 1.0


@dataclass(frozen=True)
class Scene:
    name: str
    backends: list[str]  # arguments
    stalls: bool = False  # the proxy is stopped now and then


SCENES = [
    Scene("one endpoint answers 20 ms later", ["--delay", f"{UNEVEN}=20"]),
    Scene("the same, and the proxy stands still for 50 ms every second", ["--delay", f"{UNEVEN}=20"], stalls=True),
    Scene("one endpoint answers 500 at once", ["--fail", str(UNEVEN)]),
]

# Who takes part, and by which policies.
TURNS = [
    ("gateway", "response_time"),
    ("gateway", "least_request"),
    ("gateway", "round_robin"),
    ("envoy", "least_request"),
    ("envoy", "round_robin"),
    ("nginx", "least_request"),
    ("haproxy", "least_request"),
]


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


def sample(peer, policy, scene, origins, args):
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        run = Run(CASES[0], free_port(), origins.addresses, folder, policy)
        with Child(peer.command(run), PROXY_CORE, folder, "proxy") as proxy:
            wait_ready(proxy, run.port, peer.announces)
            command = [str(LOAD), f"127.0.0.1:{run.port}", "--rate", str(args.rate), "--seconds", str(args.seconds)]
            with Child(command, LOAD_CORE, folder, "load") as load:
                if scene.stalls:
                    with Stalls(proxy.pid):
                        text = load.wait(args.seconds + 15)
                else:
                    text = load.wait(args.seconds + 15)
    return json.loads(text)


def percent(values):
    parts = [value * 100 for value in values]
    return f"{median(parts):.2f} % [{min(parts):.2f}..{max(parts):.2f}]"


def row(peer, policy, samples):
    late = percent([one["late"] / one["requests"] for one in samples])
    share = percent([one["endpoints"][UNEVEN] / max(1, sum(one["endpoints"])) for one in samples])
    errors = percent([one["errors"] / one["requests"] for one in samples])
    latency = [f"{median(one[part] for one in samples):,.0f}" for part in ("p50", "p99")]
    return f"| {peer} | {policy} | {late} | {share} | {errors} | " + " | ".join(latency) + " |"


def main():
    parser = argparse.ArgumentParser(prog="uneven", description="Shares and late requests with one endpoint that is not as the others.")
    parser.add_argument("--rounds", type=positive, default=5, help="measurements of each (5)")
    parser.add_argument("--seconds", type=positive, default=4, help="length of one measurement (4)")
    parser.add_argument("--rate", type=positive, default=6000, help="requests a second (6000)")
    parser.add_argument("--gateway", type=lambda text: Path(text).resolve(), metavar="FILE", help="another build of the example `gateway`")
    args = parser.parse_args()
    peers = {peer.name: peer for peer in PEERS}
    if args.gateway:
        Gateway.path = args.gateway
    build = ["cargo", "build", "--release", "--locked", "--target-dir", str(TARGET), "--bin", "load", "--bin", "backend"]
    if not LOAD.exists() and subprocess.run(build, cwd=measure.HERE, check=False).returncode:
        sys.exit("the load does not build")
    turns = [(peers[name], policy) for name, policy in TURNS if peers[name].binary()]
    for name in dict.fromkeys(name for name, _ in TURNS if not peers[name].binary()):
        say(f"SKIPPED {name}: {peers[name].missing()}")
    print(f"{args.rounds} rounds x {args.seconds} s, {args.rate} requests a second.\n", flush=True)
    for scene in SCENES:
        samples = {turn: [] for turn in turns}
        with tempfile.TemporaryDirectory(prefix="peers-") as name, Origins(Path(name), *scene.backends) as origins:
            for n in range(args.rounds):
                for turn in rotated(turns, n):
                    peer, policy = turn
                    try:
                        samples[turn].append(sample(peer, policy, scene, origins, args))
                    except Failed as failure:
                        say(f"{scene.name}: {peer.name} {policy}: FAILED: {failure}")
                say(f"{scene.name}: round {n + 1} of {args.rounds}")
        print(f"### {scene.name}\n")
        print("| peer | policy | over 10 ms | requests at that endpoint | errors | p50 us | p99 us |\n|---|---|---|---|---|---|---|")
        for (peer, policy), found in samples.items():
            print(row(peer.name, policy, found) if found else f"| {peer.name} | {policy} | FAILED | | | | |")
        print(flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, measure.interrupt)
    signal.signal(signal.SIGTERM, measure.interrupt)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; every process that was started here is ended")
