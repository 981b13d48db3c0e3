"""Measure this machine: every kernel over tokens, shapes and loads, into a profile that moesim plans with.

    machine --which points--> left --measure, one by one--> .partial/ --at the end--> <slug>/*.csv, meta.json

command       the order of things, exit codes; ``python -m moesim.calibrate`` needs only torch, triton and numpy
options       what can be asked, and refused at once        report                 counts, the last lines
lock          one run at a time in one folder
points        Point, the columns of every table, the order        grid_gpu, grid_cpu   which points
shapes        the layers that are measured                        loads                who gets the tokens
machine       name, data sheet, libraries, clocks                 store                files that survive kill -9
run           the loop                                            progress             what a person sees
bench         the device, its timer, shared tensors               timing               seconds of a call
expert_ffn, kernels, gemm, attention, copies, launch, interference, collectives, peaks
              one file per table: ``measure(bench, point)`` gives the row's found columns
case          tokens, choices and weights of one expert layer     torch_layer          that layer in plain torch
workers       processes that exchange bytes                       meta                 meta.json and cluster.yaml
live, live_ranks   a real MoE layer on shapes that are not calibrated
"""

from moesim.calibrate.command import main

__all__ = ["main"]
