"""What the scripts of this folder stand on: a gateway over backends of nginx, and clients that count.

Needs Linux, Python's standard library and nginx; each script says what else.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
READY_SECONDS = 60  # under valgrind, on a machine with other work
ENDPOINTS = 3
MESSAGE = bytes(5) + b"x" * 105  # of a unary call; the prefix says nothing to nginx


class Failed(Exception):
    """The gateway, or what is around it, did not do what it must."""


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def need(*tools):
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = [shutil.which(tool, path=path) for tool in tools]
    if missing := [tool for tool, file in zip(tools, found) if file is None]:
        sys.exit(f"missing: {', '.join(missing)}")
    return found


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def target():
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").absolute()


def default_gateway(folder=None):
    return (folder or target()) / "release" / "examples" / "gateway"


def build(folder=None, flags="", **profile):
    """Builds the example as it is released, or with another profile, with flags for rustc, into another folder."""
    changed = {f"CARGO_PROFILE_RELEASE_{key.upper()}": value for key, value in profile.items()}
    if folder:
        changed["CARGO_TARGET_DIR"] = str(folder)
    if flags:
        changed["RUSTFLAGS"] = f"{os.environ.get('RUSTFLAGS', '')} {flags}".strip()
    command = ["cargo", "build", "--release", "--features", "full", "--example", "gateway"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **changed}, check=True)
    return default_gateway(folder)


class Child:
    """A process that is ended with the block, by its id."""

    def __init__(self, command, **options):
        self.process = subprocess.Popen(command, start_new_session=True, **options)

    @property
    def pid(self):
        return self.process.pid

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Backends:
    """One nginx that answers on several ports: `/1k` and `/64k` that many bytes, with HTTP/2 a unary call too."""

    def __init__(self, folder, count=ENDPOINTS, h2=False):
        (nginx,) = need("nginx")
        self.ports = free_ports(count)
        self.addresses = [f"127.0.0.1:{port}" for port in self.ports]
        (folder / "64k").write_bytes(bytes(64 * 1024))
        folder.chmod(0o755)  # for the worker of nginx, which is nobody
        protocol = " http2" if h2 else ""
        listen = "\n".join(f"    listen {address}{protocol};" for address in self.addresses)
        temporary = "\n".join(
            f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = folder / "nginx.conf"
        config.write_text(
            f"""
daemon off;
worker_processes 1;
error_log stderr error;
pid {folder}/nginx.pid;
events {{ worker_connections 16384; }}
http {{
  access_log off;
{temporary}
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  server {{
{listen}
    root {folder};
    location = /64k {{ }}
    location = /bench.Echo/Unary {{
      default_type application/grpc;
      add_trailer grpc-status 0;
      return 200 "{'x' * 110}";
    }}
    location / {{
      default_type application/octet-stream;
      return 200 "{'x' * 1024}";
    }}
  }}
}}
"""
        )
        # nginx says at once that its compiled-in log cannot be opened, which does not matter.
        log = (folder / "nginx.log").open("w")
        self.child = Child([nginx, "-c", str(config), "-p", str(folder)], stderr=log)

    def __enter__(self):
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.ports[-1]), 1).close()
                return self
            except OSError:
                if time.monotonic() > deadline:
                    self.child.stop()
                    raise Failed("nginx does not listen") from None
                time.sleep(0.05)

    def __exit__(self, *_):
        self.child.stop()


class Gateway(Child):
    """The example over a file; `wrapper` runs it, as valgrind does."""

    def __init__(self, folder, text, binary, wrapper=(), threads=1):
        file = folder / "gateway.yaml"
        file.write_text(text)
        self.log = folder / "gateway.log"
        super().__init__(
            [*wrapper, str(binary), "--config", str(file), "--threads", str(threads)],
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )
        self.address = self.admin = None
        timer = threading.Timer(READY_SECONDS, self.process.kill)
        timer.start()
        for line in self.process.stdout:
            if found := re.fullmatch(r"(listening|admin) on 127\.0\.0\.1:(\d+)\n", line):
                setattr(self, "address" if found[1] == "listening" else "admin", ("127.0.0.1", int(found[2])))
            if self.address and (self.admin or "admin:" not in text):
                break
        timer.cancel()
        if self.address is None:
            raise Failed(f"the gateway does not listen: {self.log.read_text()[-500:]}")


# What is armed, one layer more in each row.

HEALTH = "health: { type: http, path: /1k, interval: 1s }"
OUTLIER = "outlier: { consecutive_failures: 5 }"
BALANCE = "balance: { type: response_time }"
FAILOVER = "failover: { retries: 2, per_try_timeout: 2s }"
LIMIT = "rate_limit: [ { name: per-client, rate: 1000000/s, burst: 1000000, key: client_ip } ]"
CACHE = "cache: { default_ttl: 1h }"

LAYERS = {
    "bare": ([], []),
    "+ balance by response time": ([BALANCE], []),
    "+ health, outlier": ([BALANCE, HEALTH, OUTLIER], []),
    "+ failover": ([BALANCE, HEALTH, OUTLIER], [FAILOVER]),
    "+ rate limit: everything": ([BALANCE, HEALTH, OUTLIER], [FAILOVER, LIMIT]),
}
EVERYTHING = LAYERS["+ rate limit: everything"]


def settings(addresses, layers, protocol="http1"):
    cluster, route = layers
    endpoints = ", ".join(f'{{ address: "{address}" }}' for address in addresses)
    cluster = [f"discovery: {{ type: static, endpoints: [ {endpoints} ] }}", f"protocol: {protocol}", *cluster]
    route = ["match: {}", "cluster: web", *route]
    return (
        'node: { listen: "127.0.0.1:0", admin: "127.0.0.1:0" }\n'
        f"clusters: {{ web: {{ {', '.join(cluster)} }} }}\n"
        f"routes: [ {{ {', '.join(route)} }} ]\n"
    )


# Clients


def request(path="/1k", host="gateway.test", body=b""):
    """What wrk and most clients send, and little more."""
    method, length = ("POST", f"content-length: {len(body)}\r\n") if body else ("GET", "")
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: profile\r\naccept: */*\r\n{length}\r\n"
    return head.encode() + body


class Connection:
    def __init__(self, address):
        self.socket = socket.create_connection(address, 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(60)

    def ask(self, sent):
        """Sends a request and reads its whole answer; anything but 200 fails."""
        self.socket.sendall(sent)
        got = self.socket.recv(262_144)
        while (end := got.find(b"\r\n\r\n")) < 0:
            got += self.more()
        head = got[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise Failed(f"expected 200, got {got[:200]!r}")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        left = end + 4 + length - len(got)
        while left > 0:
            left -= len(self.more())

    def more(self):
        data = self.socket.recv(262_144)
        if not data:
            raise Failed("the connection was closed in the middle of an answer")
        return data

    def close(self):
        self.socket.close()


def ask_http1(address, sent, requests, connections):
    """So many requests in all, evenly over the connections, each connection in a closed loop."""
    failures = []

    def loop():
        try:
            connection = Connection(address)
            for _ in range(requests // connections):
                connection.ask(sent)
            connection.close()
        except (Failed, OSError) as failure:
            failures.append(failure)

    threads = [threading.Thread(target=loop) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Failed(failures[0])


def ask_grpc(address, folder, requests, connections, streams):
    (h2load,) = need("h2load")
    message = folder / "message"
    message.write_bytes(MESSAGE)
    command = [h2load, "-n", str(requests), "-c", str(connections), "-m", str(streams), "-d", str(message)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{address[0]}:{address[1]}/bench.Echo/Unary"
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=600)
    if f"{requests} succeeded" not in done.stdout or f" {requests} 2xx" not in done.stdout:
        raise Failed(f"h2load: {done.stdout[-600:]} {done.stderr[-200:]}")


def cpu_seconds(pid):
    """User and system seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def resident_kib(pid, field="VmRSS"):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def folder():
    return tempfile.TemporaryDirectory(prefix="profile-")
