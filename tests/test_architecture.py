"""The docstring of moesim/__init__.py is the reading order; these tests keep it true."""

import ast
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import moesim

ROOT = Path(moesim.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MOST_LINES = 300
HEAVY = ("numpy", "pandas", "matplotlib", "networkx", "simpy", "pydantic", "yaml", "rich")
OTHERS = ("torch", "triton", "kernels", "studies", "tests")
GPU = ("torch", "triton", "moesim.kernels")  # calibrate's alone
# Where calibrate may write to the user: its entry point, and one file.
TALKING = ("calibrate/__main__.py", "calibrate/progress.py", "calibrate/report.py")
NOT_WITH_TORCH_ALONE = (*HEAVY[1:], "click")  # python -m moesim.calibrate: standard library, numpy, torch, triton
ENTRY = ("", "__main__")  # moesim/__init__.py and moesim/__main__.py are no rooms


class Import(NamedTuple):
    """An import statement somewhere in a file, inside functions too."""

    path: Path
    line: int
    module: str

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT.parent)}:{self.line}"


def listed():
    """Rooms in the order of the docstring: the lines of its table."""
    return [m[1] for m in re.finditer(r"^ {4}(\w+) {2,}\S", moesim.__doc__, re.M)]


def room(path):
    """The first part of a file's path inside moesim: ``model`` for moesim/model/hf.py."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def rooms():
    return {room(path) for path in FILES}


def imports(path):
    """All imports of a file; a relative one keeps its dots, so that nothing hides behind it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found = [f"moesim.{alias.name}" for alias in node.names] if base == "moesim" else [base]
        else:
            continue
        yield from (Import(path, node.lineno, module) for module in found)


def upwards(one, order):
    """Whether an import of moesim stays in its room or goes to one that is listed before."""
    top, _, rest = one.module.partition(".")
    target = rest.partition(".")[0]
    if top != "moesim" or target not in order:  # another package, or a constant of moesim/__init__.py
        return True
    return order.index(target) <= order.index(room(one.path))


def test_the_reading_order_lists_every_room_once():
    assert sorted(listed()) == sorted(rooms() - set(ENTRY))


def test_each_room_imports_only_rooms_above_it():
    order = listed()
    wrong = [
        f"{one.where} imports {one.module}"
        for path in FILES
        if room(path) in order
        for one in imports(path)
        if not upwards(one, order)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "module", "fine"),
    [
        ("planner/plan.py", "moesim.cost", True),
        ("planner/plan.py", "moesim.planner.why", True),
        ("planner/plan.py", "moesim.report", False),
        ("model/hf.py", "moesim.cluster", False),
        ("cost.py", "moesim.costs", False),
        ("errors.py", "moesim.__version__", True),
        ("errors.py", "click", True),
    ],
)
def test_an_import_downwards_would_be_noticed(file, module, fine):
    assert upwards(Import(ROOT / file, 1, module), listed()) is fine


def test_an_import_inside_a_function_is_seen(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("def f():\n    from moesim import report\n    import torch.nn\n")
    assert [(one.line, one.module) for one in imports(path)] == [(2, "moesim.report"), (3, "torch.nn")]


def test_the_package_root_imports_nothing_until_it_is_asked():
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    own = [one for one in body if isinstance(one, ast.ImportFrom | ast.Import)]
    assert [one.lineno for one in own if getattr(one, "module", "") not in ("typing", "importlib")] == []


def for_gpus(one):
    """Whether an import is one of torch, triton or moesim.kernels."""
    return any(one.module == name or one.module.startswith(f"{name}.") for name in GPU)


def test_nothing_imports_kernels_studies_tests_or_gpu_libraries_or_by_relative_path():
    wrong = [
        one.where
        for path in FILES
        for one in imports(path)
        if (one.module.partition(".")[0] in OTHERS and not (room(path) == "calibrate" and for_gpus(one)))
        or one.module.startswith(".")
    ]
    assert wrong == []


def test_only_calibrate_imports_the_kernels():
    wrong = [one.where for path in FILES if room(path) != "calibrate" for one in imports(path) if for_gpus(one)]
    assert wrong == []


def test_calibrate_imports_nothing_that_torch_triton_and_numpy_do_not_bring():
    wrong = [
        one.where
        for path in FILES
        if room(path) == "calibrate"
        for one in imports(path)
        if one.module.partition(".")[0] in NOT_WITH_TORCH_ALONE
    ]
    assert wrong == []


def test_no_file_is_longer_than_can_be_read_at_once():
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def test_only_the_command_line_talks():
    """No print, no click and no standard streams below cli; workers and plots return values."""
    wrong = []
    for path in FILES:
        if room(path) in ("cli", *ENTRY) or path.relative_to(ROOT).as_posix() in TALKING:
            continue
        wrong += [one.where for one in imports(path) if one.module.partition(".")[0] in ("click", "rich", "logging")]
        for node in ast.walk(ast.parse(path.read_text())):
            said = isinstance(node, ast.Name) and node.id == "print"
            stream = isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "exit")
            if said or stream:
                wrong.append(f"{path.name}:{node.lineno}")
    assert wrong == []


def loaded(code):
    """The modules that a fresh Python holds after ``code``, without the output of the code."""
    tail = "\nimport json, sys\nsys.stdout.write('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import moesim", "from moesim.cli import main; main(['--help'])"])
def test_starting_moesim_loads_nothing_heavy(code):
    found = loaded(code)
    assert "moesim" in found
    assert found.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "options", ["'--help'", "'--only', 'nothing'", "'--device', 'cpu', '--list', '--out', '/nonexistent'"]
)
def test_calibrate_refuses_explains_and_lists_without_torch(options):
    found = loaded(f"from moesim.calibrate import main; main([{options}])")
    assert found.isdisjoint((*NOT_WITH_TORCH_ALONE, "torch", "triton"))


def test_help_takes_less_than_half_a_second_of_cpu():
    spent = []
    for _ in range(3):  # the least: others use this machine too
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "moesim", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5
