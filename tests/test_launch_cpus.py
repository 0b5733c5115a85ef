"""Which CPUs each rank gets, on machines made of files and on this one."""

import os
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cpus import compact, gpu_bus_ids, parsed, plan

Nodes = Sequence[Sequence[Sequence[int]]]
"""CPUs of each core of each NUMA node."""


def machine(root: Path, nodes: Nodes, online: str | None = None, gpus: dict[str, int] | None = None) -> Path:
    """A tree as /sys has it."""
    for number, cores in enumerate(nodes):
        write(root / f"devices/system/node/node{number}/cpulist", compact([cpu for core in cores for cpu in core]))
        for core in cores:
            for cpu in core:
                write(root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", compact(core))
    write(root / "devices/system/cpu/online", online or compact(everything(nodes)))
    for bus_id, node in (gpus or {}).items():
        write(root / "bus/pci/devices" / bus_id / "numa_node", str(node))
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def everything(nodes: Nodes) -> list[int]:
    return sorted(cpu for cores in nodes for core in cores for cpu in core)


def plain(nodes: int, cores: int, threads: int = 1) -> list[list[list[int]]]:
    """Cores numbered node by node, second threads after all first ones, as Linux does."""
    total = nodes * cores
    return [[[n * cores + c + t * total for t in range(threads)] for c in range(cores)] for n in range(nodes)]


def slices(root: Path, ranks: int, nodes: Nodes, gpus: Sequence[str | None] = ()) -> list[str]:
    return [compact(one) for one in plan(ranks, allowed=everything(nodes), root=root, gpus=gpus).slices]


def test_one_node_is_cut_into_equal_neighbourhoods(tmp_path: Path) -> None:
    nodes = plain(1, 8)
    assert slices(machine(tmp_path, nodes), 4, nodes) == ["0-1", "2-3", "4-5", "6-7"]


def test_odd_cores_differ_by_one(tmp_path: Path) -> None:
    nodes = plain(1, 7)
    assert slices(machine(tmp_path, nodes), 3, nodes) == ["0-1", "2-3", "4-6"]


def test_threads_of_a_core_stay_together_and_count_once(tmp_path: Path) -> None:
    nodes = plain(2, 4, threads=2)
    found = plan(4, allowed=everything(nodes), root=machine(tmp_path, nodes))
    assert [compact(one) for one in found.slices] == ["0-1,8-9", "2-3,10-11", "4-5,12-13", "6-7,14-15"]
    assert (found.threads, found.nodes, found.warning) == (2, ((0,), (0,), (1,), (1,)), None)


def test_ranks_sit_at_their_gpus_and_the_table_says_so(tmp_path: Path) -> None:
    nodes = plain(2, 4)
    gpus = ["0000:c1:00.0", "0000:41:00.0", "0000:01:00.0"]
    root = machine(tmp_path, nodes, gpus=dict(zip(gpus, (1, 0, 1), strict=True)))
    found = plan(3, allowed=everything(nodes), root=root, gpus=gpus)
    assert found.lines(first_rank=8) == [
        "rank 8   CPUs 4-5  node 1  GPU 0000:c1:00.0",
        "rank 9   CPUs 0-3  node 0  GPU 0000:41:00.0",
        "rank 10  CPUs 6-7  node 1  GPU 0000:01:00.0",
    ]


def test_gpus_of_no_known_place_go_where_there_is_room(tmp_path: Path) -> None:
    nodes = plain(2, 4)
    root = machine(tmp_path, nodes, gpus={"0000:01:00.0": 0, "0000:02:00.0": -1})
    assert slices(root, 3, nodes, ["0000:01:00.0", "0000:02:00.0", "0000:02:00.0"]) == ["0-1", "2-3", "4-7"]


def test_two_ranks_share_eight_nodes_as_neighbours(tmp_path: Path) -> None:
    nodes = plain(8, 2)
    assert slices(machine(tmp_path, nodes), 2, nodes) == ["0-7", "8-15"]


def test_nodes_without_a_gpu_join_a_neighbour(tmp_path: Path) -> None:
    nodes = plain(8, 2)
    gpus = [f"0000:0{number}:00.0" for number in range(4)]
    root = machine(tmp_path, nodes, gpus=dict(zip(gpus, (3, 1, 7, 5), strict=True)))
    assert slices(root, 4, nodes, gpus) == ["4-7", "0-3", "12-15", "8-11"]


def test_a_mask_with_holes_and_offline_cpus_are_kept_to(tmp_path: Path) -> None:
    nodes = plain(2, 4, threads=2)
    root = machine(tmp_path, nodes, online="0-5,7-15")
    found = plan(2, allowed=[0, 1, 3, 4, 6, 8, 15], root=root)
    assert [compact(one) for one in found.slices] == ["0-1,3,8", "4,15"]
    assert found.cores == (3, 2)


def test_a_crowded_node_does_not_make_ranks_share_while_others_idle(tmp_path: Path) -> None:
    root = machine(tmp_path, plain(2, 4), gpus={"0000:01:00.0": 0, "0000:02:00.0": 1})
    found = plan(4, allowed=[0, 1, 2, 3, 4], root=root, gpus=["0000:01:00.0", *["0000:02:00.0"] * 3])
    assert [compact(one) for one in found.slices] == ["0", "1", "2", "3-4"]


def test_fewer_cpus_than_ranks_are_shared_and_complained_of(tmp_path: Path) -> None:
    nodes = plain(1, 2)
    found = plan(4, allowed=[0, 1], root=machine(tmp_path, nodes))
    assert found.slices == ((0,), (1,), (0,), (1,))
    assert found.threads == 1
    assert found.warning is not None
    assert found.warning.startswith("2 CPUs for 4 ranks")


def test_more_threads_than_cores_get_one_each(tmp_path: Path) -> None:
    nodes = plain(1, 2, threads=2)
    found = plan(4, allowed=everything(nodes), root=machine(tmp_path, nodes))
    assert sorted(found.slices) == [(0,), (1,), (2,), (3,)]
    assert (found.threads, found.warning) == (1, None)


def test_fewer_cpus_than_asked_for_are_complained_of_with_both_numbers(tmp_path: Path) -> None:
    root = machine(tmp_path, plain(1, 8))
    warning = plan(2, allowed=[0, 1], root=root, asked=8).warning
    assert warning is not None
    assert "2 CPUs are allowed where 8 were asked for" in warning
    assert plan(2, allowed=range(8), root=root, asked=8).warning is None


def test_this_machine_gives_every_allowed_cpu_once() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    found = plan(len(allowed), allowed=allowed)
    assert sorted(cpu for one in found.slices for cpu in one) == allowed
    assert len(found.lines()) == len(allowed)


def test_no_cpu_or_no_rank_is_a_mistake() -> None:
    for ranks, allowed in ((0, [0]), (1, [])):
        with pytest.raises(ValueError, match="at least one rank and one CPU"):
            plan(ranks, allowed=allowed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 2), st.integers(1, 9), st.data())
def test_slices_are_disjoint_cover_all_and_are_equal_within_a_node(
    nodes: int, cores: int, threads: int, ranks: int, data: st.DataObject
) -> None:
    tree = plain(nodes, cores, threads)
    all_cpus = everything(tree)
    allowed = data.draw(st.lists(st.sampled_from(all_cpus), min_size=1, unique=True))
    gpus = data.draw(
        st.lists(st.sampled_from([None, *(f"0000:0{node}:00.0" for node in range(nodes))]), max_size=ranks)
    )
    places = {f"0000:0{node}:00.0": node for node in range(nodes)}
    with tempfile.TemporaryDirectory() as folder:
        root = machine(Path(folder), tree, gpus=places)
        found = plan(ranks, allowed=allowed, root=root, gpus=gpus)
        assert found == plan(ranks, allowed=list(reversed(allowed)), root=root, gpus=gpus)
    assert set().union(*found.slices) == set(allowed)
    assert (found.warning is not None) == (len(allowed) < ranks)
    assert 1 <= found.threads <= min(map(len, found.slices))
    for one, other in combinations(range(ranks), 2):
        if len(allowed) >= ranks:
            assert not set(found.slices[one]) & set(found.slices[other])
        if len(found.nodes[one]) == 1 and found.nodes[one] == found.nodes[other]:
            assert abs(found.cores[one] - found.cores[other]) <= 1


@given(st.sets(st.integers(0, 300)))
def test_lists_of_numbers_are_read_as_they_are_written(numbers: set[int]) -> None:
    assert parsed(compact(sorted(numbers))) == tuple(sorted(numbers))


def cards(root: Path, models: Sequence[str]) -> Path:
    for number, model in enumerate(models):
        text = f"Model: \t\t {model}\nIRQ: 25\nGPU UUID: \t GPU-{number}abc\nBus Location: \t 0000:{number}1:00.0"
        write(root / f"driver/nvidia/gpus/0000:{number}1:00.0/information", text)
    return root


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("0000:01:00.0", "0000:11:00.0", "0000:21:00.0")),
        ({"CUDA_VISIBLE_DEVICES": "2, 0"}, ("0000:21:00.0", "0000:01:00.0")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,MIG-7,0"}, ("0000:11:00.0", None, "0000:01:00.0")),
        ({"CUDA_VISIBLE_DEVICES": "1,7,0"}, ("0000:11:00.0",)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_DEVICE_ORDER": "OTHER"}, (None, None, None)),
    ],
)
def test_gpus_are_found_as_cuda_counts_them(
    tmp_path: Path, environment: dict[str, str], expected: tuple[str | None, ...]
) -> None:
    assert gpu_bus_ids(environment, cards(tmp_path, ["H100"] * 3)) == expected


def test_the_order_of_different_gpus_is_unknown_unless_it_is_the_bus(tmp_path: Path) -> None:
    root = cards(tmp_path, ["H100", "T4"])
    assert gpu_bus_ids({}, root) == (None, None)
    assert gpu_bus_ids({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, root) == ("0000:01:00.0", "0000:11:00.0")
    assert gpu_bus_ids({}, tmp_path / "nowhere") == ()
