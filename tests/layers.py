#!/usr/bin/env python3
"""Shows that the tree keeps its layers, by reading every #include.

The tables below are the rules: what a folder may include of this project and of others, and which
single files are narrower than their folder. Also checks that files and lines stay short. Before
the tree, the checker itself is run on lines that must be refused, so that it cannot pass idly.
Standard library only; run by ctest, or by hand: tests/layers.py
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

LINES_MAX = 600
COLUMNS_MAX = 100

# folder -> what it may include of this project, as prefixes of include paths
PROJECT = {
    "kernels": ["kernels/"],
    "model": ["kernels/", "model/"],
    "engine": ["kernels/core.hpp", "kernels/batch.hpp", "model/config.hpp", "model/tokenizer.hpp",
               "model/unicode.hpp", "engine/"],
    "transport": ["kernels/core.hpp", "model/unicode.hpp", "engine/step.hpp",
                  "engine/scheduler_config.hpp", "engine/stream_log.hpp", "transport/"],
    "actors": ["kernels/", "model/", "engine/", "transport/", "actors/"],
    "router": ["kernels/core.hpp", "transport/", "router/"],
    "gateway": ["kernels/core.hpp", "transport/client", "transport/protocol.hpp", "gateway/"],
    "cli": ["kernels/core.hpp", "kernels/backends.hpp", "model/", "transport/client",
            "transport/curve_keys.hpp",
            "transport/protocol.hpp", "transport/figures.hpp", "actors/node.hpp", "router/",
            "gateway/",
            "bench/latency.hpp", "bench/serve/", "cli/"],
    "bench": ["kernels/", "model/", "engine/", "transport/", "actors/", "bench/"],
    "examples": ["kernels/core.hpp", "transport/client", "transport/curve_keys.hpp",
                 "transport/protocol.hpp"],
}

# folder -> libraries beyond the standard one, as prefixes of include paths
LIBRARIES = {
    "kernels": ["hwy/", "fmt/", "tl/", "cuda", "nccl", "sodium", "xxhash.h"],
    "model": ["fmt/", "tl/", "nlohmann/", "pcre2.h", "utf8proc.h", "sodium"],
    "engine": ["fmt/", "tl/", "nlohmann/", "sodium"],
    "transport": ["fmt/", "tl/", "zmq", "msgpack", "sodium", "boost/asio", "boost/beast"],
    "actors": ["fmt/", "tl/", "zmq", "caf/", "spdlog/", "nlohmann/", "sodium"],
    "router": ["fmt/", "tl/", "zmq"],
    "gateway": ["fmt/", "tl/", "zmq", "nlohmann/", "boost/"],
    "cli": ["fmt/", "tl/", "zmq", "CLI/", "nlohmann/", "toml++/", "spdlog/", "histedit.h"],
    "bench": ["fmt/", "tl/", "zmq", "nlohmann/", "cupti"],
    "examples": ["fmt/", "tl/", "zmq"],
    "tsan": ["caf/"],
}

# Headers of the system are not libraries: <vector>, <sys/mman.h>, <unistd.h> ...
SYSTEM = re.compile(r"^([a-z0-9_]+|c[a-z]+|"
                    r"(sys|net|netinet|arpa|linux)/\w+\.h|"
                    r"(unistd|fcntl|signal|poll|netdb|pthread|sched|termios|pty|pwd|dlfcn|errno|"
                    r"dirent|ifaddrs|immintrin|cpuid|time|langinfo|ucontext|getopt)\.h)$")

# path pattern -> includes refused there although the folder has them, and why
NARROWER = [
    (r"^engine/", r"^(thread|mutex|shared_mutex|condition_variable|atomic|future|chrono|ctime|"
     r"iostream|fstream|cstdio|random|unistd\.h|sys/.*)$",
     "the engine is pure: no threads, clocks, randomness or I/O"),
    (r"^transport/(node_protocol|protocol|session|link|client_state|stream|figures|metrics_text)\.",
     r"^(zmq|boost)",
     "a protocol state machine touches no socket"),
    (r"^transport/(node_protocol|protocol|session|link|client_state|stream|figures)\.",
     r"^(thread|mutex|chrono|random)$",
     "time, randomness and threads are arguments of a protocol state machine"),
    (r"^(?!transport/|actors/bridge|tests/|bench/)", r"^transport/endpoint\.hpp$",
     "only actors/bridge includes the endpoint"),
    (r"^transport/(?!endpoint|peer_|client\.|curve)", r"^transport/(endpoint|client|curve)\.hpp$",
     "a pure part includes no impure one"),
    (r"^bench/latency\.", r"^(transport/|actors/|zmq|caf/)",
     "bench latency builds without CAF and ZeroMQ"),
    (r"^router/(policy|registry)\.", r"^(transport/|zmq|fmt/)",
     "the router's policy and registry stand on the standard library alone"),
]

CODE = {".cpp", ".hpp", ".h", ".cu", ".cuh", ".py", ".sh", ".cmake"}
UNBREAKABLE = re.compile(r"[0-9a-f]{64}|https?://")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')


def home(path):
    """The folder whose rules a file follows; tests follow the folder that they test."""
    parts = path.split("/")
    return parts[1] if parts[0] == "tests" and len(parts) > 2 else parts[0]


def allowed_project(path):
    folder = home(path)
    if not path.startswith("tests/"):
        return PROJECT.get(folder, [])
    # A test may look at everything from its folder down; whole programs may be tested with all.
    order = ["kernels", "model", "engine", "transport", "actors"]
    upto = order[:order.index(folder) + 1] if folder in order else order + list(PROJECT)
    return [f"{name}/" for name in upto] + ["tests/", "bench/instant_backend.hpp"]


def allowed_libraries(path):
    folder = home(path)
    allowed = LIBRARIES.get(folder, [])
    if path.startswith("tests/"):
        lower = list(LIBRARIES)[:list(LIBRARIES).index(folder) + 1] if folder in LIBRARIES else []
        allowed = [prefix for name in lower for prefix in LIBRARIES[name]]
        if folder in ("cli", "fuzz"):
            allowed = [p for p in allowed if p != "caf/"] + ["nlohmann/", "fmt/", "tl/", "zmq"]
        if folder in ("simulate", "fakes"):
            allowed = LIBRARIES["actors"]
        if folder == "soak":  # drives a whole node over its sockets
            allowed = LIBRARIES["bench"]
        allowed = allowed + ["boost/test/"]
    return allowed


def check_include(path, quote, name):
    """Why this include is refused, or None."""
    for where, what, why in NARROWER:
        if re.search(where, path) and re.search(what, name):
            return why
    first = name.split("/")[0]
    if quote == '"' or (first in PROJECT and "/" in name):
        if any(name.startswith(prefix) for prefix in allowed_project(path)):
            return None
        if "/" not in name:
            return "project includes are written from the root of the tree"
        return f"{home(path)}/ may not include it"
    if SYSTEM.match(name) or any(name.startswith(p) for p in allowed_libraries(path)):
        return None
    return f"this library is not {home(path)}/'s"


def check_text(path, text):
    complaints = []
    lines = text.splitlines()
    if len(lines) > LINES_MAX:
        complaints.append(f"{path}: {len(lines)} lines, more than {LINES_MAX}: split it")
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX and not UNBREAKABLE.search(line):
            complaints.append(f"{path}:{number}: {len(line)} columns, more than {COLUMNS_MAX}")
        found = INCLUDE.match(line)
        if found and path.split("/")[0] in list(PROJECT) + ["tests"]:
            why = check_include(path, found[1], found[2])
            if why:
                complaints.append(f"{path}:{number}: includes {found[2]}: {why}")
    return complaints


def sources():
    for folder in list(PROJECT) + ["tests", "scripts", "cmake"]:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in CODE and path.is_file():
                yield path
    yield ROOT / "CMakeLists.txt"


MUST_REFUSE = [
    ("kernels/x.cpp", '#include "model/gguf.hpp"'),
    ("kernels/x.cpp", "#include <zmq.hpp>"),
    ("model/x.hpp", '#include "engine/step.hpp"'),
    ("engine/x.cpp", "#include <mutex>"),
    ("engine/x.cpp", '#include "kernels/backend.hpp"'),
    ("transport/session.cpp", "#include <zmq.hpp>"),
    ("transport/stream.cpp", '#include "transport/endpoint.hpp"'),
    ("transport/x.cpp", "#include <caf/all.hpp>"),
    ("actors/batcher.cpp", '#include "transport/endpoint.hpp"'),
    ("actors/node.hpp", '#include "transport/endpoint.hpp"'),
    ("cli/x.cpp", '#include "engine/scheduler.hpp"'),
    ("cli/x.cpp", "#include <caf/all.hpp>"),
    ("bench/latency.cpp", '#include "actors/node.hpp"'),
    ("tests/engine/x.cpp", '#include "transport/session.hpp"'),
    ("tests/transport/x.cpp", "#include <caf/all.hpp>"),
    ("model/x.cpp", '#include "gguf.hpp"'),
    ("model/x.cpp", "int " + "x" * COLUMNS_MAX + ";"),
    ("model/x.cpp", "\n" * (LINES_MAX + 1)),
]
MUST_ACCEPT = [
    ("kernels/cpu/x.cpp", "#include <hwy/highway.h>\n#include <vector>\n#include <sys/mman.h>"),
    ("engine/x.cpp", '#include "kernels/batch.hpp"\n#include "model/tokenizer.hpp"'),
    ("actors/bridge.cpp", '#include "transport/endpoint.hpp"\n#include <caf/all.hpp>'),
    ("tests/actors/x.cpp", "#include <caf/all.hpp>\n#include <boost/test/unit_test.hpp>"),
]


def main():
    for path, text in MUST_REFUSE:
        if not check_text(path, text):
            sys.exit(f"layers: the checker is broken: {path} with {text[:60]!r} was accepted")
    for path, text in MUST_ACCEPT:
        if check_text(path, text):
            sys.exit(f"layers: the checker is broken: {check_text(path, text)}")
    complaints, count = [], 0
    for path in sources():
        count += 1
        complaints += check_text(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    for complaint in complaints:
        print(complaint)
    print(f"layers: {count} files, {len(complaints)} complaints")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
