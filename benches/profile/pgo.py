"""Builds the example with profile-guided optimisation: once with counters, under the cases of `run`, and then
by what they counted. Prints where it is; the sources and the plain build stay as they are.
https://doc.rust-lang.org/rustc/profile-guided-optimization.html
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ground
from ground import Failed, say
from instructions import CASES


def merge(raw, profile):
    """Puts the counts into a profile, by the first llvm-profdata that reads what rustc's LLVM writes."""
    asked = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True)
    tools = [*Path(asked.stdout.strip()).glob("lib/rustlib/*/bin/llvm-profdata")]
    path = [tool for folder in os.environ.get("PATH", "").split(":") for tool in Path(folder).glob("llvm-profdata*")]
    tools += sorted(path, key=lambda tool: [int(digits) for digits in re.findall(r"\d+", tool.name)], reverse=True)
    said = "it is not installed"
    for tool in tools:
        done = subprocess.run([tool, "merge", "-o", profile, raw], capture_output=True, text=True)
        if done.returncode == 0:
            return
        said = f"{tool}: {done.stderr.strip()[-300:]}"
    sys.exit(
        f"llvm-profdata: {said}\n"
        "needed is that of LLVM 19 or later: `rustup component add llvm-tools`, or a package such as llvm-19"
    )


def learn(binary, requests):
    """Sends the requests of each case through the build with counters, which adds to its file as it ends."""
    for name, case in CASES.items():
        say(f"{name}: {requests} requests")
        with ground.folder() as temporary:
            with case.gateway(Path(temporary), binary) as gateway:
                case.ask(gateway.address, Path(temporary), requests)
                if gateway.stop() != 0:
                    raise Failed(f"the gateway did not end well: {gateway.log.read_text()[-500:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each case, that are counted")
    requests = parser.parse_args().requests
    folder = ground.target() / "pgo"
    raw, profile = folder / "raw", folder / "gateway.profdata"
    counting = ground.build(folder, f"-Cprofile-generate={raw}")
    shutil.rmtree(raw, ignore_errors=True)  # of an earlier run, and of what cargo ran
    learn(counting, requests)
    merge(raw, profile)
    print(ground.build(folder, f"-Cprofile-use={profile}"))


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(str(failure))
