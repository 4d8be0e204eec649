"""Where the primary may be: the addresses that were given, and what the lease or another node said last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from walcast.errors import ConfigError, Unavailable
from walcast.wire import Address
from walcast_follower.subscribe.primary_client import Client


class Whereabouts:
    """`client` is for the address that is tried now; used in one event loop. `given`: those of the addresses that
    whoever runs this node has given, all of them if that is not said; the others are what nodes have named before."""

    def __init__(
        self,
        addresses: Sequence[Address],
        connect: Callable[[Address], Client],
        given: Collection[Address] | None = None,
    ) -> None:
        self._addresses = list(addresses)
        self._given = frozenset(addresses if given is None else given)
        self._told: Address | None = None
        self._connect = connect
        self._next = 0
        self.client = connect(self._choices()[0])

    @classmethod
    def only(cls, client: Client) -> Whereabouts:
        """A primary that is nowhere else."""
        return cls([client.primary], lambda _: client)

    @property
    def all(self) -> list[Address]:
        """Every address at which the primary may be, or was."""
        return self._choices()

    def _choices(self) -> list[Address]:
        told = [self._told] if self._told is not None else []
        return told + [address for address in self._addresses if address != self._told]

    def tell(self, address: Address) -> bool:
        """Somebody knows where it is: that is tried next, and first from now on. False when that is no news: it may
        have been tried in vain."""
        if address == self._told:
            return False
        self._told, self._next = address, 0
        return True

    @property
    def is_given(self) -> bool:
        """Is the address that is tried now one that this node was given, rather than one that others named?"""
        return self.client.primary in self._given

    async def turn(self) -> Client:
        """Before each try: a client for the address whose turn it is. Unavailable, and that address is forgotten, when
        others named one that this node may not connect to: without TLS that is any beyond this machine."""
        choices = self._choices()
        address = choices[self._next % len(choices)]
        if address != self.client.primary or self.client.is_outdated:
            try:
                client = self._connect(address)
            except ConfigError as error:
                if address in self._given:
                    raise
                self.forget_told()
                if address in self._addresses:
                    self._next = self._addresses.index(address) + 1
                raise Unavailable(f"{address} was named as the primary's address and is not tried: {error}") from error
            old, self.client = self.client, client
            if old is not client:
                await old.close()
        return self.client

    def forget_told(self) -> None:
        """What others said, or where the primary was last, is of no use: only what was given counts, if anything."""
        if self._addresses:
            self._told, self._next = None, 0

    def reached(self) -> None:
        """It is there: first from now on."""
        self._told, self._next = self.client.primary, 0

    def failed(self) -> None:
        """It is not there: the next one, unless another one was told meanwhile, and not tried yet."""
        choices = self._choices()
        if choices[self._next % len(choices)] == self.client.primary:
            self._next += 1

    async def close(self) -> None:
        """Close the client."""
        await self.client.close()
