"""Measured seconds by shape: find, load, predict with a band.

table    the CSV of one operation, read and checked
load     which tables price a GPU; carried over from the nearest measured GPU where it has none
fitting  measured / roofline as a smooth function of the shape, with its own uncertainty
"""

from moesim.profile.fitting import Fit, fit
from moesim.profile.load import DataSheet, Measured, Profile, Sheet, load_profile, profiles_folder
from moesim.profile.table import Table, read_table

__all__ = [
    "DataSheet", "Fit", "Measured", "Profile", "Sheet", "Table", "fit", "load_profile", "profiles_folder",
    "read_table",
]  # fmt: skip
