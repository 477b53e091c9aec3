"""Resident memory: at 64 connections under load, and of each further idle connection of a client."""

import argparse
import resource
import sys
import time
from pathlib import Path

import ground
from ground import EVERYTHING, Backends, Connection, Failed, Gateway, ask_http1, request, resident_kib, settings

STEPS = [1_000, 2_000, 4_000]
LOADED = 64
SETTLE_SECONDS = 3  # a connection that was quiet for a second rests


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", type=Path, help="an example that was built, instead of building it")
    parser.add_argument("--rate", type=float, help="connections opened a second, instead of as fast as they are answered")
    arguments = parser.parse_args()
    pause = 1 / arguments.rate if arguments.rate else 0
    binary = arguments.gateway or ground.build()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(STEPS) + 1000
    if hard < wanted:
        sys.exit(f"only {hard} descriptors are allowed, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with ground.folder() as name:
        folder = Path(name)
        with Backends(folder) as backends:
            with Gateway(folder, settings(backends.addresses, EVERYTHING), binary) as gateway:
                started = resident_kib(gateway.pid)
                ask_http1(gateway.address, request("/1k"), 20_000, LOADED)
                loaded = resident_kib(gateway.pid, "VmHWM")
                print(f"resident: {started / 1024:.1f} MiB at the start, {loaded / 1024:.1f} MiB with {LOADED} connections")
                before, held, idle = resident_kib(gateway.pid), 0, []
                first = before
                for step in STEPS:
                    while len(idle) < step:
                        connection = Connection(gateway.address)
                        connection.ask(request("/1k"))
                        idle.append(connection)
                        time.sleep(pause)
                    time.sleep(SETTLE_SECONDS)
                    now = resident_kib(gateway.pid)
                    each = (now - before) / (len(idle) - held)
                    all_in_all = (now - first) / len(idle)
                    print(
                        f"{len(idle)} idle connections: {now / 1024:.1f} MiB, {each:.1f} KiB for each of the last, "
                        f"{all_in_all:.1f} of all"
                    )
                    before, held = now, len(idle)


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"failed: {failure}")
