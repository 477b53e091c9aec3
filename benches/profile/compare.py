"""CPU time a request of several builds of the example, in interleaved rounds: what counts of instructions do
not show, such as locked operations and cache misses. Ratios are medians of those within a round."""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import ground
from ground import EVERYTHING, LAYERS, Backends, Failed, Gateway, cpu_seconds, need, settings


def measure(wrk, binary, layers, path, seconds, connections, threads):
    """Microseconds of user and system time a request."""
    gateway_core, load_core = [[], []] if threads > 1 else [["taskset", "-c", core] for core in "01"]
    with ground.folder() as name:
        folder = Path(name)
        with Backends(folder) as backends:
            text = settings(backends.addresses, layers)
            with Gateway(folder, text, binary, gateway_core, threads) as gateway:
                url = f"http://{gateway.address[0]}:{gateway.address[1]}{path}"
                load = [*load_core, wrk, "-t", "1", "-c", str(connections)]
                subprocess.run([*load, "-d", "1s", url], check=True, capture_output=True)
                before = cpu_seconds(gateway.pid)
                done = subprocess.run([*load, "-d", f"{seconds}s", url], check=True, capture_output=True, text=True)
                after = cpu_seconds(gateway.pid)
                if "Socket errors" in done.stdout or "Non-2xx" in done.stdout:
                    raise Failed(done.stdout)
                requests = int(re.search(r"(\d+) requests in", done.stdout)[1])
                return [(now - then) / requests * 1e6 for then, now in zip(before, after)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("builds", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--path", default="/1k")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="with more than one, nothing is pinned to a core")
    arguments = parser.parse_args()
    wrk, _ = need("wrk", "taskset")
    layers = LAYERS["bare"] if arguments.bare else EVERYTHING
    rounds = []
    for turn in range(arguments.rounds):
        order = arguments.builds[turn % len(arguments.builds) :] + arguments.builds[: turn % len(arguments.builds)]
        how = (layers, arguments.path, arguments.seconds, arguments.connections, arguments.threads)
        costs = {build: measure(wrk, build, *how) for build in order}
        rounds.append(costs)
        ground.say(f"round {turn + 1}: " + ", ".join(f"{build.name} {sum(cost):.1f}" for build, cost in costs.items()))
    first = arguments.builds[0]
    print("| build | CPU us a request | user us | x the first |\n|---|---|---|---|")
    for build in arguments.builds:
        whole = [sum(costs[build]) for costs in rounds]
        user = [costs[build][0] for costs in rounds]
        ratio = [sum(costs[build]) / sum(costs[first]) for costs in rounds]
        print(
            f"| {build.name} | {median(whole):.1f} [{min(whole):.1f}..{max(whole):.1f}] | {median(user):.1f} "
            f"| {median(ratio):.2f} [{min(ratio):.2f}..{max(ratio):.2f}] |"
        )


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"failed: {failure}")
