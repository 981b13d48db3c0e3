"""Which parallelism, chunks and all-to-all an expert layer should use at each load (Tutel, arXiv:2206.03382).

    load (capacity factor)  --bucket = floor(capacity / 128)-->  (r, chunks, all-to-all)

The needed capacity changes by up to 4 x within one training run (Tutel, fig. 1), and with it the best way to run the
layer. Parameters and tokens keep one layout for every way, so switching costs nothing; what is left is to look the
way up. The regret of a static choice is the time it loses against the table.

volume    Table 4: what each way sends, in closed form
layer     MoeLayer, Way: one expert layer, and a way to run it
price     seconds of a way at every load: forward and backward played
table     Policy: the best way of each bucket, the regret of the others
"""

from moesim.adaptive.layer import CHUNKS, MoeLayer, Way, layer_of, possible, why_not
from moesim.adaptive.price import capacities, load_prices
from moesim.adaptive.table import BUCKET, Policy, best_ways

__all__ = [
    "BUCKET", "CHUNKS", "MoeLayer", "Policy", "Way", "best_ways", "capacities", "layer_of", "load_prices", "possible",
    "why_not",
]  # fmt: skip
