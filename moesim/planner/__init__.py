"""Which configuration should I run?

space   layouts, frames and variants: what is considered, and why the rest is not
screen  a bound for every candidate, the list schedule for the promising, over arrays
shards  what a worker is asked; workers  one process for each core
plan    play the best, rank, count what was cut and how
why     what bounds the winner, what the runner-up loses, what would change the answer
"""

from moesim.planner.plan import OBJECTIVES, TOP, Plan, plan
from moesim.planner.space import layouts, space

__all__ = ["OBJECTIVES", "TOP", "Plan", "layouts", "plan", "space"]
