"""What can be asked of a calibration, and what is refused before anything is measured. No GPU is needed."""

import importlib.util
import re

import pytest
import torch

from moesim.calibrate import machine, main, options
from moesim.cli import main as moesim

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def hide(monkeypatch, package):
    """As if it were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == package else find_spec(name))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            [], "no CUDA GPU found: run this on the machine to calibrate, or add --device cpu to measure this CPU",
            marks=no_gpu,
        ),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--fast"], "unrecognized arguments: --fast (see: python -m moesim.calibrate --help)"),
        (["--device", "cpu", "--only", "gems"], "unknown --only 'gems': did you mean gemm?"),
        *(
            (["--device", "cpu", "--budget", budget], f"--budget {budget}: give seconds above zero, for example 300")
            for budget in ("0", "-3", "nan", "inf", "x", "")
        ),
        *(
            (["--device", "cpu", "--seed", seed], f"--seed {seed}: give a whole number, 0 or more")
            for seed in ("-1", "x", "1.5", "9" * 30)
        ),
        (["--device", "cpu", "--name", "--"], "argument --name: expected one argument"),
        *(
            (["--device", "cpu", "--name", name], "give at most 100 characters with a letter a-z or a digit and no")
            for name in ("", "...", "日本", "a/b", "..\\b", "a\nb", "x" * 101)
        ),
        (["--device", "cpu", "--out", ""], "--out '': give a folder"),
        (["--device", "cpu", "--out", "/dev/null/x"], "choose a folder that can be written"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moesim: ")
    assert said in err
    assert err.count("\n") == 1


def test_without_torch_the_refusal_says_what_to_install(monkeypatch, tmp_path, capsys):
    hide(monkeypatch, "torch")
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "torch is not installed: pip install 'moesim[calibrate]'" in capsys.readouterr().err


def test_without_triton_a_gpu_is_refused(monkeypatch, capsys):
    hide(monkeypatch, "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("moesim: triton is not installed: pip install 'moesim[calibrate]'")


def test_the_options_are_frozen_and_moesim_calibrate_has_them_too(capsys):
    assert moesim(["calibrate", "--help"]) == 0
    text = capsys.readouterr().out
    assert set(re.findall(r"--[a-z]+", text.partition("options:")[2])) >= {"--out", "--device"}
    flags = {flag for action in options.parser("x")._actions for flag in action.option_strings if len(flag) > 2}
    assert flags == {
        "--help", "--out", "--device", "--quick", "--budget", "--only", "--seed", "--name", "--list", "--json",
    }  # fmt: skip


@no_gpu
def test_moesim_calibrate_refuses_as_the_module_does(capsys):
    assert moesim(["calibrate", "--quick"]) == 2
    assert "no CUDA GPU found" in capsys.readouterr().err
