"""torchrun's command line without torch: compared with torch's own parser, option by option and at random."""

from argparse import Action

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser

from launch.argv import UsageError
from launch.torchrun_argv import OUR_SWITCHES, OURS_TAKE_A_VALUE, SWITCHES, TAKE_A_VALUE, split

VALUES = {"nproc-per-node": "2", "nnodes": "1:2", "max-restarts": "3", "monitor-interval": "0.5", "node-rank": "1"}
VALUES |= {"master-port": "4000", "start-method": "fork", "numa-binding": "node", "shutdown-timeout": "9"}
NOT_OURS = {"print-completion"}
"""Completes the word torchrun in a shell."""


def actions() -> dict[str, Action]:
    """torch's options, by the names that ours have."""
    found = {each.dest.replace("_", "-"): each for each in get_args_parser()._actions if each.option_strings}
    return {name: action for name, action in found.items() if name not in NOT_OURS}


def test_the_table_is_torchs_own_parser() -> None:
    assert {name for name, action in actions().items() if action.nargs != 0} == set(TAKE_A_VALUE)
    assert {name for name, action in actions().items() if action.nargs == 0} == set(SWITCHES)
    assert not set(actions()) & {*OURS_TAKE_A_VALUE, *OUR_SWITCHES}


@pytest.mark.parametrize("name", [*TAKE_A_VALUE, *SWITCHES])
def test_each_spelling_means_what_it_means_to_torch(name: str) -> None:
    for word in actions()[name].option_strings:
        if name in TAKE_A_VALUE:
            value = VALUES.get(name, "x")
            glued = [f"{word}={value}"] if word.startswith("--") else [word + value]
            for words in ([word, value], glued):
                line = split([*words, "s.py", "--n", "10"])
                assert (line.torchrun, line.given, line.script) == (tuple(words), {name: value}, "s.py")
        else:
            line = split([word, "s.py", "--n", "10"])
            assert (line.torchrun, line.given, line.script) == ((word,), {name: "1"}, "s.py")
            if word.startswith("--"):
                with pytest.raises(UsageError, match=f"expected {word} without a value, got {word}=1"):
                    split([f"{word}=1", "s.py"])
        assert line.arguments == ("--n", "10")


def spelled(name: str) -> st.SearchStrategy[list[str]]:
    words = actions()[name].option_strings
    if name in SWITCHES:
        return st.sampled_from([[word] for word in words])
    value = VALUES.get(name, "x")
    return st.sampled_from([pair for word in words if word[1] == "-" for pair in ([word, value], [f"{word}={value}"])])


OPTIONS = st.lists(st.sampled_from([*TAKE_A_VALUE, *(name for name in SWITCHES if name != "help")]).flatmap(spelled))
HARMLESS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8).filter(lambda word: not word.startswith("-"))


@given(OPTIONS, st.lists(HARMLESS, max_size=4))
def test_torchs_parser_reads_the_parts_as_it_reads_the_whole(options: list[list[str]], arguments: list[str]) -> None:
    argv = [*(word for words in options for word in words), "s.py", *arguments]
    parser = get_args_parser()
    assert vars(parser.parse_args(split(argv).argv())) == vars(parser.parse_args(argv))


@given(OPTIONS, st.lists(st.sampled_from(["--n", "10", "--", "-m", "", "--nproc_per_node=7", "--help", "-j2", "ü x"])))
def test_all_behind_the_script_is_the_scripts(options: list[list[str]], arguments: list[str]) -> None:
    line = split([*(word for words in options for word in words), "s.py", *arguments])
    assert line.arguments == tuple(arguments)
    parsed = get_args_parser().parse_args(line.argv())
    assert (parsed.training_script, parsed.training_script_args) == ("s.py", arguments)


def test_prefixes_are_torchs_where_they_are_its() -> None:
    assert split(["--nno", "2", "s.py"]).given == {"nnodes": "2"}
    assert split(["--run-", "s.py"]).given == {"run-path": "1"}  # --run-dir is ours, and must be written out
    assert split(["--he", "s.py"]).given == {"help": "1"}
    with pytest.raises(UsageError, match="expected one of --nnodes, --nproc-per-node, "):
        split(["--n", "2", "s.py"])
    with pytest.raises(UsageError, match="expected an option of torchrun, got --hang"):
        split(["--hang", "2", "s.py"])


def test_ours_are_kept_away_from_torchs_parser() -> None:
    line = split(["--plain", "--run_dir=r", "--tee", "3", "--hang-timeout", "5", "--", "s.py", "--plain"])
    assert line.argv() == ["--tee", "3", "--", "s.py", "--plain"]
    assert line.ours == {"plain": "1", "run-dir": "r", "hang-timeout": "5"}


@pytest.mark.parametrize("words", [["-j", "2x4"], ["-j2x4"], ["-j=2x4"], ["--topology", "2x4"], ["--topology=2x4"]])
def test_a_topology_in_a_word(words: list[str]) -> None:
    line = split([*words, "s.py"])
    parsed = get_args_parser().parse_args(line.argv())
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.training_script) == ("2", "4", "s.py")
    assert line.given == {"nnodes": "2", "nproc-per-node": "4"}
    one = get_args_parser().parse_args(split(["-j", "3", "s.py"]).argv())
    assert (one.nnodes, one.nproc_per_node) == ("1", "3")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "expected a script after the options, got none"),
        (["--tee"], "expected a value after --tee, got nothing"),
        (["--nprocs", "2", "s.py"], "expected an option of torchrun, got --nprocs; options of the script go behind"),
        (["-x", "s.py"], "expected an option of torchrun, got -x"),
        (["-j", "2x", "s.py"], "expected -j as NODESxRANKS, such as 2x4, got '2x'"),
        (["-j", "x4", "s.py"], "expected -j as NODESxRANKS, such as 2x4, got 'x4'"),
        (["-j", "0", "s.py"], "expected -j as NODESxRANKS, such as 2x4, got '0'"),
        (["-j", "2", "--nnodes", "2", "s.py"], "expected -j 2 or --nnodes and --nproc-per-node, got both"),
        (["--plain=yes", "s.py"], "expected --plain without a value, got --plain=yes"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        split(words)
    assert str(error.value).startswith(complaint)
