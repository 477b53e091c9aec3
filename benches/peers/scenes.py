"""Runs scenes, in which endpoints are not as they should be, for each peer and policy in interleaved rounds.

What `uneven.py` and `failing.py` share: they say which scenes there are, who takes part, and what a row shows.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import measure
from contestants import CASES, PEERS, TARGET, Gateway, Run
from measure import LOAD_CORE, PROXY_CORE, Child, Failed, Origins, free_port, positive, rotated, wait_ready
from prepare import say

LOAD = TARGET / "release" / "load"
ODD = 1  # the endpoint that is not as the others


@dataclass(frozen=True)
class Scene:
    title: str
    backends: list[str] = field(default_factory=list)  # arguments
    origins: callable = Origins  # starts the backends
    around: callable = nullcontext  # what is done to the proxy's process meanwhile
    failover: bool = False  # turned on everywhere
    alone: tuple | None = None  # the one turn that takes part
    hedge: bool = False


@dataclass(frozen=True)
class Play:
    """What a script shows: its scenes, who takes part by which policies, and its table."""

    name: str
    about: str
    scenes: dict[str, Scene]
    turns: list[tuple[str, str]]
    rate: int  # requests a second
    head: list[str]  # of the columns after peer and policy
    row: callable  # samples to cells

    def run(self):
        """The script's main function: never returns an exit status other than by `sys.exit`."""
        signal.signal(signal.SIGINT, measure.interrupt)
        signal.signal(signal.SIGTERM, measure.interrupt)
        try:
            self.show(self.arguments())
        except KeyboardInterrupt:
            sys.exit("interrupted; every process that was started here is ended")

    def arguments(self):
        parser = argparse.ArgumentParser(prog=self.name, description=self.about)
        parser.add_argument("--rounds", type=positive, default=5, help="measurements of each (5)")
        parser.add_argument("--seconds", type=positive, default=4, help="length of one measurement (4)")
        parser.add_argument("--rate", type=positive, default=self.rate, help=f"requests a second ({self.rate})")
        parser.add_argument("--scenes", type=some_of(self.scenes), default=list(self.scenes), help="some of them: " + ", ".join(self.scenes))
        names = list(dict(self.turns))
        parser.add_argument("--peers", type=some_of(names), default=names, help="some of them: " + ", ".join(names))
        parser.add_argument("--gateway", type=lambda text: Path(text).resolve(), metavar="FILE", help="another build of the example `gateway`")
        return parser.parse_args()

    def show(self, args):
        if args.gateway:
            Gateway.path = args.gateway
        build(self.turns)
        peers = {peer.name: peer for peer in PEERS}
        for name in (name for name in args.peers if not peers[name].binary()):
            say(f"SKIPPED {name}: {peers[name].missing()}")
        turns = [turn for turn in self.turns if turn[0] in args.peers and peers[turn[0]].binary()]
        print(f"{args.rounds} rounds x {args.seconds} s, {args.rate} requests a second.\n", flush=True)
        for scene in (self.scenes[name] for name in args.scenes):
            taking = [turn for turn in turns if scene.alone in (None, turn)]
            samples = rounds(scene, taking, peers, args)
            print(f"### {scene.title}\n\n| peer | policy | " + " | ".join(self.head) + " |")
            print("|---" * (2 + len(self.head)) + "|")
            for (peer, policy), found in samples.items():
                cells = self.row(found) if found else ["FAILED"] + [""] * (len(self.head) - 1)
                print(f"| {peer} | {policy} | " + " | ".join(cells) + " |")
            print(flush=True)


def some_of(known):
    """Takes `a,b`, each of which must be known."""

    def names(text):
        wrong = [name for name in text.split(",") if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: expected some of {', '.join(known)}")
        return text.split(",")

    return names


def build(turns):
    """Builds the load where it is missing, with what else of this folder takes part."""
    binaries = ["load", "backend"] + [name for name in dict(turns) if name == "tower-p2c"]
    bins = [word for name in binaries for word in ("--bin", name)]
    command = ["cargo", "build", "--release", "--locked", "--target-dir", str(TARGET), *bins]
    if not LOAD.exists() and subprocess.run(command, cwd=measure.HERE, check=False).returncode:
        sys.exit("the load does not build")


def rounds(scene, turns, peers, args):
    samples = {turn: [] for turn in turns}
    with tempfile.TemporaryDirectory(prefix="peers-") as name, scene.origins(Path(name), *scene.backends) as origins:
        for n in range(args.rounds):
            for turn in rotated(turns, n):
                peer, policy = turn
                try:
                    samples[turn].append(sample(peers[peer], policy, scene, origins, args))
                except Failed as failure:
                    say(f"{scene.title}: {peer} {policy}: FAILED: {failure}")
            say(f"{scene.title}: round {n + 1} of {args.rounds}")
    return samples


def sample(peer, policy, scene, origins, args):
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        run = Run(CASES[0], free_port(), origins.addresses, folder, policy, scene.failover, scene.hedge)
        with Child(peer.command(run), PROXY_CORE, folder, "proxy") as proxy:
            wait_ready(proxy, run.port, peer.announces)
            command = [str(LOAD), f"127.0.0.1:{run.port}", "--rate", str(args.rate), "--seconds", str(args.seconds)]
            with Child(command, LOAD_CORE, folder, "load") as load, scene.around(proxy.pid):
                text = load.wait(args.seconds + 30)
    return json.loads(text)
