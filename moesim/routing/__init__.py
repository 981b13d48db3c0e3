"""Who goes where: from a popularity of experts to tokens[draw, source rank, expert].

    parse_routing("lognormal:1")  -> Routing
    popularity(routing, ...)      -> share of the token copies that each expert gets, per layer
    draw_tokens(popularity, ...)  -> tokens[draw, source rank, expert], top-k without replacement
    dispatch(tokens, ...)         -> what is kept, dropped and padded under a capacity

presets     the named routings, and what people type
files       reading a user's histogram, trace or engine counters
gate        drawing tokens
capacity    dropping and padding
"""

from moesim.routing.capacity import Dispatch, dispatch, imbalance
from moesim.routing.gate import draw_tokens, inclusion
from moesim.routing.presets import ROUTINGS, Routing, parse_routing, popularity

__all__ = [
    "ROUTINGS",
    "Dispatch",
    "Routing",
    "dispatch",
    "draw_tokens",
    "imbalance",
    "inclusion",
    "parse_routing",
    "popularity",
]
