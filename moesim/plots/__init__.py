"""Pictures of an answer. A plot takes a frame and an Axes, draws, and returns the Axes.

    style.py       colours by family, figure(), save(), save_table()
    axis_break.py  the middle of a long step left out
    timeline.py    timeline() of a step, layer_timeline() of one layer pass
    candidates.py  candidates(): every priced strategy, the played ones, the winner
    breakdown.py   breakdown(): where the seconds of a step go
    accuracy.py    accuracy() of one group of judged figures, accuracy_panels() of all
    roofline.py    roofline(): measured kernels under the data sheet's roof
    topology.py    topology(): the cluster's links, with the load on each
    places.py      where the things of a topology stand
    policy.py      policy(): an expert layer over its load
    link_loads.py  edge_loads(): what a traffic loads on them

matplotlib is imported here and nowhere else.
"""

from moesim.plots.accuracy import accuracy, accuracy_panels
from moesim.plots.breakdown import breakdown
from moesim.plots.candidates import candidates
from moesim.plots.link_loads import edge_loads
from moesim.plots.policy import policy
from moesim.plots.roofline import roofline
from moesim.plots.style import COLOURS, figure, save, save_table
from moesim.plots.timeline import layer_timeline, timeline
from moesim.plots.topology import topology

__all__ = [
    "COLOURS",
    "accuracy",
    "accuracy_panels",
    "breakdown",
    "candidates",
    "edge_loads",
    "figure",
    "layer_timeline",
    "policy",
    "roofline",
    "save",
    "save_table",
    "timeline",
    "topology",
]
