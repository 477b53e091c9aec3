"""What a request costs, counted: instructions, allocations and system calls, by where they are spent.

Counts of a fixed number of requests are nearly the same from run to run, whatever else the machine does: what
changes a count by one in a hundred is seen. README.md says how to read the tables.
"""

import argparse
import re
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import ground
from ground import EVERYTHING, LAYERS, Backends, Failed, Gateway, ask_grpc, ask_http1, need, request, say, settings

CONNECTIONS = 16
GRPC_CONNECTIONS, GRPC_STREAMS = 4, 16
WARM_UP = 400


class Case:
    def __init__(self, layers, path="/1k", body=b"", grpc=False):
        self.layers, self.grpc = layers, grpc
        self.sent = request(path, body=body)

    @contextmanager
    def gateway(self, folder, binary, wrapper=()):
        """The gateway, over backends of its own."""
        with Backends(folder, h2=self.grpc) as backends:
            text = settings(backends.addresses, self.layers, "h2" if self.grpc else "http1")
            with Gateway(folder, text, binary, wrapper) as gateway:
                yield gateway

    def ask(self, address, folder, requests):
        if self.grpc:
            ask_grpc(address, folder, requests, GRPC_CONNECTIONS, GRPC_STREAMS)
        else:
            ask_http1(address, self.sent, requests, CONNECTIONS)


CASES = {
    **{name: Case(layers) for name, layers in LAYERS.items()},
    "everything, 64 KiB": Case(EVERYTHING, path="/64k"),
    "everything, POST of 1 KiB": Case(EVERYTHING, body=bytes(1024)),
    "bare, gRPC": Case(LAYERS["bare"], grpc=True),
    "everything, gRPC": Case(EVERYTHING, grpc=True),
    "bare, hit in the cache": Case(([], [ground.CACHE])),
    "bare, rate limit": Case(([], [ground.LIMIT])),
}

# Where code stands, by its file; the first that fits. Code of std that was inlined counts to who calls it.
PLACES = [
    (r"/hyper-\d", "hyper"),
    (r"/hyper-util-", "hyper-util"),
    (r"/h2-\d", "h2"),
    (r"/httparse-", "httparse"),
    (r"/http-\d|/http-body-", "http"),
    (r"/(tokio|mio|tokio-util)-\d", "tokio, mio"),
    (r"/(bytes)-\d", "bytes"),
    (r"/registry/src/", "other crates"),
    (r"(?:^|/)src/(\w+)(?:/|\.rs)", "own"),
    (r"(?:^|/)examples/", "own: example"),
]
CRATES = re.compile(
    r"\b(tower_gateway|hyper_util|hyper|h2|httparse|http_body|http|tokio|mio|bytes|arc_swap|parking_lot)::(\w+)?"
)
CRATE_PLACES = {
    "tower_gateway": "own", "hyper_util": "hyper-util", "tokio": "tokio, mio", "mio": "tokio, mio",
    "http_body": "http", "arc_swap": "other crates", "parking_lot": "other crates",
}
STD = re.compile(r"/rustc/|/library/(core|alloc|std)/|rustlib/src")
MEMORY = re.compile(r"^(_int_|__?libc_)?(malloc|free|realloc|calloc|cfree)|^_int_|tcache|malloc_consolidate|__rdl_|__rust_(re|de)?alloc")
COPIES = re.compile(r"^(__)?mem(cpy|move|set|cmp|chr)|^__mem|^bcmp")


def place(function, file, outer):
    """Whose instructions these are."""
    if not STD.search(file):
        for pattern, name in PLACES:
            if found := re.search(pattern, file):
                return f"own: {found[1]}" if name == "own" else name
    elif outer and not STD.search(outer):
        return place(function, outer, None)
    if MEMORY.search(function):
        return "malloc, free"
    if COPIES.search(function):
        return "memcpy, memset, memcmp"
    if found := CRATES.search(function):
        name = CRATE_PLACES.get(found[1], found[1])
        return f"own: {found[2]}" if name == "own" else name
    return "libc, vdso, other"


class Profile:
    """The costs in a file of callgrind."""

    def __init__(self, file):
        self.places, self.functions, self.calls = defaultdict(int), defaultdict(int), defaultdict(int)
        self.callers = defaultdict(lambda: [0, 0])  # by called and caller: how often, and its cost
        names = {"fl": {}, "fn": {}}

        def named(kind, text):
            number, _, name = text.partition(" ")
            if name:
                names[kind][number] = name
            return names[kind][number]

        function = outer = file_now = called = ""
        skip = False
        with open(file) as lines:
            for line in lines:
                line = line.rstrip("\n")
                if not line or line[0] == "#":
                    continue
                if line[0].isdigit() or line[0] in "+-*":
                    if skip:
                        skip = False
                        self.callers[called, function][1] += int(line.split()[1])
                        continue
                    cost = int(line.split()[1]) if len(line.split()) > 1 else 0
                    self.places[place(function, file_now, outer)] += cost
                    self.functions[function] += cost
                    continue
                key, _, value = line.partition("=")
                if key == "fl":
                    outer = file_now = named("fl", value)
                elif key in ("fi", "fe"):
                    file_now = named("fl", value)
                elif key == "fn":
                    function = named("fn", value)
                elif key == "cfn":
                    called = named("fn", value)
                elif key in ("cfi", "cfl"):
                    named("fl", value)
                elif key == "calls":
                    times = int(value.split()[0])
                    self.calls[called] += times
                    self.callers[called, function][0] += times
                    skip = True

    @property
    def total(self):
        return sum(self.places.values())

    def allocations(self):
        return sum(self.calls[name] for name in ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"))


def control(what, pid):
    subprocess.run(["callgrind_control", what, str(pid)], check=True, capture_output=True, timeout=120)


def count_instructions(case, binary, requests):
    """The profile of so many requests, after a warm-up."""
    with ground.folder() as name:
        folder = Path(name)
        output = folder / "callgrind.out"
        wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"]
        with case.gateway(folder, binary, wrapper) as gateway:
            case.ask(gateway.address, folder, WARM_UP)
            control("--zero", gateway.pid)
            case.ask(gateway.address, folder, requests)
            control("--dump", gateway.pid)
        return Profile(f"{output}.1")


def count_syscalls(case, binary, requests):
    """System calls of so many requests, by name, without those of the start."""
    with ground.folder() as name:
        folder = Path(name)
        output = folder / "strace.out"
        with case.gateway(folder, binary) as gateway:
            case.ask(gateway.address, folder, WARM_UP)
            tracer = subprocess.Popen(
                ["strace", "-c", "-f", "-o", str(output), "-p", str(gateway.pid)],
                stderr=subprocess.PIPE, text=True,
            )
            tracer.stderr.readline()  # attached
            case.ask(gateway.address, folder, requests)
            tracer.terminate()
            tracer.wait(30)
        counts = {}
        for line in output.read_text().splitlines():
            fields = line.split()
            if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
                counts[fields[-1]] = int(fields[3])
        return counts


def main():
    parser = argparse.ArgumentParser(prog="benches/profile/run", description=__doc__.splitlines()[0])
    parser.add_argument("--gateway", type=Path, help="an example that was built, instead of building it")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--cases", help=f"semicolon-separated: {'; '.join(CASES)}")
    parser.add_argument("--functions", type=int, default=0, help="how many of the dearest functions to list")
    parser.add_argument("--callers", help="a pattern of functions: who calls them, how often, at which cost")
    parser.add_argument("--no-syscalls", action="store_true")
    arguments = parser.parse_args()
    need("valgrind", "callgrind_control")
    chosen = arguments.cases.split(";") if arguments.cases else list(CASES)
    if unknown := [name for name in chosen if name not in CASES]:
        sys.exit(f"no such case: {', '.join(unknown)}")
    # Counts are compared with counts of the same build alone: without link-time optimisation it takes a third of the time.
    binary = arguments.gateway or ground.build(debug="line-tables-only", lto="false", codegen_units="16")
    profiles, syscalls = {}, {}
    for name in chosen:
        started = time.monotonic()
        profiles[name] = count_instructions(CASES[name], binary, arguments.requests)
        if not arguments.no_syscalls:
            need("strace")
            syscalls[name] = count_syscalls(CASES[name], binary, arguments.requests)
        say(f"{name}: {profiles[name].total / arguments.requests:,.0f} ({time.monotonic() - started:.0f} s)")
    report(profiles, syscalls, arguments.requests)
    for name, profile in profiles.items():
        detail(name, profile, arguments)


def report(profiles, syscalls, requests):
    print("| case | instructions a request | allocations | system calls |\n|---|---|---|---|")
    for name, profile in profiles.items():
        counts = syscalls.get(name, {})
        each = ", ".join(
            f"{call} {count / requests:.2f}" for call, count in sorted(counts.items(), key=lambda pair: -pair[1])
            if count > requests / 50
        )
        total = f"{sum(counts.values()) / requests:.2f}: {each}" if counts else "-"
        print(f"| {name} | {profile.total / requests:,.0f} | {profile.allocations() / requests:.1f} | {total} |")
    print()
    places = sorted(
        {place for profile in profiles.values() for place in profile.places},
        key=lambda place: -max(profile.places[place] for profile in profiles.values()),
    )
    print(f"| where | {' | '.join(profiles)} |\n|---|{'---|' * len(profiles)}")
    for place in places:
        costs = [profile.places[place] / requests for profile in profiles.values()]
        if max(costs) >= 20:
            print(f"| {place} | {' | '.join(f'{cost:,.0f}' for cost in costs)} |")


def detail(name, profile, arguments):
    """The dearest functions, and the callers that were asked for."""
    if arguments.functions or arguments.callers:
        print(f"\n### {name}\n")
    dearest = sorted(profile.functions.items(), key=lambda pair: -pair[1])
    for function, cost in dearest[: arguments.functions]:
        print(f"{cost / arguments.requests:8,.0f}  {function[:180]}")
    if arguments.callers:
        found = [(pair, costs) for pair, costs in profile.callers.items() if re.search(arguments.callers, pair[0])]
        print("\ninstructions, calls, callee < caller, each request")
        for (called, caller), (times, cost) in sorted(found, key=lambda row: -row[1][1]):
            if times >= arguments.requests / 10:
                each = f"{cost / arguments.requests:8,.0f} {times / arguments.requests:6.1f}"
                print(f"{each}  {called[:60]} < {caller[:150]}")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"failed: {failure}")
