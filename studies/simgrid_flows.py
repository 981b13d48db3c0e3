"""SimGrid's answer for given flows: reads JSON, prints JSON. Runs in any Python that has ``simgrid``, without numpy.

    {"hosts": 16, "capacity": [bytes/s, ...], "flows": [[src, dst, bytes, [link, ...]], ...]}
    -> {"makespan_s": ..., "build_s": ..., "run_s": ...}      CPU seconds

The model is CM02 with all its corrections switched off, which is max-min fair sharing without latency (SimGrid's
default, LV08, multiplies bandwidth by 0.97 and latency by 13). One engine a process, as SimGrid wants it.
"""

import json
import sys
from time import process_time

import simgrid

PLAIN = (
    "network/model:CM02", "network/bandwidth-factor:1", "network/latency-factor:1", "network/weight-S:0",
    "network/TCP-gamma:0", "network/crosstraffic:0", "network/loopback-bw:1e18",
)  # fmt: skip


def main() -> None:
    case = json.load(sys.stdin)
    engine = simgrid.Engine(["simgrid_flows", "--log=root.thres:error", *(f"--cfg={one}" for one in PLAIN)])
    started_s = process_time()
    zone = simgrid.NetZone.create_full_zone("net")
    hosts = [zone.create_host(f"host{number}", 1e9).seal() for number in range(case["hosts"])]
    links = [
        simgrid.LinkInRoute(zone.create_link(f"link{number}", capacity).set_latency(0.0).seal())
        for number, capacity in enumerate(case["capacity"])
    ]
    for src, dst, _, path in case["flows"]:
        zone.add_route(hosts[src].netpoint, hosts[dst].netpoint, None, None, [links[link] for link in path], False)
    zone.seal()
    end_s = []

    def everybody() -> None:
        sent = [simgrid.Comm.sendto_async(hosts[src], hosts[dst], int(size)) for src, dst, size, _ in case["flows"]]
        simgrid.Comm.wait_all(sent)
        end_s.append(simgrid.Engine.clock)

    simgrid.Actor.create("everybody", hosts[0], everybody)
    built_s = process_time()
    engine.run()
    print(json.dumps({"makespan_s": end_s[0], "build_s": built_s - started_s, "run_s": process_time() - built_s}))


if __name__ == "__main__":
    main()
