"""Compares what the records of an output in a store say was delivered with what the store has."""

from __future__ import annotations

from dataclasses import dataclass, field

from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import OutputFile, Plan
from lswap_core.plan.upload_division import Division
from lswap_core.sinks.part_records import covers
from lswap_core.sinks.s3.bucket import GoneError, UnknownCallError, at_once
from lswap_core.sinks.s3.coordination import Coordination, Key
from lswap_core.sinks.s3.state import SharedState
from lswap_core.sinks.s3.uploads import is_complete


@dataclass(frozen=True, slots=True)
class Delivered:
    """The result of the comparison. A store that cannot list its parts counts as having everything.

    done: records of finished parts, by number. unfinished: records of parts that one process has begun. etags: of all their
    upload parts except `wrong` ones, which the store does not have. complete: files whose uploads are completed. lost: files
    whose upload the store no longer has.
    """

    done: dict[int, list[StepRecord]] = field(default_factory=dict)
    unfinished: dict[int, list[StepRecord]] = field(default_factory=dict)
    etags: dict[Key, str] = field(default_factory=dict)
    wrong: set[Key] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)


def find_delivered(coordination: Coordination, plan: Plan, state: SharedState, division: Division) -> Delivered:
    """Read all records and compare them with the store's lists. Raises RecipeError where a record belongs to something else."""
    delivered = Delivered()

    def read(number: int) -> None:
        part, share = Part(number, len(division.shares)), division.shares[number - 1]
        done = coordination.done(part, state)
        if done is not None and covers(done[0], share.steps) and done[1].keys() == share.parts:
            delivered.done[number] = done[0]
        else:
            done = done or coordination.done(part, state, unfinished=True)
            if done is None or not done[1].keys() <= share.parts:
                return
            delivered.unfinished[number] = done[0]
        delivered.etags.update(done[1])

    def look(file: OutputFile) -> None:
        keys = [(file.name, part.number) for part in division.parts[file.name]]
        try:
            there = coordination.place.parts(file.name, state.uploads[file.name])
        except UnknownCallError:
            return
        except GoneError:
            if is_complete(coordination.place, file, plan):
                delivered.complete.add(file.name)
            else:
                delivered.lost.add(file.name)
                delivered.wrong.update(keys)
            return
        for part, key in zip(division.parts[file.name], keys, strict=True):
            if key in delivered.etags and there.get(part.number) != (part.size_bytes, delivered.etags[key]):
                delivered.wrong.add(key)

    at_once(read, range(1, len(division.shares) + 1))
    at_once(look, plan.files)
    for key in delivered.wrong & delivered.etags.keys():
        del delivered.etags[key]
    return delivered
