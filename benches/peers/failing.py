"""What clients see of endpoints that fail: errors and latencies, with failover turned on everywhere.

README.md says what the figures mean. It takes what `run` has installed and built, and builds the load.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import measure
from contestants import CASES, PEERS, TARGET, Gateway, Run
from measure import BACKEND, LOAD_CORE, PROXY_CORE, Child, Failed, Origins, free_port, positive, rotated, wait_ready
from prepare import say

LOAD = TARGET / "release" / "load"
FAILING = 1  # the endpoint that is not as the others
DOWN_SECONDS, UP_SECONDS = 0.3, 0.7


@dataclass(frozen=True)
class Scene:
    name: str
    backends: list[str]  # arguments
    kills: bool = False  # the backends are processes of their own, killed and started again
    alone: bool = False  # the gateway's, by least_request: others do not hedge
    hedge: bool = False


SCENES = {
    "none": Scene("nothing fails", []),
    "refuse": Scene("one endpoint of three refuses connections", ["--refuse", str(FAILING)]),
    "hang": Scene("one endpoint of three never answers", ["--delay", f"{FAILING}=600000"]),
    "503": Scene("all endpoints answer 503", [argument for n in range(3) for argument in ("--fail", f"{n}=503")]),
    "kill": Scene("endpoints are killed and started again at random", [], kills=True),
    "slow": Scene("one endpoint of three answers 200 ms later", ["--delay", f"{FAILING}=200"], alone=True),
    "hedge": Scene("the same, hedged after p95", ["--delay", f"{FAILING}=200"], alone=True, hedge=True),
}

# Who takes part, and by which policies.
TURNS = [
    ("gateway", "round_robin"),
    ("gateway", "least_request"),
    ("envoy", "round_robin"),
    ("nginx", "round_robin"),
    ("haproxy", "round_robin"),
    ("tower-p2c", "peak_ewma"),
    ("tower-p2c", "pending_requests"),
]


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


def origins(scene, folder):
    return Mortals(folder) if scene.kills else Origins(folder, *scene.backends)


def sample(peer, policy, scene, backends, args):
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        run = Run(CASES[0], free_port(), backends.addresses, folder, policy, True, scene.hedge)
        with Child(peer.command(run), PROXY_CORE, folder, "proxy") as proxy:
            wait_ready(proxy, run.port, peer.announces)
            command = [str(LOAD), f"127.0.0.1:{run.port}", "--rate", str(args.rate), "--seconds", str(args.seconds)]
            with Child(command, LOAD_CORE, folder, "load") as load:
                text = load.wait(args.seconds + 30)
    return json.loads(text)


def row(peer, policy, samples):
    def spread(values, form):
        return f"{median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"

    errors = spread([one["errors"] for one in samples], ",.0f")
    share = spread([one["errors"] / one["requests"] * 100 for one in samples], ".2f")
    latency = [spread([one[part] / 1000 for one in samples], ",.2f") for part in ("p50", "p99", "p999")]
    return f"| {peer} | {policy} | {errors} | {share} | " + " | ".join(latency) + " |"


def main():
    parser = argparse.ArgumentParser(prog="failing", description="What clients see of endpoints that fail.")
    parser.add_argument("--rounds", type=positive, default=5, help="measurements of each (5)")
    parser.add_argument("--seconds", type=positive, default=4, help="length of one measurement (4)")
    parser.add_argument("--rate", type=positive, default=5000, help="requests a second (5000)")
    parser.add_argument("--scenes", default=",".join(SCENES), help="some of them: " + ", ".join(SCENES))
    parser.add_argument("--peers", help="some of them: " + ", ".join(dict(TURNS)))
    parser.add_argument("--gateway", type=lambda text: Path(text).resolve(), metavar="FILE", help="another build of the example `gateway`")
    args = parser.parse_args()
    peers = {peer.name: peer for peer in PEERS}
    if args.gateway:
        Gateway.path = args.gateway
    build = ["cargo", "build", "--release", "--locked", "--target-dir", str(TARGET), "--bin", "load", "--bin", "backend", "--bin", "tower-p2c"]
    if not LOAD.exists() and subprocess.run(build, cwd=measure.HERE, check=False).returncode:
        sys.exit("the load does not build")
    wanted = args.peers.split(",") if args.peers else [name for name, _ in TURNS]
    turns = [(peers[name], policy) for name, policy in TURNS if name in wanted and peers[name].binary()]
    for name in dict.fromkeys(name for name in wanted if not peers[name].binary()):
        say(f"SKIPPED {name}: {peers[name].missing()}")
    print(f"{args.rounds} rounds x {args.seconds} s, {args.rate} requests a second.\n", flush=True)
    for scene in (SCENES[name] for name in args.scenes.split(",")):
        taking = [turn for turn in turns if not scene.alone or (turn[0].name, turn[1]) == ("gateway", "least_request")]
        samples = {turn: [] for turn in taking}
        with tempfile.TemporaryDirectory(prefix="peers-") as name, origins(scene, Path(name)) as backends:
            for n in range(args.rounds):
                for turn in rotated(taking, n):
                    peer, policy = turn
                    try:
                        samples[turn].append(sample(peer, policy, scene, backends, args))
                    except Failed as failure:
                        say(f"{scene.name}: {peer.name} {policy}: FAILED: {failure}")
                say(f"{scene.name}: round {n + 1} of {args.rounds}")
        print(f"### {scene.name}\n")
        print("| peer | policy | errors | errors % | p50 ms | p99 ms | p99.9 ms |\n|---|---|---|---|---|---|---|")
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
