"""What an installed moesim holds, and that it finds its tables from any directory."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def python(installed, tmp_path_factory):
    """Run Python where the unzipped wheel is all there is of moesim, from an empty directory."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    kept = {name: value for name, value in os.environ.items() if name not in ("MOESIM_PROFILES", "PYTHONPATH")}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=elsewhere, env=kept | {"PYTHONPATH": str(installed)},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    return run


def test_only_moesim_lands_in_site_packages(installed):
    import moesim

    top = {path.name for path in installed.iterdir()}
    assert top == {"moesim", f"moesim-{moesim.__version__}.dist-info"}


def test_code_tables_licence_and_notice_are_inside(installed):
    def below(folder, pattern):
        return {str(path.relative_to(folder)) for path in folder.rglob(pattern) if "__pycache__" not in path.parts}

    inside = installed / "moesim"
    for pattern in ("*.py", "*.csv"):
        shipped = {name for name in below(inside, pattern) if not name.startswith("hardware_profiles")}
        kernels = {f"kernels/{name}" for name in below(ROOT / "kernels", pattern)}  # in place of the file kernels.py
        assert shipped == below(ROOT / "moesim", pattern) - {"kernels.py"} | kernels
    for pattern in ("*.csv", "*.json"):
        assert below(inside / "hardware_profiles", pattern) == below(ROOT / "hardware_profiles", pattern)
    licences = {path.name for path in installed.glob("*.dist-info/licenses/*")}
    assert licences == {"LICENSE", "NOTICE"}


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < MOST_BYTES


def test_an_installed_moesim_finds_its_own_tables_from_any_directory(installed, python):
    code = (
        "from moesim.cluster import GPUS; from moesim.profile import load_profile; "
        "profile = load_profile(GPUS['H200']); "
        "print(profile.folders[-1]); print(profile.tables['expert_ffn'][0].table.rows)"
    )
    folder, rows = python("-c", code).splitlines()
    assert Path(folder) == installed / "moesim" / "hardware_profiles"
    assert int(rows) > 1000


def test_the_command_line_of_an_installed_moesim_lists_profiles_and_routing(python):
    profiles = json.loads(python("-m", "moesim", "list", "profiles", "--json"))
    assert {"A100", "H100", "H200"} <= {row["from"] for row in profiles}
    code = "from moesim.routing import parse_routing; print(parse_routing('gpt-oss-20b-mmlu').load.shape)"
    assert python("-c", code) == "(24, 32)\n"


def test_an_installed_moesim_plans(python):
    document = json.loads(
        python("-m", "moesim", "plan", "olmoe-1b-7b", "-c", "dgx-h200", "-w", "decode", "--top", "1", "--json")
    )
    assert document["configurations"][0]["rank"] == 1


# What a machine with only torch, triton and numpy lacks.
BLOCKED = "pandas simpy pydantic click rich yaml networkx matplotlib"
WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys({blocked!r}.split())); "
    "from moesim.calibrate import main; sys.exit(main(sys.argv[1:]))"
)


def test_calibration_needs_only_torch_triton_and_numpy(python, tmp_path):
    blocked = WITHOUT.format(blocked=BLOCKED)
    assert "--budget SECONDS" in python("-c", blocked, "--help")
    arguments = ("--device", "cpu", "--quick", "--only", "launch,kernels", "--json")
    document = json.loads(python("-c", blocked, *arguments, "--out", str(tmp_path)))
    assert document["left"] == document["skipped"] == 0
    assert document["measured"] == 2 + 3 + 6
    tables = json.loads((Path(document["folder"]) / "meta.json").read_text())["tables"]
    assert set(tables) == {"launch", "kernels"}
    assert "--device {cuda,cpu}" in python("-m", "moesim.calibrate", "--help")
