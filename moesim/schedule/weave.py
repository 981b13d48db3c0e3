"""All stages' orders as one list in which nothing comes before what it waits for: the check for deadlock."""

from collections.abc import Sequence

from moesim.errors import MoesimError
from moesim.schedule.passes import Pass, Works


def weave(orders: Sequence[Sequence[Pass]]) -> list[tuple[int, Pass]]:
    """(stage, pass). Raises MoesimError when the orders block each other."""
    everything = [one for order in orders for one in order]
    works = works_of(everything)
    done = bytearray(works.total)
    needs = [[works.needed_by(one) for one in order] for order in orders]
    position = [0] * len(orders)
    woven: list[tuple[int, Pass]] = []
    while len(woven) < len(everything):
        before = len(woven)
        for stage, order in enumerate(orders):
            place, needed = position[stage], needs[stage]
            while place < len(order) and all(map(done.__getitem__, needed[place])):
                for work in works.done_by(order[place]):
                    done[work] = 1
                woven.append((stage, order[place]))
                place += 1
            position[stage] = place
        if len(woven) == before:
            raise MoesimError(
                f"the schedule blocks after {before} of {len(everything)} passes: its orders wait in a ring"
            )
    return woven


def works_of(passes: Sequence[Pass]) -> Works:
    """Room for every micro-batch and part that occurs."""
    return Works(
        1 + max((one.part for one in passes), default=0), 1 + max((one.micro_batch for one in passes), default=0)
    )
