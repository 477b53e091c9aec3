"""What a request costs over more endpoints, routes and keys of limits: instructions, counted by callgrind."""

import argparse
import sys
from pathlib import Path

import ground
from ground import Backends, Connection, Failed, Gateway, need, request, say
from instructions import Profile, control

CONNECTIONS = 8
ENDPOINTS = [1, 10, 100, 1_000, 10_000]
ROUTES = [1, 10, 100, 1_000]
KEYS = [1, 1_000, 100_000]
POLICIES = ["round_robin", "least_request", "response_time", "maglev"]


def text(backends, endpoints=3, policy="round_robin", routes=1, hosts=False, limit="", cluster=""):
    """The file. Endpoints beyond the backends are their addresses with other names."""
    listed = ", ".join(
        f'{{ id: e{number}, address: "{backends.addresses[number % len(backends.addresses)]}" }}'
        for number in range(endpoints)
    )
    hash_key = ", hash_key: path" if policy == "maglev" else ""
    others = [
        f'{{ match: {{ host: h{number}.test }}, cluster: web }}' if hosts
        else f'{{ match: {{ path_prefix: "/service-{number}/api" }}, cluster: web }}'
        for number in range(1, routes)
    ]
    last = f"{{ match: {{}}, cluster: web{limit} }}"
    return (
        'node: { listen: "127.0.0.1:0" }\n'
        f"clusters: {{ web: {{ discovery: {{ type: static, endpoints: [ {listed} ] }}, "
        f"balance: {{ type: {policy}{hash_key} }}{cluster} }} }}\n"
        f"routes: [ {', '.join([*others, last])} ]\n"
    )


def measure(binary, config, requests, sent, warm_up):
    """Instructions a request. `sent` gives the request of each number."""
    with ground.folder() as name:
        folder = Path(name)
        output = folder / "callgrind.out"
        wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"]
        with Backends(folder) as backends:
            with Gateway(folder, config(backends), binary, wrapper) as gateway:
                connections = [Connection(gateway.address) for _ in range(CONNECTIONS)]

                def ask(count, first):
                    for number in range(first, first + count):
                        connections[number % CONNECTIONS].ask(sent(number))

                ask(warm_up, 0)
                control("--zero", gateway.pid)
                ask(requests, warm_up)
                control("--dump", gateway.pid)
        return Profile(f"{output}.1").total / requests


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", type=Path, help="an example that was built, instead of building it")
    parser.add_argument("--requests", type=int, default=1000)
    arguments = parser.parse_args()
    need("valgrind", "callgrind_control")
    binary = arguments.gateway or ground.build(debug="line-tables-only", lto="false", codegen_units="16")
    plain = request("/1k")

    def row(what, count, config, sent=lambda _: plain, warm_up=200):
        cost = measure(binary, config, arguments.requests, sent, warm_up)
        print(f"| {what} | {count:,} | {cost:,.0f} |", flush=True)

    print("| what | how many | instructions a request |\n|---|---|---|")
    for policy in POLICIES:
        for count in ENDPOINTS:
            # Without connections that are kept: otherwise many endpoints are many connections not made yet.
            anew = ", idle_connections: 0"
            row(f"endpoints, {policy}", count, lambda b: text(b, endpoints=count, policy=policy, cluster=anew))
    for count in ROUTES:
        row("routes by prefix, the last one taken", count, lambda b: text(b, routes=count))
        row("routes by host, the last one taken", count, lambda b: text(b, routes=count, hosts=True))
    limit = ', rate_limit: [ { name: l, rate: 1000000/s, burst: 1000000, key: "header:x-key" } ]'
    for count in KEYS:
        keyed = lambda number: plain.replace(b"user-agent", b"x-key: %d\r\nuser-agent" % (number % count))
        # Each key is there before it is counted.
        row("keys of a limit", count, lambda b: text(b, limit=limit), keyed, warm_up=max(count, 200))


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"failed: {failure}")
