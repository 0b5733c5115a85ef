"""What bandwidth means for a collective operation: sizes, algbw and busbw; pure functions that import no torch.

algbw = S / t, where S is the size in bytes that the operation is known by and t the seconds of one call, as the slowest
rank saw it. busbw is algbw times a factor that makes operations and numbers of ranks comparable: what each rank's link
carries when the operation runs as a ring. GB/s are 1e9 bytes per second. Source: NVIDIA nccl-tests, doc/PERFORMANCE.md.
"""

import math

OPS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "send_recv", "send")
"""Operations. In send_recv every rank sends to the next one and receives from the one before, in a ring; in send ranks
0, 2, ... send to the rank after them, and nothing comes back."""
OF_ALL_RANKS = ("all_gather", "reduce_scatter", "all_to_all")
"""Operations whose S is that of all ranks' parts together."""
DTYPES = ("float32", "float16", "bfloat16", "int32")
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}
LARGEST_EXACT = {"float32": 2**24, "float16": 2**11, "bfloat16": 2**8, "int32": 2**31 - 1}
"""All whole numbers up to here are exact in the data type."""
DDP_CAPS_BYTES = (2**20, 25 * 2**20)
"""DistributedDataParallel's default limits: of its first bucket and of the others."""
LEAST_CALLS, MOST_CALLS, FEWEST_CALLS = 20, 500, 3
"""Calls in a block: at least 20 and at most 500, but fewer, down to 3, where they would take far too long."""
TOO_LONG = 25
"""A block may take this many times as long as asked for, to have LEAST_CALLS."""
UNITS = {"": 1, "B": 1, "K": 2**10, "KIB": 2**10, "M": 2**20, "MIB": 2**20, "G": 2**30, "GIB": 2**30}


def size_in_bytes(text: str) -> int:
    """Bytes of a size such as 8, 64K, 25M or 1G, powers of 1024. Raises ValueError."""
    digits = text.strip().rstrip("BKMGIbkmgi ")
    unit = text.strip()[len(digits) :].strip().upper()
    if not (digits.isascii() and digits.isdigit()) or unit not in UNITS:
        raise ValueError(f"expected a size in bytes such as 8, 64K, 25M or 1G, got {text!r}; write it like one of them")
    return int(digits) * UNITS[unit]


def sizes(op: str, dtype: str, ranks: int, least_bytes: int, most_bytes: int) -> list[int]:
    """S from least to most, each twice the one before, made smaller to what all ranks can share in whole elements.

    At least one element per rank, so that the first ones can be larger than asked for.
    """
    share = ITEM_BYTES[dtype] * (ranks if op in OF_ALL_RANKS else 1)
    wanted, size = [], least_bytes
    while size <= most_bytes:
        wanted.append(max(1, size // share) * share)
        size *= 2
    return list(dict.fromkeys(wanted))


def bus_factor(op: str, ranks: int) -> float:
    """busbw / algbw. Raises ValueError for another operation or fewer than two ranks, which send each other nothing."""
    if op not in OPS or ranks < 2:
        raise ValueError(f"expected one of {', '.join(OPS)} on at least 2 ranks, got {op} on {ranks}; choose others")
    if op == "all_reduce":
        return 2 * (ranks - 1) / ranks
    return (ranks - 1) / ranks if op in OF_ALL_RANKS else 1.0


def algbw_bytes_per_s(size_bytes: int, calls: int, slowest_s: float) -> float:
    """Bytes per second: S of all calls over the time of all calls, never a mean of rates."""
    if calls < 1 or slowest_s <= 0:
        raise ValueError(f"expected at least 1 call and a time above 0, got {calls} calls in {slowest_s} s; measure")
    return size_bytes * calls / slowest_s


def busbw_bytes_per_s(op: str, ranks: int, algbw: float) -> float:
    """Bytes per second that each rank's link carries in a ring."""
    return algbw * bus_factor(op, ranks)


def by_node_factor(nodes: int, ranks: int) -> float:
    """What leaves a node, as a share of busbw, if ranks combine within their node first: g (k - 1) / (n - 1).

    With g = n / k ranks on each of k nodes, a node sends (k - 1) / k of S, whereas busbw counts (n - 1) / n of S, both
    twice in all_reduce; each of g network cards that share it carries (k - 1) / (n - 1) of busbw. A flat ring enters
    and leaves every node once, so there all of busbw leaves a node. Of all_reduce, all_gather, reduce_scatter only.
    """
    return ranks / nodes * (nodes - 1) / (ranks - 1)


def calls_in_block(call_s: float, block_s: float) -> int:
    """Calls that fill a block, if one takes `call_s`; the bounds are LEAST_CALLS, MOST_CALLS and FEWEST_CALLS."""
    call_s = max(call_s, 1e-9)
    wanted = min(max(LEAST_CALLS, math.ceil(block_s / call_s)), MOST_CALLS)
    return min(wanted, max(FEWEST_CALLS, int(TOO_LONG * block_s / call_s)))


def largest_value(op: str, dtype: str, ranks: int) -> int:
    """The largest whole number that ranks may send so that every sum, in any order, is exact."""
    return LARGEST_EXACT[dtype] // (ranks if op in ("all_reduce", "reduce_scatter") else 1)
