"""Did a change of the code change a byte? Some hundred commands, and the SHA-256 of all that each of them says and writes.

    python benchmarks/same_bytes.py record before.json                    # the lswap_core beside this python
    python benchmarks/same_bytes.py record after.json --command other/bin/lswap_core
    python benchmarks/same_bytes.py compare before.json after.json --show

Only the command line is used, nothing is imported from the package: its modules may be anywhere. The experts are seeded. Of
each command the exit status, stdout, stderr and every file and object that it made, changed or removed are recorded; outputs
in a store also by the requests that made them. Replaced in texts: the temporary directory, ports, ids of uploads, when a
store got its objects, and how many bytes were fetched, as a stream is read on while others wait. No command says how long it
took. Record both on one machine: the ways of copying are the filesystem's, and one message says that there is no GPU.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from same_bytes_corpus import CUT_OFF, LOCAL, MTIME_NS, STORE, make_experts
from same_bytes_stores import Store, localbucket_store, moto_store

UPLOAD = r'"([^"]*)": "\w{32,}"'
SHOWN_BYTES = 128 * 1024
"""Texts up to this size are kept, so that `--show` can compare them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    record = commands.add_parser("record", help="run all commands and write down what they did")
    record.add_argument("file", type=Path)
    record.add_argument("--command", default=str(Path(sys.executable).with_name("lswap_core")), help="what to run")
    record.set_defaults(run=lambda given: record_all(given.file, shlex.split(given.command)))
    compare = commands.add_parser("compare", help="print what differs; exit 1 if anything does")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--show", action="store_true", help="print how texts differ")
    compare.set_defaults(run=lambda given: compare_all(given.before, given.after, show=given.show))
    given = parser.parse_args()
    return int(given.run(given))


def record_all(file: Path, command: list[str]) -> int:
    if os.sep in command[0]:
        command[0] = os.path.abspath(command[0])
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        root = Path(name).resolve()
        (root / "work/out").mkdir(parents=True)
        make_experts(root / "work", root / "home/hub")
        recorder = Recorder(root, command)
        for place, opened in {"moto": moto_store(), "localbucket": localbucket_store(root / "buckets")}.items():
            lines = STORE + (CUT_OFF if place == "moto" else "")
            recorder.run_all(lines.replace("PLACE", place), place, stack.enter_context(opened))
        recorder.run_all(LOCAL, "disk", None)
    found = {"commands": recorder.done, "texts": recorder.texts}
    file.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"{file}: {len(recorder.done)} commands, {sum(len(one['files']) for one in recorder.done.values())} files and objects")
    return 0


class Recorder:
    """Runs commands one after the other in one directory. done: what each did, by its line. texts: by SHA-256."""

    def __init__(self, root: Path, command: list[str]) -> None:
        self.done: dict[str, dict[str, Any]] = {}
        self.texts: dict[str, str] = {}
        self._root, self._work, self._command = root, root / "work", command
        self._environment = {  # nothing of the user's, and no file beside the code
            "PATH": os.environ["PATH"], "HOME": str(root / "home"), "LC_ALL": "C.UTF-8", "TZ": "UTC", "COLUMNS": "100",
            "PYTHONPYCACHEPREFIX": str(root / "home/compiled"), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(root / "home/hub"),
        }  # fmt: skip
        self._read: dict[tuple[str, int, int], str] = {}

    def run_all(self, lines: str, place: str, store: Store | None) -> None:
        environment = dict(self._environment)
        if store is not None:
            store.load(self._work / "large")
            environment |= store.environment
        before = self._snapshot(store)
        for line in lines.strip().split("\n"):
            if store and line.startswith("!refuse"):
                store.refused = line.partition(" ")[2]
                continue
            if line.startswith("!"):
                damage(self._work, *line[1:].split())
                before = self._snapshot(store)
                continue
            key = f"{place}: {line}"
            while key in self.done:
                key += " (again)"
            self.done[key] = one = self._run(line, environment, store)
            after = self._snapshot(store)
            one["files"] = {name: what for name, what in after.items() if before.get(name) != what}
            one["files"] |= dict.fromkeys(before.keys() - after.keys(), "removed")
            one["requests"] = sorted(map(self._normal, store.requests)) if store else []
            if store:
                store.requests.clear()
            print(f"exit {one['exit']}, {len(one['files']):3} files  {key}", file=sys.stderr)
            if one["exit"]:
                print(f"    {self.texts[one['stderr']].strip():.200}", file=sys.stderr, flush=True)
            before = after

    def _run(self, line: str, environment: dict[str, str], store: Store | None) -> dict[str, Any]:
        limit, rest = re.fullmatch(r"(?:<(\d+) )?(.*)", line).groups()
        if store is not None:
            rest = rest.replace("ENDPOINT", store.endpoint)
        rest = re.sub(r"(?<!\S)@(\w+)(\+?)", lambda m: experts_of(m[1], base=bool(m[2])), rest)

        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))

        argv = [*self._command, *shlex.split(rest)]
        ended = subprocess.run(
            argv, cwd=self._work, env=environment, capture_output=True, check=False, preexec_fn=limited, stdin=subprocess.DEVNULL
        )
        if line.startswith("analyze") and "--profiles" in line:
            (self._work / "changes.json").write_bytes(ended.stdout)
        return {"exit": ended.returncode, "stdout": self._keep(ended.stdout), "stderr": self._keep(ended.stderr)}

    def _snapshot(self, store: Store | None) -> dict[str, str]:
        """Every file and directory below the working directory with its mode and number of links; every object."""
        found = {}
        for path in sorted(self._work.rglob("*")):
            name, status = self._normal(path.relative_to(self._work).as_posix()), path.stat()
            if (key := (name, status.st_ino, status.st_ctime_ns)) not in self._read:
                self._read[key] = "directory" if path.is_dir() else self._keep(path.read_bytes())
            kind = self._read[key]
            found[name] = f"{kind} {status.st_mode:o}" + ("" if path.is_dir() else f" {status.st_nlink}")
        if store is not None:
            found |= {name: self._keep(data) for name, data in store.objects()}
        return found

    def _keep(self, data: bytes) -> str:
        """SHA-256 of the bytes; of a text, with what differs from run to run replaced."""
        try:
            text = self._normal(data.decode())
        except UnicodeDecodeError:
            return hashlib.sha256(data).hexdigest()
        digest = hashlib.sha256(text.encode()).hexdigest()
        if len(text) <= SHOWN_BYTES:
            self.texts[digest] = text
        return digest

    def _normal(self, text: str) -> str:
        return normal(text.replace(str(self._root), "<root>"))


def normal(text: str) -> str:
    """Without ports, times at which a store got an object, how far a stream was read on, and ids of uploads."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", text)
    text = re.sub(rf'("mtime_ns": ?)(?!{MTIME_NS})\d+', r"\1<time>", text)
    text = re.sub(r"[\d.]+ \w+ fetched", "<size> fetched", text)
    text = re.sub(r"uploadId=\w+", "uploadId=<id>", text)
    plain = re.sub(r'("(?:id|upload)": ?)"\w{32,}"', r'\1"<id>"', text)
    # Uploads are begun by several threads: in any order.
    plain = re.sub(r'"uploads": \{("[^{}]*")\}', lambda m: f'"uploads": {sorted(re.findall(UPLOAD, m[1]))}', plain)
    return text if plain == text else re.sub(r'"sum": ?"\w+"', '"sum": <of that>', plain)


def experts_of(family: str, *, base: bool) -> str:
    return " ".join(f"--{role} {family}/{role}" for role in ("math", "lang", "base")[: 2 + base])


def damage(work: Path, how: str, name: str) -> None:
    path = work / name
    data = path.read_bytes()
    if how == "drop":
        path.unlink()
    elif how == "touch":
        os.utime(path, ns=(MTIME_NS + 1, MTIME_NS + 1))
    elif how == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.write_bytes(data[:-1])


def compare_all(before: Path, after: Path, *, show: bool) -> int:
    old, new = (json.loads(path.read_text()) for path in (before, after))
    texts = old["texts"] | new["texts"]
    differing = 0
    for key in dict.fromkeys([*old["commands"], *new["commands"]]):
        x, y = (found["commands"].get(key, {}) for found in (old, new))
        differing += x != y
        if x != y:
            print(key)
        if not x or not y:
            print(f"  only in {before if x else after}")
            continue
        parts = [(name, str(x[name]), str(y[name])) for name in ("exit", "stdout", "stderr")]
        parts += [(name, x["files"].get(name, ""), y["files"].get(name, "")) for name in sorted(x["files"] | y["files"])]
        parts += [("requests", "\n".join(x["requests"]), "\n".join(y["requests"]))]
        for name, was, now in parts:
            if was == now:
                continue
            what = "differs" if was and now else "is new" if now else "is missing"
            print(f"  {name} {what}" + (f": {was} before, {now} after" if name == "exit" else ""))
            if show and name != "exit":
                lines = [texts.get(side.split(" ")[0], side).splitlines() for side in (was, now)]
                print(*(f"    {line}" for line in difflib.unified_diff(*lines, "before", "after", n=1, lineterm="")), sep="\n")
    print(f"{differing} of {len(old['commands'].keys() | new['commands'].keys())} commands differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
