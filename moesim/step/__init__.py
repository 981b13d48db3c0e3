"""One strategy priced and played: where the seconds of a step come from.

the question
    scenario         model, cluster, work, routing and the profile that fits
    keys             what a layer pass depends on: strategies that agree on it share its price

what an op costs
    price            Price: seconds for every draw and rank class, and what they rest on
    gemms            GEMMs and memory-bound kernels, forward and their two gradients
    sharing          collectives of tensor and context parallelism
    blocks           attention, dense and shared feed-forward parts, router, what is recomputed
    mamba            Mamba-2 layers
    ring             attention whose keys and values go around
    outer            embedding, head, the inputs of MTP modules
    experts          routed experts and their all-to-all; expert_training: what training adds
    launches         gaps between kernels, and the CPU that launches them
    contention       ops that overlap slow each other down

from ops to layers
    prices           all ops of a layer pass by the keys of its program
    passes           a layer pass: its program and its prices; pair: two of them interleaved
    layers           layer passes played

from layers to the step
    parts            passes through a part of the model
    ends             transfers between stages, weights gathered, gradients reduced, optimizer
    times, turns     seconds of every op of the pipeline, how often each runs, and the bound
    play             the pipeline played
    trace            the step as spans
    breakdown        where its time goes
"""
