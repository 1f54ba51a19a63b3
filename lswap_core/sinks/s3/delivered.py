"""What the records of an output in a store say was delivered, compared with what the store says it has."""

from __future__ import annotations

from dataclasses import dataclass, field

from lswap_core.plan.division import Part
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import OutputFile, Plan
from lswap_core.sinks.part_records import covers
from lswap_core.sinks.s3.bucket import GoneError, UnknownCallError, at_once
from lswap_core.sinks.s3.coordination import Coordination, Key
from lswap_core.sinks.s3.division import Division
from lswap_core.sinks.s3.state import SharedState
from lswap_core.sinks.s3.uploads import is_complete


@dataclass(frozen=True, slots=True)
class Delivered:
    """done: the records of parts that are done, by number. unfinished: of those that one process has begun. etags: of all their
    upload parts but those that are `wrong`, which the store does not have. complete: files that were put together already.
    lost: files of which the store no longer has the upload. A store that cannot say what it has is believed to have everything.
    """

    done: dict[int, list[StepRecord]] = field(default_factory=dict)
    unfinished: dict[int, list[StepRecord]] = field(default_factory=dict)
    etags: dict[Key, str] = field(default_factory=dict)
    wrong: set[Key] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)


def find_delivered(coordination: Coordination, plan: Plan, state: SharedState, division: Division) -> Delivered:
    """Read all records and compare them with the store's own lists. RecipeError where a record is of something else."""
    found = Delivered()

    def read(number: int) -> None:
        part, share = Part(number, len(division.shares)), division.shares[number - 1]
        done = coordination.done(part, state)
        if done is not None and covers(done[0], share.steps) and done[1].keys() == share.parts:
            found.done[number] = done[0]
        else:
            done = done or coordination.done(part, state, unfinished=True)
            if done is None or not done[1].keys() <= share.parts:
                return
            found.unfinished[number] = done[0]
        found.etags.update(done[1])

    def look(file: OutputFile) -> None:
        keys = [(file.name, part.number) for part in division.parts[file.name]]
        try:
            there = coordination.place.parts(file.name, state.uploads[file.name])
        except UnknownCallError:
            return
        except GoneError:
            if is_complete(coordination.place, file, plan):
                found.complete.add(file.name)
            else:
                found.lost.add(file.name)
                found.wrong.update(keys)
            return
        for part, key in zip(division.parts[file.name], keys, strict=True):
            if key in found.etags and there.get(part.number) != (part.size_bytes, found.etags[key]):
                found.wrong.add(key)

    at_once(read, range(1, len(division.shares) + 1))
    at_once(look, plan.files)
    for key in found.wrong & found.etags.keys():
        del found.etags[key]
    return found
