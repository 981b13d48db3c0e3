"""``moesim cost OP --from FILE.csv``: a table of cases comes back with its answers, whole or not at all."""

import csv
import io
import json

import pytest

from moesim.alltoall import ALGORITHMS
from moesim.cli import main
from moesim.costs.table import ANSWERS

EXPERTS = """case,gpu,hidden,ffn,dtype,tokens_per_expert,tokens_global,experts,top_k,ep,load
a,H200,4096,14336,bf16,120;3;0,,,,,
b,H100,7168,2048,fp8_block,,4096,256,8,8,power-law:1.2
c,H200,4096,14336,,1000,,,,,
a again,H200,4096,14336,bf16,120;3;0,,,,,
"""
GEMM = "m,n,k\n64,4096,4096\n128,4096,4096\n"


@pytest.fixture
def table(tmp_path):
    """Writes a table and gives its path."""

    def write(text, name="cases.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def price(capsys):
    """What stdout says after pricing a table."""

    def run(name, path, *more):
        assert main(["cost", name, "--from", str(path), *more]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refuse(capsys):
    """The line of a refusal, and nothing on stdout."""

    def run(name, path, *more):
        code = main(["cost", name, "--from", str(path), *more])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        return captured.err.strip()

    return run


def rows(text):
    """Rows of a CSV text as dicts."""
    return list(csv.DictReader(io.StringIO(text)))


def alone(capsys, line):
    """The answer of one call."""
    assert main(["cost", *line.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_row_comes_back_with_its_answer(table, price):
    found = rows(price("expert-ffn", table(EXPERTS)))
    assert [row["case"] for row in found] == ["a", "b", "c", "a again"]
    assert list(found[0]) == [*EXPERTS.splitlines()[0].split(","), *ANSWERS]
    assert found[0]["tokens_per_expert"] == "120;3;0"
    assert all(0 < float(row["low"]) <= float(row["seconds"]) <= float(row["high"]) for row in found)
    assert found[0]["seconds"] == found[3]["seconds"] != found[2]["seconds"]


def test_a_row_is_priced_as_the_call_with_its_options(table, price, capsys):
    first, second, third, _ = rows(price("expert-ffn", table(EXPERTS)))
    single = "expert-ffn --gpu H200 --hidden 4096 --ffn 14336 --tokens-per-expert"
    assert float(first["seconds"]) == alone(capsys, f"{single} 120,3,0")["seconds"]
    assert float(third["bound_s"]) == alone(capsys, f"{single} 1000")["bound_s"]
    group = (
        "expert-ffn --gpu h100 --hidden 7168 --ffn 2048 --dtype fp8_block --tokens-global 4096 "
        "--experts 256 --top-k 8 --ep 8 --load power-law:1.2"
    )
    found = alone(capsys, group)
    assert float(second["seconds"]) == found["seconds"]
    assert float(second["published"]) == found["basis"]["published"]
    assert second["source"] == found["source"]


def test_options_fill_missing_columns_and_empty_cells(table, price):
    path = table("m,n,k,dtype\n64,4096,4096,fp8_block\n64,4096,4096,\n")
    own, filled = rows(price("gemm", path, "--gpu", "H100", "--dtype", "fp8"))
    assert "fp8_block" in own["source"]
    assert own["seconds"] != filled["seconds"]
    assert own["seconds"] == rows(price("gemm", path, "--gpu", "H100"))[0]["seconds"]


def test_json_gives_one_list_with_the_cells(table, price):
    found = json.loads(price("gemm", table(GEMM), "--gpu", "A100", "--json"))
    assert [row["row"] for row in found] == [1, 2]
    assert found[0]["columns"] == {"m": "64", "n": "4096", "k": "4096"}
    assert found[1]["inputs"]["m"] == 128
    assert found[0]["op"] == "gemm"


def test_a_file_is_written_whole(table, price, tmp_path):
    out = tmp_path / "priced.csv"
    assert "2 rows" in price("gemm", table(GEMM), "--gpu", "A100", "--out", str(out))
    text = out.read_text(encoding="utf-8")
    assert text == price("gemm", tmp_path / "cases.csv", "--gpu", "A100")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["cases.csv", "priced.csv"]


def test_a_bad_row_leaves_the_old_file_alone(table, refuse, tmp_path):
    out = tmp_path / "priced.csv"
    out.write_text("old", encoding="utf-8")
    text = refuse("gemm", table(GEMM + "x,1,1\n"), "--gpu", "A100", "--out", str(out))
    assert "row 3: m 'x'" in text
    assert out.read_text(encoding="utf-8") == "old"


def test_all_to_all_says_which_algorithm_was_best(table, price):
    header = "cluster,nodes,tokens_per_rank,hidden,top_k,experts,algorithm\n"
    path = table(header + "dgx-h100,2,512,4096,2,16,best\ndgx-h100,2,512,4096,2,16,2dh\n")
    best, asked = rows(price("all-to-all", path))
    assert best["algorithm"] == "best"
    assert best["chosen_algorithm"] in ALGORITHMS
    assert asked["chosen_algorithm"] == "2dh"
    assert float(best["seconds"]) <= float(asked["seconds"])


def test_collectives_read_sizes_with_units_and_sends_their_flag(table, price):
    first, second = rows(price("all-reduce", table("cluster,bytes\ndgx-h100,1MiB\ndgx-h100,1048576\n")))
    assert first["seconds"] == second["seconds"]
    inside, across = rows(price("send", table("bytes,same_node\n1MiB,true\n1MiB,no\n"), "--cluster", "dgx-h100"))
    assert float(inside["seconds"]) < float(across["seconds"])
    assert "ConnectX-7" in across["source"]


def test_a_column_named_like_an_answer_is_kept_under_another_name(table, price, refuse):
    once = price("gemm", table("m,n,k,source\n64,64,64,my lab\n"), "--gpu", "A100")
    assert rows(once)[0]["given_source"] == "my lab"
    twice = refuse("gemm", table(once), "--gpu", "A100")
    assert "'source' and 'given_source'" in twice


def test_other_columns_pass_through_unchanged(table, price):
    found = rows(price("gemm", table('note,m,n,k\n"a, b",64,64,64\n'), "--gpu", "A100"))
    assert found[0]["note"] == "a, b"


def test_a_spreadsheets_mark_and_floats_of_whole_numbers_are_read(table, price):
    found = rows(price("gemm", table("\ufeffm,n,k\r\n64.0,64,64\r\n\r\n"), "--gpu", "A100"))
    assert len(found) == 1
    assert found[0]["m"] == "64.0"


def test_two_thousand_repeated_rows_share_their_price(table, price):
    found = rows(price("gemm", table("m,n,k\n" + "64,4096,4096\n32,4096,4096\n" * 1000), "--gpu", "H200"))
    assert len(found) == 2000
    assert len({row["seconds"] for row in found}) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m,n,k\n", ["has no rows"]),
        ("m,n,k\n1,2\n", ["row 1 (line 2)", "2 cells, not 3"]),
        ("m,n,k\n1,2,3\n1,-2,3\n", ["row 2", "n '-2'", "at least 1"]),
        ("m,n,k\n1,2,3\n1,,3\n", ["row 2", "n not given"]),
        ("m,n\n1,2\n", ["row 1", "k not given", "--k"]),
        ("m,n,k,dtype\n1,2,3,fp64\n", ["row 1", "dtype", "fp64"]),
        ("m,n,k,dtpye\n1,2,3,bf16\n", ["column 'dtpye'", "'dtype'"]),
        ("M,n,k\n1,2,3\n", ["column 'M'", "'m'"]),
        ("m,m,n,k\n1,1,2,3\n", ["column 'm' twice"]),
        ("m,n,k\n1,2,3\n1e11,2,3\n", ["row 2", "gemm m", "far outside"]),
    ],
)
def test_a_bad_table_names_row_column_and_value(text, words, table, refuse):
    line = refuse("gemm", table(text), "--gpu", "H200")
    assert line.startswith("moesim: ")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_list_with_commas_is_told_about_semicolons(table, refuse):
    text = "gpu,hidden,ffn,tokens_per_expert\nH200,4096,14336,120,3,0\n"
    assert "by ;" in refuse("expert-ffn", table(text))


def test_the_opposite_of_a_flag_is_no_column(table, refuse):
    assert "'same_node' with true or false" in refuse("send", table("cluster,bytes,across\ndgx-h100,1,true\n"))


def test_a_file_that_is_not_there_and_one_that_cannot_be_written(table, refuse, tmp_path):
    assert "nowhere.csv" in refuse("gemm", tmp_path / "nowhere.csv")
    out = str(tmp_path / "no" / "t.csv")
    assert "cannot write" in refuse("gemm", table(GEMM), "--gpu", "H200", "--out", out)
    assert "give one of them" in refuse("gemm", table(GEMM), "--gpu", "H200", "--out", out, "--json")
