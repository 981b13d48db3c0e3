"""The one place inside SimPy where bytes wait: collectives that start when they start, and share the links.

    send(flows)   -> an event for the end of the last of them
    played(...)   -> the end of every exchange of a group, each rank beginning when it is ready

Rates are max-min fair (maxmin) and renewed once in an instant, however many flows come or go in it. A collective's
weight is its number of channels: without it, the one with more flows takes the links from the other. Links never
idle while a flow waits for them, so two exchanges over the same links end together when the sum of their bytes is
through.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import simpy

from moesim.cluster import Cluster, Group
from moesim.cost import FloatArray
from moesim.network.links import Route
from moesim.network.maxmin import INSTANT, Flows, Moving, moving_rows
from moesim.network.pairs import Dense, IntArray
from moesim.network.ways import link_table, pair_flows


class Network:
    """Links under a SimPy clock."""

    def __init__(self, env: simpy.Environment, capacity_bytes_per_s: FloatArray) -> None:
        self._env = env
        self._moving = Moving(capacity_bytes_per_s)
        self._rest_s = np.zeros(0)  # [flow] to the end, at the rates since ...
        self._since_s = float(env.now)
        self._renewals = 0
        self._changing = False  # in this instant
        self._done: list[simpy.Event] = []
        self._left: list[int] = []  # flows of each collective that have not ended

    def send(self, flows: Flows) -> simpy.Event:
        """Start the flows, each its ``start_s`` from now; over the network's capacity, not the flows' own."""
        done = self._env.event()
        start_s = np.broadcast_to(flows.start_s, flows.size_bytes.shape)
        rows = moving_rows(flows)
        number = len(self._done)
        self._done.append(done)
        self._left.append(len(rows))
        if not len(rows):
            done.succeed()
        for delay_s in np.unique(start_s[rows]):
            due = rows[start_s[rows] == delay_s]
            self._at(float(delay_s), lambda _, due=due: self._start(flows, due, number))
        return done

    def _at(self, delay_s: float, then: Any) -> None:
        self._env.timeout(delay_s).callbacks.append(then)

    def _start(self, flows: Flows, rows: IntArray, number: int) -> None:
        self._change(self._env.now - self._since_s)
        self._moving.add(flows, rows, np.full(len(rows), number))

    def _change(self, passed_s: float) -> None:
        """Before the first change of an instant: bytes move at the old rates; after the last one new rates count."""
        if self._changing:
            return
        self._changing = True
        over = self._rest_s <= passed_s
        for number, count in zip(*np.unique(self._moving.advance(passed_s, over), return_counts=True), strict=True):
            self._left[number] -= count
            if not self._left[number]:
                self._done[number].succeed()
        self._at(0.0, self._renew)

    def _renew(self, _: simpy.Event) -> None:
        self._changing, self._since_s = False, float(self._env.now)
        self._renewals += 1
        self._rest_s = self._moving.rest_s()
        if len(self._rest_s):
            next_s, renewal = float(self._rest_s.min()), self._renewals
            self._at(next_s, lambda _: self._end(next_s, renewal))

    def _end(self, next_s: float, renewal: int) -> None:
        if renewal == self._renewals:  # else rates have changed since
            self._change(next_s * (1.0 + INSTANT))


class Exchange(NamedTuple):
    """One all-to-all of a group; a ring step or any other exchange is one too."""

    dense: Dense
    token_bytes: float
    route: Route = "forwarded"
    weight: float = 1.0  # its channels


def played(cluster: Cluster, group: Group, exchanges: Sequence[Exchange], start_s: FloatArray) -> FloatArray:
    """``[exchange]`` seconds at which each ends; ``start_s[exchange]``, or ``[exchange, rank]`` with late ranks."""
    env = simpy.Environment()
    network = Network(env, link_table(cluster, group)[1])
    ends = np.zeros(len(exchanges))
    for number, (one, begin_s) in enumerate(zip(exchanges, start_s, strict=True)):
        flows = pair_flows(cluster, group, one.dense, one.route, one.token_bytes, begin_s)
        env.process(_exchange(env, network, replace(flows, weight=one.weight), number, ends))
    env.run()
    ready_s = np.max(np.reshape(start_s, (len(exchanges), -1)), axis=1)
    return np.asarray(np.maximum(ends, ready_s))


def _exchange(env: simpy.Environment, network: Network, flows: Flows, number: int, ends: FloatArray) -> Any:
    """Send everything and note when the last byte is there."""
    yield network.send(flows)
    ends[number] = env.now
