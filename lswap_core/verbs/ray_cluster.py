"""Runs parts of a plan as tasks of a Ray cluster, over a filesystem that its nodes share or a store. Loaded only for
`--engine ray`.

Ray schedules, detects dead nodes and restarts their tasks elsewhere. A task is one call of `parts.apply_part`, which may be
repeated. So no state is kept in Ray, and what a cluster leaves unfinished can be finished by hand.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

from lswap_core.errors import RecipeError
from lswap_core.io.locations import is_url
from lswap_core.io.ports import Silence
from lswap_core.plan.division import Part
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import Plan
from lswap_core.verbs.execute import Execution, RunOptions, StrPath
from lswap_core.verbs.parts import apply_part, check_parts, publish

LOCAL = "local"
"""The address of a cluster that is started on this machine alone and for this call alone."""
_TASK_THREADS = 8
_PARTS_PER_SLOT = 4
"""Parts for each that can run at once: what a dead node costs, and what the last ones may leave idle."""
_RETRIES = 8
"""How often a part may lose its node or its process before the merge fails."""
_CANCEL_SECONDS = 10.0


def execute_on_ray(
    plan: Plan,
    *,
    into: StrPath,
    address: str | None = None,
    parts: int | None = None,
    locations: Mapping[str, StrPath] | None = None,
    **how: Unpack[Execution],
) -> Manifest:
    """Call `execute` on a Ray cluster. Every node must have this package and see the sources and the output's directory under
    the same paths. For an output at `s3://`, every node's environment must give access to the store.

    address: of a running cluster, `auto` for the one that this machine belongs to; by default RAY_ADDRESS or, without that,
    `local`. parts: by default as many as an unfinished build has, else some for each task that can run at once. workers:
    threads of one task, and processors that it reserves. After a failure or interruption, finished parts are kept, and the
    same call resumes. Raises as `apply_part` and `publish`; RecipeError where there is no such cluster.
    """
    if parts is not None and parts < 1:
        raise RecipeError(f"--parts is {parts}; expected 1 or more")
    run = RunOptions(**how)
    if run.traffic is not None:
        raise RecipeError("traffic is not counted on a Ray cluster, where other processes do the work; leave it out")
    begun_parts = check_parts(plan, into, parts, run.options)
    place = os.fspath(into) if is_url(into) else os.path.abspath(into)
    there = {role: os.path.abspath(path) if os.path.exists(path) else os.fspath(path) for role, path in (locations or {}).items()}
    with _connected(address or os.environ.get("RAY_ADDRESS") or LOCAL) as ray:
        threads, slots = _slots(ray, run.workers)
        count = parts or begun_parts or max(1, slots * _PARTS_PER_SLOT)
        task = ray.remote(_do_part).options(
            name="lswap_core part",
            num_cpus=threads,
            num_gpus=1 if run.device == "cuda" else 0,
            max_retries=_RETRIES,
            scheduling_strategy="SPREAD",
        )
        of_task: Execution = {"workers": threads, "device": run.device, "options": run.options, "restart": run.restart}
        given = ray.put((plan.to_json(), place, there, of_task))
        pending = [task.remote(given, number, count) for number in range(1, count + 1)]
        bar = run.progress or Silence()
        bar.begin(sum(step.size_bytes for step in plan.steps))
        try:
            while pending:
                done, pending = ray.wait(pending)
                bar.advance(ray.get(done[0]))
        except BaseException as error:  # Ctrl-C, too: tasks would go on without this process
            _cancel(ray, pending)
            error.add_note(
                f"parts that are done are kept {'in' if is_url(place) else 'beside'} {place}; the same command goes on from there"
            )
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
                raise _with_notes(error.cause, error) from None
            raise
        finally:
            bar.end()
    return publish(plan, into=place, locations=there, workers=run.workers)


def _do_part(given: tuple[str, str, Mapping[str, str], Execution], number: int, count: int) -> int:
    """Run one task. Returns the size of the part in bytes of the output."""
    text, into, locations, how = given
    plan = Plan.from_json(text, path="the plan that was sent")
    return apply_part(plan, Part(number, count), into=into, locations=locations, **how).size_bytes


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Return the module `ray`, connected. It sends no usage reports, and a cluster started here listens on the loopback
    interface only. Without the third variable, which is read while Ray is imported, Ray takes the machine's address for
    127.0.0.1.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise RecipeError("--engine ray: ray is not installed; `pip install 'lswap-core[cluster]'` brings it") from error
    before = signal.getsignal(signal.SIGTERM)  # Ray replaces it with its own
    try:
        ray.init(address, configure_logging=True, logging_level="error", log_to_driver=False, **own)
    except ConnectionError as error:
        said = str(error).splitlines()[0]
        raise RecipeError(f"--address {address}: there is no Ray cluster ({said}); start one, or leave --address out") from None
    try:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        yield ray
    finally:
        ray.shutdown()


def _slots(ray: Any, workers: int | None) -> tuple[int, int]:
    """Threads of one task, and the number of tasks that can run at once."""
    processors = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    usable = [count for count in processors if count] or [1]
    threads = workers or min(_TASK_THREADS, *usable)
    if threads > max(usable):
        raise RecipeError(f"--workers {threads}: no node of the cluster has more than {max(usable)} processors")
    return threads, sum(count // threads for count in usable)


def _cancel(ray: Any, pending: list[Any]) -> None:
    """Interrupt running tasks, as Ctrl-C would, and cancel the others. Kills tasks that do not end in time."""
    for force in (False, True):
        for ref in pending:
            ray.cancel(ref, force=force)
        if pending:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=_CANCEL_SECONDS, fetch_local=False)


def _with_notes(cause: Exception, error: BaseException) -> Exception:
    for note in getattr(error, "__notes__", ()):
        cause.add_note(note)
    return cause
