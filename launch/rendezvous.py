"""Where the nodes of a launch meet: a rendezvous of torch's elastic engine on ports that are bound and held.

torch's own rendezvous takes a port by its number, listens on all interfaces, joins whoever listens there already, and
keeps its store over restarts, where new ranks then read the addresses of dead ones. Here every round has a new store,
and one node alone listens on the loopback interface only.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)


class RestartsOverError(RuntimeError):
    """All restarts that were asked for have been made, by whichever node."""


BACKEND = "ringmark"
HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the ranks of one round meet."""

    node_rank: int
    nodes: int
    address: str
    port: int
    listener: socket.socket | None = None
    """A bound and listening socket, on the node that holds the store."""


Meeting = Callable[[int], Place]
"""Given the number of the round: where it meets. May wait for other nodes."""


@dataclass(frozen=True, kw_only=True)
class Company:
    """The nodes of a launch, as one of them sees them."""

    meet: Meeting
    node_rank: int = 0
    waiting: Callable[[], int] = lambda: 0
    """Nodes that want another round, since a rank of theirs has failed."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the ranks that follow from where they meet; complete once they have met."""


def alone(port: int = 0) -> Company:
    """One node that needs nobody: each round listens on the loopback interface, on a free port or on that one."""

    def meet(round_number: int) -> Place:
        try:
            listener = socket.create_server((HOST, port))
        except OSError as error:
            raise ValueError(
                f"expected a free --master-port, got {port}: {error.strerror}; leave it out to have one found"
            ) from None
        return Place(node_rank=0, nodes=1, address=HOST, port=listener.getsockname()[1], listener=listener)

    return Company(meet=meet)


class Rendezvous(RendezvousHandler):
    """The engine's view of a meeting."""

    def __init__(self, company: Company, run_id: str, timeout_s: float) -> None:
        self._company, self._run_id, self._timeout_s = company, run_id, timeout_s
        self._round = 0

    @property
    def use_agent_store(self) -> bool:
        """Ranks join the store of the launcher of the first node."""
        return True

    def get_backend(self) -> str:
        """The name under which the engine knows it."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet for one more round, with a store of its own."""
        place = self._company.meet(self._round)
        self._round += 1
        listener = None if place.listener is None else place.listener.detach()
        store = TCPStore(
            place.address,
            place.port,
            is_master=listener is not None,
            wait_for_workers=False,
            timeout=timedelta(seconds=self._timeout_s),
            master_listen_fd=listener,
        )
        info = RendezvousStoreInfo(place.address, place.port)
        return RendezvousInfo(PrefixStore(f"engine-{self._round}", store), place.node_rank, place.nodes, info)

    def is_closed(self) -> bool:
        """Never: a launch ends with its launchers."""
        return False

    def set_closed(self) -> None:
        """Nothing: nobody joins later."""

    def num_nodes_waiting(self) -> int:
        """Nodes that want another round, since a rank of theirs has failed."""
        return self._company.waiting()

    def get_run_id(self) -> str:
        """The launch's own identity."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing is left to close."""
        return True


def register(company: Company) -> None:
    """Make the engine's rendezvous of that name the meeting of these nodes."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return Rendezvous(company, parameters.run_id, float(parameters.config.get("timeout", 900)))

    rendezvous_handler_registry.register(BACKEND, create)
