"""Kernels run on the GPU where there is one, else under Triton's interpreter: decided before triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
