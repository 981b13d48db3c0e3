"""Where profiles lie: the user's own folders first, then the one that ships with moesim.

    MOESIM_PROFILES (folders, split by ":")  >  the checkout's hardware_profiles/  >  the copy inside the wheel

Each folder holds one folder per profile: ``<name>/meta.json`` and its tables.
"""

import os
import re
from functools import lru_cache
from pathlib import Path

from moesim.cluster import PROFILES_VARIABLE
from moesim.errors import MoesimError


def profile_folders() -> tuple[Path, ...]:
    """Every folder that is searched, the user's before the shipped one."""
    stated = os.environ.get(PROFILES_VARIABLE, "")
    return (*_stated(stated), shipped_folder())


def profile_homes(folders: tuple[Path, ...]) -> list[Path]:
    """The folder of each profile: its name by its name, folder by folder."""
    return [meta.parent for folder in folders for meta in sorted(folder.glob("*/meta.json"))]


def own_table(gpu: str, table: str) -> Path | None:
    """A table that the user measured on this GPU: the first in the user's own folders."""
    places = (folder / slug(gpu) / f"{table}.csv" for folder in profile_folders()[:-1])
    return next((path for path in places if path.is_file()), None)


def slug(gpu: str) -> str:
    """The folder of a GPU's profile: ``CPU EPYC 7B13`` -> ``cpu-epyc-7b13``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


@lru_cache(maxsize=1)
def shipped_folder() -> Path:
    """The profiles that ship with moesim."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "hardware_profiles", package / "hardware_profiles"):
        if folder.is_dir() and any(folder.glob("*/meta.json")):
            return folder
    raise MoesimError(f"no hardware_profiles beside or inside {package}: reinstall moesim")


@lru_cache(maxsize=16)
def _stated(variable: str) -> tuple[Path, ...]:
    folders = tuple(Path(part) for part in variable.split(os.pathsep) if part)
    for folder in folders:
        if not folder.is_dir():
            raise MoesimError(f"{PROFILES_VARIABLE}: {folder} is not a folder; name one that moesim calibrate wrote")
        if not any(folder.glob("*/*.csv")):
            raise MoesimError(
                f"{PROFILES_VARIABLE}: {folder} has no <name>/<table>.csv; name one that moesim calibrate wrote"
            )
    return folders
