"""moesim: which configuration should I run, how fast will it be, and why?

A module imports only what stands above it in this list, which is also the reading order.

    answers
    errors        MoesimError: what, which value, what to do
    units         seconds("25us"), bytes_per_s("450GB/s"); text for people
    cost          Cost: seconds with a band, a bound and a basis
    model         what is computed: layers, parameters, FLOPs, bytes; presets; Hugging Face configs
    cluster       what it runs on: Gpu, Link, Fabric, Cluster and its graph; presets
    workload      what arrives: a training step, a prefill or a decode batch
    profile       measured seconds by shape: find, load, predict with a band, refuse to extrapolate
    compute       seconds of GEMMs, attention and expert layers on one GPU
    network       what every link carries, who waits for whom: busiest link, max-min fair flows
    collectives   seconds of all-reduce, all-gather, reduce-scatter, point to point
    alltoall      where the all-to-all cost comes from: bytes[src, dst] and each algorithm's links
    routing       who goes where: tokens[draw, source rank, expert]
    placement     which rank holds which expert
    schedule      the order of micro-batches on pipeline stages
    recompute     what a layer keeps for its backward pass, and what it computes again
    strategy      what is chosen: degrees, micro-batches, overlap, algorithms; why_not()
    stages        which layers each pipeline stage holds
    kv_slices     keys and values that context parallelism brings together
    memory        bytes per GPU
    program       ops on streams: what overlaps with what in one layer pass
    timeline      Span records, frames, Chrome trace
    player        play a program: bound, batched list, SimPy events
    step          one strategy priced and played: layer passes inside the pipeline
    metrics       tokens/s, MFU, exposed communication, imbalance, cost
    goodput       useful over wall time: barriers, stragglers, failures, checkpoints
    adaptive      an expert layer by its load: the best r, chunks and all-to-all of each capacity bucket
    tiers         experts in CPU memory and on SSD: what fits, what a layer hides of its fetching
    elastic       tasks of unequal batches: a step waits for the slowest
    planner       candidates, why_not, bound, play the best, rank; why the first is first
    report        the recommendation in words
    plots         timeline, candidates, breakdown, topology
    costs         one operation priced by name, or a table of them
    kernels       the Triton kernels of an expert layer, in the folder kernels/
    calibrate     measure this machine into a profile; alone imports torch, triton and the kernels
    validate      predicted against measured
    api           the commands as Python functions: plan(), simulate()
    cli           one module per command; the files that they leave
"""

__version__ = "0.1.0"
__all__ = ["__version__", "plan", "scenario", "simulate"]


def __getattr__(name: str) -> object:
    """``moesim.plan`` and its like, imported when first asked for: ``import moesim`` stays light."""
    if name in __all__:
        from moesim import api

        return getattr(api, name)
    raise AttributeError(f"module 'moesim' has no attribute {name!r}")
