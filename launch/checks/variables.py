"""Variables of NCCL, gloo and torch's process groups: misspelt, renamed, or at odds with each other or the machine."""

import difflib
from collections.abc import Mapping, Sequence

from launch.checks.finding import Facts, Finding, Level, everywhere, ok

PREFIXES = ("NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_GLOO_", "TORCH_FR_")
OF_NCCL = """
ALGO ALLOC_P2P_NET_LL_BUFFERS BUFFSIZE CGA_CLUSTER_SIZE CHECKS_DISABLE CHECK_MODE CHECK_POINTERS COLLNET_ENABLE
COLLNET_NODE_THRESHOLD COMM_BLOCKING CONF_FILE CROSS_NIC CTA_POLICY CUMEM_ENABLE CUMEM_HOST_ENABLE DEBUG DEBUG_FILE
DEBUG_LEVELS DEBUG_SUBSYS DEBUG_TIMESTAMP_FORMAT DEBUG_TIMESTAMP_LEVELS DMABUF_ENABLE ENV_PLUGIN GDRCOPY_ENABLE
GDRCOPY_FIFO_ENABLE GDRCOPY_FLUSH_ENABLE GDRCOPY_SYNC_ENABLE GIN_PLUGIN GRAPH_MIXING_SUPPORT GRAPH_REGISTER
GRAPH_STREAM_ORDERING IB_ADAPTIVE_ROUTING IB_ADDR_FAMILY IB_ADDR_RANGE IB_AR_THRESHOLD IB_CUDA_SUPPORT IB_DISABLE
IB_ECE_ENABLE IB_EVENT_BASED_LB IB_FIFO_TC IB_GDR_LEVEL IB_GID_INDEX IB_HCA IB_MERGE_NICS IB_OOO_RQ
IB_PCI_RELAXED_ORDERING IB_PKEY IB_PKEY_VALUE IB_QPS_PER_CONNECTION IB_RAIL_POLICY IB_RETRY_CNT IB_RETURN_ASYNC_EVENTS
IB_ROCE_VERSION_NUM IB_SL IB_SPLIT_DATA_ON_QPS IB_TC IB_TIMEOUT IGNORE_COLLNET_MISMATCH IGNORE_CPU_AFFINITY
IGNORE_NET_MISMATCH IPC_USE_ABSTRACT_SOCKET LAUNCH_MODE LAUNCH_ORDER_IMPLICIT LAUNCH_RACE_FATAL LEGACY_CUDA_REGISTER
LL_THRESHOLD LOCAL_REGISTER MAX_CTAS MAX_NCHANNELS MAX_NRINGS MEM_SYNC_DOMAIN MIN_CTAS MIN_NCHANNELS MIN_NRINGS
MNNVL_CLIQUE_ID MNNVL_ENABLE MNNVL_UUID MULTI_RANK_GPU_ENABLE NET NETDEVS_POLICY NET_GDR_C2C NET_GDR_LEVEL NET_GDR_READ
NET_MERGE_LEVEL NET_MERGE_POLICY NET_PLUGIN NET_SHARED_BUFFERS NET_SHARED_COMMS NSOCKS_PERTHREAD NTHREADS NVB_DISABLE
NVLS_ENABLE OOB_NET_ENABLE OOB_NET_IFNAME P2P_DIRECT_DISABLE P2P_DISABLE P2P_LEVEL P2P_LL_THRESHOLD P2P_NET_CHUNKSIZE
P2P_PXN_LEVEL PROFILER_PLUGIN PROTO PSK PXN_C2C PXN_DISABLE RAS_ADDR RAS_ENABLE RAS_TIMEOUT_FACTOR RMA_EAGER_INIT
RMA_PLUGIN RUNTIME_CONNECT SET_STACK_SIZE SET_THREAD_NAME SHM_DISABLE SINGLE_RING_THRESHOLD SOCKET_FAMILY SOCKET_IFNAME
SOCKET_MAGIC SOCKET_NTHREADS SOCKET_POLL_TIMEOUT_MSEC SOCKET_RETRY_CNT SOCKET_RETRY_SLEEP_MSEC SYM_GIN_KERNELS_ENABLE
TOPO_DUMP_FILE TOPO_FILE TREE_THRESHOLD TUNER_PLUGIN UID_STAGGER_RATE UID_STAGGER_THRESHOLD WIN_ENABLE
"""
"""Those of NVIDIA's user guide, also former ones, without their NCCL_."""
UNDOCUMENTED = """
CHUNK_SIZE COMM_ID COMM_SPLIT_SHARE_RESOURCES CONNECT_ROUND_MAX_PEERS CREATE_THREAD_CONTEXT GDR_FLUSH_DISABLE
GRAPH_DUMP_FILE GRAPH_DUMP_FILE_RANK GRAPH_FILE HOME HOSTID IBEXT_DISABLE IB_DATA_DIRECT IB_IS_GLOBAL IB_MERGE_VFS
IB_USE_INLINE IB_WARN_RAIL_LOCAL INCLUDE_DIR L1_SHARED_MEMORY_CARVEOUT LIB_DIR LL128_BUFFSIZE LL128_NTHREADS
LL_BUFFSIZE MAX_P2P_NCHANNELS MIN_P2P_NCHANNELS NCHANNELS_PER_NET_PEER NET_DISABLE_INTRA NET_FORCE_FLUSH
NET_FORCE_MERGE NET_OPTIONAL_RECV_COMPLETION NET_OVERHEAD NVB_PRECONNECT NVLSTREE_MAX_CHUNKSIZE NVLS_CHUNKSIZE
NVLS_NCHANNELS P2P_NVL_CHUNKSIZE P2P_PCI_CHUNKSIZE P2P_READ_ENABLE P2P_USE_CUDA_MEMCPY PAT_ENABLE PROFILE_EVENT_MASK
PROGRESS_APPENDOP_FREQ PROXY_APPEND_BATCH_SIZE PROXY_DUMP_SIGNAL REPORT_CONNECT_PROGRESS RINGS ROOT ROOT_DIR
SHM_LOCALITY SHM_MEMCPY_MODE SHM_USE_CUDA_MEMCPY SOCKET_INLINE SOCKET_MIN_TASKSIZE TOPO_DUMP_FILE_RANK
TUNER_CONFIG_PATH USE_TENSOR_REGISTER_ALLOCATOR_HOOK VERSION WARN_ENABLE_DEBUG_INFO WORK_ARGS_BYTES WORK_FIFO_BYTES
WORK_FIFO_DEPTH
"""
"""Others that are in use, and those of builds and containers."""
OF_TORCH_NCCL = """
ASYNC_ERROR_HANDLING AVOID_RECORD_STREAMS BCAST_UNIQUEID BLOCKING_WAIT COORD_CHECK_MILSEC CUDA_EVENT_CACHE
DEBUG_INFO_PIPE_FILE DEBUG_INFO_TEMP_FILE DESYNC_DEBUG DUMP_ON_TIMEOUT ENABLE_MONITORING ENABLE_TIMING
EXTRA_DUMP_ON_EXEC HEARTBEAT_TIMEOUT_SEC HIGH_PRIORITY LOG_CPP_STACK_ON_UNCLEAN_SHUTDOWN NAN_CHECK NONBLOCKING_TIMEOUT
PROPAGATE_ERROR RANKS_PER_ROOT RETHROW_CUDA_ERRORS SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING TEARDOWN_ON_TIMEOUT
TRACE_BUFFER_SIZE TRACE_CPP_STACK USE_COMM_NONBLOCKING USE_TENSOR_REGISTER_ALLOCATOR_HOOK WAIT_TIMEOUT_DUMP_MILSEC
"""
OTHERS = """
GLOO_DEVICE_TRANSPORT GLOO_DEVICE_TRANSPORT_TCP_TLS_CA_FILE GLOO_DEVICE_TRANSPORT_TCP_TLS_CA_PATH
GLOO_DEVICE_TRANSPORT_TCP_TLS_CERT GLOO_DEVICE_TRANSPORT_TCP_TLS_PKEY GLOO_DISABLE_CONNECTION_RETRIES
GLOO_ENABLE_RANK_AS_SEQUENCE_NUMBER GLOO_ENABLE_STORE_V2_API GLOO_LOG_LEVEL GLOO_SOCKET_IFNAME TORCH_GLOO_LAZY_INIT
TORCH_FR_BUFFER_SIZE TORCH_FR_CPP_STACK TORCH_FR_DUMP_DYNAMIC_FILE_NAME TORCH_FR_DUMP_ON_TIMEOUT
TORCH_FR_DUMP_TEMP_FILE TORCH_FR_WAIT_TIMEOUT_DUMP_MILSEC
"""
KNOWN = frozenset(
    [
        *(f"NCCL_{name}" for name in (OF_NCCL + UNDOCUMENTED).split()),
        *(f"TORCH_NCCL_{name}" for name in OF_TORCH_NCCL.split()),
        *OTHERS.split(),
    ]
)
OF_PLUGINS = ("NCCL_FASTRAK_", "NCCL_GPUDIRECTTCPX_", "NCCL_OFI_", "NCCL_SHARP_", "NCCL_SHIMNET_", "NCCL_UCX_")
"""Beginnings of names that network plugins read."""
OFF = frozenset({None, "", "0"})
AT_ODDS = (
    ("NCCL_IB_DISABLE", "NCCL_IB_HCA", "switches InfiniBand off"),
    ("NCCL_IB_DISABLE", "NCCL_IB_GID_INDEX", "switches InfiniBand off"),
    ("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "switches peer-to-peer off"),
)
"""A switch, a variable that means nothing while it is on, and why."""
COMPARED = frozenset({"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", *(switch for switch, _, _ in AT_ODDS)})
"""Variables whose values are looked at."""


def gather(environ: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that are checked; values only of those whose value is, since NCCL_PSK is a secret."""
    names = sorted(name for name in environ if name.startswith(PREFIXES))
    return {name: environ[name] if name in COMPARED else None for name in names}


def judge(nodes: Sequence[Facts]) -> list[Finding]:
    """Variables of each node, against the list of known ones and the node's own network interfaces."""
    found = {}
    for facts in nodes:
        variables, interfaces = facts["variables"], facts["interfaces"]
        levels: dict[Level, list[str]] = {
            "error": _interfaces(variables, interfaces),
            "warning": [*_unknown(variables), *_at_odds(variables)],
        }
        found[facts["node"]] = [
            Finding(level=level, check="variables", node=facts["node"], sentence=sentence)
            for level, sentences in levels.items()
            for sentence in sentences
        ]
    count = len(nodes[0]["variables"])
    return everywhere(nodes, found, ok("variables", f"{count} of NCCL, gloo and torch's process groups"))


def _unknown(variables: Mapping[str, str | None]) -> list[str]:
    sentences = []
    for name in variables:
        if name in KNOWN or name.startswith(OF_PLUGINS):
            continue
        if f"TORCH_{name}" in KNOWN:
            sentences.append(f"expected TORCH_{name}, got its former name {name}; rename it")
            continue
        close = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.85)
        advice = f"did you mean {close[0]}?" if close else "check its spelling: nothing may read it"
        sentences.append(f"expected a known variable, got {name}: {advice}")
    return sentences


def _interfaces(variables: Mapping[str, str | None], interfaces: Sequence[str]) -> list[str]:
    """Variables that name network interfaces which are not there."""
    known = ", ".join(interfaces)
    sentences = []
    gloo = variables.get("GLOO_SOCKET_IFNAME") or ""
    for name in filter(None, gloo.split(",")):
        if name not in interfaces:
            sentences.append(f"expected one of {known} in GLOO_SOCKET_IFNAME, got {name}; gloo takes whole names only")
    nccl = variables.get("NCCL_SOCKET_IFNAME") or ""
    exact, excluded = nccl.lstrip("^").startswith("="), nccl.startswith("^")
    words = [word for word in nccl.lstrip("^=").split(",") if word]
    if words and not excluded and not any(_matches(each, words, exact) for each in interfaces):
        sentences.append(f"expected one of {known} in NCCL_SOCKET_IFNAME, got {nccl}; NCCL would find no interface")
    return sentences


def _matches(interface: str, words: Sequence[str], exact: bool) -> bool:
    return interface in words if exact else interface.startswith(tuple(words))


def _at_odds(variables: Mapping[str, str | None]) -> list[str]:
    return [
        f"expected {switch} or {other}, got both: {switch}={variables[switch]} {why}; unset one of them"
        for switch, other, why in AT_ODDS
        if other in variables and variables.get(switch) not in OFF
    ]
