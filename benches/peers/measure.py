"""Measures the gateway beside its peers: CPU time per request, interleaved rounds, Markdown tables.

README.md says what the figures mean. Needs nothing but Python's standard library and Linux.
"""

import argparse
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import prepare
from contestants import CASES, HERE, PEERS, TARGET, Gateway, Run
from prepare import say

PROXY_CORE, LOAD_CORE = 0, 1
TICK = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 15
WARM_UP_SECONDS = 1
H1_CONNECTIONS = 64
GRPC_CONNECTIONS, GRPC_STREAMS = 8, 16
NOISY = 0.1  # of a core, taken by processes outside the measurement
REFERENCES = ["nginx", "haproxy", "envoy"]
BACKEND = TARGET / "release" / "backend"
TOOLS = {False: {"wrk": "wrk"}, True: {"h2load": "nghttp2-client", "nghttp": "nghttp2-client"}}


class Failed(Exception):
    """A contestant, or its load, did not do what it must."""


# Processes


def status_fields(pid):
    """The fields of /proc/PID/stat from the third on, or none when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(root):
    """The process and its descendants."""
    children = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := status_fields(entry)):
            children[int(fields[1])].append(int(entry))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def cpu(pids):
    """User and system seconds of the processes, all threads, children that ended included."""
    user = system = 0
    for pid in pids:
        if fields := status_fields(pid):
            user += int(fields[11]) + int(fields[13])
            system += int(fields[12]) + int(fields[14])
    return user / TICK, system / TICK


def core_seconds(core):
    """Seconds the core was not idle, whoever had it."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            ticks = list(map(int, fields[:8]))  # user nice system idle iowait irq softirq steal
            return (sum(ticks) - ticks[3] - ticks[4]) / TICK
    raise Failed(f"/proc/stat has no core {core}")


def load_seconds(origins):
    """CPU seconds of what the measurement itself runs on the load's core: backends, load, runner."""
    ended, own = (resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
    return sum(cpu([origins.pid])) + ended.ru_utime + ended.ru_stime + own.ru_utime + own.ru_stime


def peak_rss(pids):
    """Megabytes: the sum of each process's own peak."""
    total = 0
    for pid in pids:
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(found.group(1)) if found else 0
    return total / 1024


class Child:
    """A process pinned to a core, its output in files; it dies with the runner, whatever ends that."""

    def __init__(self, command, core, folder, name):
        self.output = folder / f"{name}.out"
        self.errors = folder / f"{name}.err"
        pinned = ["taskset", "-c", str(core), *command]
        if shutil.which("setpriv"):
            pinned = ["setpriv", "--pdeathsig", "TERM", *pinned]
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            # A session of its own: Ctrl-C reaches the runner, and the runner ends its children.
            self.process = subprocess.Popen(
                pinned, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
            )
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        pids = tree(self.pid)
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # A master that was killed leaves its workers; they are still of our session, so not reused ids.
        for pid in pids[1:]:
            fields = status_fields(pid)
            if fields and int(fields[3]) == self.pid:
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds):
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"the load did not end within {seconds} s") from None
        if code:
            raise Failed(f"the load ended with status {code}: {self.tail()}")
        return self.output.read_text()

    def tail(self):
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "nothing on stderr"


class Origins(Child):
    """The three backends on free ports, in one process."""

    def __init__(self, folder, *arguments):
        super().__init__([str(BACKEND), *["127.0.0.1:0"] * 3, *arguments], LOAD_CORE, folder, "backends")
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            self.addresses = re.findall(r"(?:listening|refusing) on (\S+)\n", self.output.read_text())
            if len(self.addresses) == 3:
                return
            time.sleep(0.02)
        self.stop()
        sys.exit(f"the backends do not start: {self.tail()}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_ready(child, port, announces):
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if child.process.poll() is not None:
            raise Failed(f"ended at once with status {child.process.returncode}")
        if not announces or "listening on " in child.output.read_text():
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                pass
        time.sleep(0.02)
    raise Failed(f"not listening after {READY_SECONDS} s")


# Load


@dataclass(frozen=True)
class Sample:
    """One measurement of one peer."""

    rate: float  # requests a second
    user: float  # CPU microseconds a request
    system: float
    busy: float  # share of its core
    others: float  # what processes outside the measurement had of its core or of the load's, steal included
    rss: float

    @property
    def total(self):
        return self.user + self.system


def probe_h1(port, case):
    for _ in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", case.path)
            answer = connection.getresponse()
            length = len(answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"the first request failed: {error!r}") from None
        finally:
            connection.close()
        if (answer.status, length) != (200, case.body):
            raise Failed(f"the first request got {answer.status} and {length} bytes")


def probe_grpc(port, case, message):
    """h2load does not look at trailers, so one call is looked at as a whole."""
    command = ["nghttp", "-v", "--no-dep", "-t", "5", "-d", message, *grpc_fields(), f"http://127.0.0.1:{port}{case.path}"]
    done = subprocess.run(command, capture_output=True, timeout=15, check=False)
    text = re.sub(rb"\x1b\[[0-9;]*m", b"", done.stdout).decode("latin-1")
    fields = dict(re.findall(r"recv \(stream_id=\d+\) (:status|grpc-status|grpc-message): (.*)", text))
    if fields.get(":status") != "200" or fields.get("grpc-status") != "0":
        raise Failed(f"the first call got {fields or 'no answer'}")


def grpc_fields():
    return ["-H", "content-type: application/grpc", "-H", "te: trailers"]


def load_h1(port, case, seconds, folder):
    command = [
        "wrk", "-t1", f"-c{H1_CONNECTIONS}", f"-d{seconds}s", "-s", str(HERE / "report.lua"), f"http://127.0.0.1:{port}{case.path}",
    ]
    with Child(command, LOAD_CORE, folder, "load") as load:
        text = load.wait(seconds + 15)
    report = json.loads(text.splitlines()[-1])
    errors = {kind: n for kind, n in report["errors"].items() if n}
    if errors:
        raise Failed(f"errors of {report['requests']} requests: {errors}")
    return report["requests"], report["micros"] / 1e6, report["bytes"]


def load_grpc(port, case, seconds, folder, message):
    command = [
        "h2load", f"-c{GRPC_CONNECTIONS}", f"-m{GRPC_STREAMS}", f"-D{seconds}", "-d", message, *grpc_fields(),
        f"http://127.0.0.1:{port}{case.path}",
    ]
    with Child(command, LOAD_CORE, folder, "load") as load:
        text = load.wait(seconds + 15)
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    data = re.search(r"\((\d+)\) data", text)
    if not (counts and codes and data):
        raise Failed("h2load's report is not understood")
    done, succeeded, failed, errored, timeout = map(int, counts.groups())
    # A status counts when the head arrives, a call when it is over: the last few calls are cut by the end.
    good, *bad = map(int, codes.groups())
    if failed or errored or timeout or done != succeeded or good < done or any(bad):
        raise Failed(f"errors of {done} calls: {counts.group()}; {codes.group()}")
    return done, float(seconds), int(data.group(1))


def measure(peer, case, origins, seconds, message):
    """Starts the peer, warms it up, loads it, ends it."""
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        # nginx's worker runs as another user than its master when that is root.
        folder.chmod(0o755)
        run = Run(case, free_port(), origins.addresses, folder)
        with Child(peer.command(run), PROXY_CORE, folder, "proxy") as proxy:
            try:
                return loaded(proxy, peer, run, origins, seconds, message)
            except Failed as failure:
                raise Failed(f"{failure}; its stderr: {proxy.tail()}") from None


def loaded(proxy, peer, run, origins, seconds, message):
    case, port = run.case, run.port
    wait_ready(proxy, port, peer.announces)

    def load(for_seconds):
        if case.h2:
            return load_grpc(port, case, for_seconds, run.folder, message)
        return load_h1(port, case, for_seconds, run.folder)

    if case.h2:
        probe_grpc(port, case, message)
    else:
        probe_h1(port, case)
    load(WARM_UP_SECONDS)
    pids = tree(proxy.pid)

    def clocks():
        cores = core_seconds(PROXY_CORE), core_seconds(LOAD_CORE)
        return *cpu(pids), *cores, load_seconds(origins), time.monotonic()

    before = clocks()
    requests, elapsed, received = load(seconds)
    user, system, proxy_core, load_core, loading, wall = (late - early for early, late in zip(before, clocks()))
    if proxy.process.poll() is not None:
        raise Failed(f"ended under load with status {proxy.process.returncode}")
    if not requests:
        raise Failed("no request was completed")
    if received < requests * case.body:
        raise Failed(f"{received} bytes for {requests} answers of {case.body}: bodies are cut short")
    return Sample(
        rate=requests / elapsed,
        user=user / requests * 1e6,
        system=system / requests * 1e6,
        busy=(user + system) / elapsed,
        others=max(0.0, proxy_core - user - system, load_core - loading) / wall,
        rss=peak_rss(pids),
    )


# Rounds and tables


def rotated(items, by):
    by %= len(items)
    return items[by:] + items[:by]


def rounds_of(case, peers, origins, args, message):
    """Every peer once a round; a peer that fails is out of the case."""
    samples = {peer.name: [] for peer in peers}
    failures = {}
    for n in range(args.rounds):
        for peer in rotated(peers, n):
            if peer.name in failures:
                continue
            label = f"{case.name} {n + 1}/{args.rounds} {peer.name}"
            try:
                sample = measure(peer, case, origins, args.seconds, message)
            except Failed as failure:
                failures[peer.name] = str(failure)
                say(f"{label}: FAILED: {failure}")
                continue
            samples[peer.name].append(sample)
            say(f"{label}: {sample.rate:,.0f} req/s, {sample.total:.1f} us ({sample.user:.1f} user), core {sample.busy:.0%} busy, {sample.others:.0%} others")
    return samples, failures


def spread(values, digits):
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def table(case, peers, samples, failures, skipped):
    head = ["peer", "req/s", "CPU us/req", "user us", *(f"x {name}" for name in REFERENCES), "core busy", "peak RSS MB"]
    lines = [f"### {case.name}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    measured = [peer for peer in peers if peer.name not in failures]
    for peer in sorted(measured, key=lambda peer: median(s.total for s in samples[peer.name])):
        own = samples[peer.name]
        ratios = []
        for name in REFERENCES:
            others = [] if name in failures else samples.get(name, [])
            pairs = [mine.total / other.total for mine, other in zip(own, others)]
            ratios.append(spread(pairs, 2) if pairs else "-")
        cells = [
            f"{median(s.rate for s in own):,.0f}",
            spread([s.total for s in own], 1),
            f"{median(s.user for s in own):.1f}",
            *ratios,
            f"{median(s.busy for s in own):.0%}",
            f"{max(s.rss for s in own):.1f}",
        ]
        lines.append(f"| {peer.name} | " + " | ".join(cells) + " |")
    out = {**{name: f"FAILED: {why}" for name, why in failures.items()}, **{name: f"skipped: {why}" for name, why in skipped.items()}}
    for name, why in out.items():
        lines.append(f"| {name} | {why.replace('|', '/')} |" + " |" * (len(head) - 2))
    shared = [s.others for peer in measured for s in samples[peer.name]]
    if shared and max(shared) > NOISY:
        lines += ["", f"Noisy: other processes had up to {max(shared):.0%} of the proxy's core or of the load's (median {median(shared):.0%})."]
    return "\n".join(lines) + "\n"


# The command


def names(known):
    def parse(text):
        chosen = text.split(",")
        wrong = [name for name in chosen if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; known: {', '.join(known)}")
        return chosen

    return parse


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def arguments():
    parser = argparse.ArgumentParser(prog="run", description="Measures the gateway beside its peers.")
    parser.add_argument("--rounds", type=positive, default=5, help="measurements of each peer in each case (5)")
    parser.add_argument("--seconds", type=positive, default=4, help="length of one measurement (4)")
    parser.add_argument("--cases", type=names([case.name for case in CASES]), metavar="A,B", help="default: all")
    parser.add_argument("--peers", type=names([peer.name for peer in PEERS]), metavar="A,B", help="default: all")
    parser.add_argument("--gateway", type=lambda text: Path(text).resolve(), metavar="FILE", help="another build of the example `gateway`")
    parser.add_argument("--no-install", action="store_true", help="install nothing")
    parser.add_argument("--no-build", action="store_true", help="build nothing")
    parser.add_argument("--list", action="store_true", help="cases and peers, then end")
    return parser.parse_args()


def listing():
    for case in CASES:
        load = f"h2load, {GRPC_CONNECTIONS} x {GRPC_STREAMS} streams" if case.h2 else f"wrk, {H1_CONNECTIONS} connections"
        print(f"case {case.name}: {case.body} bytes, {load}")
    for peer in PEERS:
        print(f"peer {peer.name}: " + (peer.version() if peer.binary() else peer.missing()))


def main():
    args = arguments()
    if args.gateway:
        Gateway.path = args.gateway
    if args.list:
        return listing()
    if not sys.platform.startswith("linux") or len(os.sched_getaffinity(0) & {PROXY_CORE, LOAD_CORE}) < 2:
        sys.exit("this needs Linux and its cores 0 and 1: the proxy runs on one, everything else on the other")

    cases = [case for case in CASES if not args.cases or case.name in args.cases]
    peers = [peer for peer in PEERS if not args.peers or peer.name in args.peers]
    tools = {tool: package for case in cases for tool, package in TOOLS[case.h2].items()}
    if not args.no_install:
        prepare.install(peers, tools)
    # A stale binary must not stand in for one whose build failed.
    skipped = {} if args.no_build else prepare.build(peers)
    lacking = [tool for tool in ("taskset", *tools) if not shutil.which(tool)]
    if lacking:
        sys.exit(f"cannot measure without {', '.join(lacking)}")
    if "backend" in skipped or not BACKEND.exists():
        sys.exit("cannot measure without the backends: build them (cargo, or leave --no-build out)")
    for peer in peers:
        if not peer.binary():
            skipped.setdefault(peer.name, peer.missing())
    for name, why in skipped.items():
        say(f"SKIPPED {name}: {why}")
    present = [peer for peer in peers if peer.name not in skipped]
    if not present:
        sys.exit("no peer is left to measure")

    print(f"{args.rounds} rounds x {args.seconds} s. " + "; ".join(f"{peer.name}: {peer.version()}" for peer in present) + ".\n", flush=True)
    one = args.seconds + WARM_UP_SECONDS + 1
    say(f"about {len(cases) * args.rounds * len(present) * one // 60 + 1} minutes")
    failed = False
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        message = folder / "message"
        message.write_bytes(b"\0" + (105).to_bytes(4, "big") + b"x" * 105)
        with Origins(folder) as origins:
            for case in cases:
                # Varnish is here for its cache, and proxies without one have no hits.
                able = [peer for peer in present if (peer.caches if case.cached else peer.name != "varnishd")]
                samples, failures = rounds_of(case, able, origins, args, str(message))
                failed |= bool(failures)
                print(table(case, able, samples, failures, skipped), flush=True)
    for name, why in skipped.items():
        say(f"SKIPPED {name}: {why}")
    # On a laptop a peer may be missing; where everything is supposed to be there, it may not.
    if failed or (skipped and os.environ.get("CI") == "true"):
        sys.exit(1)


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; every process that was started here is ended")
