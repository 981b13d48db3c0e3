"""What ``validate --out`` leaves behind: tables and pictures, each written whole or not at all."""

from pathlib import Path

from moesim.cli.files import folder
from moesim.plots import accuracy_panels, figure, roofline, save, save_table
from moesim.profile import load_profile, measured_gpus
from moesim.validate import Validation
from moesim.validate.roofline import roofline_points
from moesim.validate.summary import VERDICT


def write_validation(found: Validation, out: Path) -> None:
    """summary.csv; for each part its figures and a plot of them; for each GPU with kernels a roofline."""
    folder(out)
    rows = found.to_frame()
    save_table(found.summary(), out / "summary.csv")
    for part, members in rows.groupby("part", sort=False):
        save_table(members, out / f"{part}.csv")
        drawable = (members["skipped"] == "") & (members["unit"] != VERDICT)  # a verdict has no size
        save(accuracy_panels(members[drawable]), out / f"{part}.png")
    if "kernels" in set(rows["part"]):
        for gpu in {one.name: one for one in measured_gpus()}.values():
            points = roofline_points(load_profile(gpu))
            drawn, ax = figure(9.0, 6.0)
            roofline(points, ax, flops_per_s=gpu.flops, bytes_per_s=gpu.memory_bytes_per_s)
            drawn.suptitle(f"{gpu.name}: balanced loads, {len(points):,} points", fontsize=10)
            path = out / f"roofline-{gpu.name.lower().replace(' ', '-')}.png"
            save(drawn, path)
            save_table(points, path)
