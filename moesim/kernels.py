"""The Triton kernels: ``moesim.kernels.router`` is ``kernels/router.py`` of a checkout.

They live in the folder ``kernels/`` at the top of the repository; a wheel carries that folder as
``moesim/kernels/`` in place of this file. torch and triton are imported by them alone, and by calibration.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


__path__ = [str(Path(__file__).resolve().parent.parent / "kernels")]
