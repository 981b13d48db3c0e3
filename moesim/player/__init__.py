"""Play a program of ops on streams.

    bound.py    lower_bound(): no order, no waiting; for every candidate
    batched.py  play_batched(): list schedule over arrays of candidates, draws and rank classes
    events.py   play_events(): SimPy, one candidate, every op a span

Without contention the last two end at the same instant; a test holds them to 1e-9.
Durations are given per op name: ``durations[name]`` has shape [..., ranks] on a rank stream and [..., 1]
on a group stream.
"""

from moesim.player.batched import play_batched
from moesim.player.bound import lower_bound
from moesim.player.events import Played, play_events

__all__ = ["Played", "lower_bound", "play_batched", "play_events"]
