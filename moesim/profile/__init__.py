"""Measured seconds by shape: find, load, predict with a band.

folders  where profiles lie
table    the CSV of one operation, read and checked
load     which tables price a GPU; carried over from the nearest measured GPU where it has none
fitting  measured / roofline as a smooth function of the shape, with its own uncertainty
sustained  what a training step's clocks leave of the tables' speed
"""

from moesim.profile.fitting import Fit, fit, non_negative
from moesim.profile.folders import own_table, profile_folders, profile_homes, shipped_folder, slug
from moesim.profile.load import DataSheet, Measured, Profile, Sheet, load_profile, measured_gpus
from moesim.profile.sustained import sustained_share
from moesim.profile.table import Table, read_table

__all__ = [
    "DataSheet", "Fit", "Measured", "Profile", "Sheet", "Table", "fit", "load_profile", "measured_gpus",
    "non_negative", "own_table", "profile_folders", "profile_homes", "read_table", "shipped_folder", "slug",
    "sustained_share",
]  # fmt: skip
