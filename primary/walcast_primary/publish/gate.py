"""The gate in front of every call: who asks, which role that needs, and one line in the log for whoever is turned away.

An identity is, in this order: a client certificate that was verified, a token, the user that a process on this machine
runs as if it is ours. Everybody else is nobody, and has no role unless a rule says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import grpc

from walcast import audit
from walcast.access import NOBODY, Identity, Kind, Policy, Role
from walcast.access.credentials import AUTHORIZATION, Credentials
from walcast.access.neighbours import peer_user, user_of
from walcast.errors import CertificateRefused
from walcast.rarely import Rarely
from walcast.wire import Address, Tls
from walcast_primary.publish.visible_status import Sees

log = logging.getLogger("walcast.audit")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Gate:
    """`listening`: where peers connect to. `credentials` tell whose a certificate or a token is. `trust_user`:
    processes of our own user on this machine may do everything."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        listening: Callable[[], Address],
        credentials: Credentials | None = None,
        trust_user: bool = True,
    ) -> None:
        self._policy = policy if policy is not None else Policy()
        self._listening = listening
        self._credentials = credentials if credentials is not None else Credentials(Tls())
        self._trust_user = trust_user
        self._rarely = Rarely(log)

    def go_by(self, policy: Policy, *, trust_user: bool) -> None:
        """Judge every call by other rules from now on. For any thread."""
        self._policy, self._trust_user = policy, trust_user

    def roles(self, identity: Identity, database: str) -> frozenset[Role]:
        """What it may do there; "" for what concerns all databases."""
        return self._policy.roles(identity, database)

    def sees(self, identity: Identity) -> Sees:
        """Which databases it may see the status of."""
        return lambda database: Role.STATUS in self.roles(identity, database)

    def identify(self, context: Context) -> Identity:
        """Who makes this call. Nobody, if it has shown a certificate or a token that is not accepted."""
        try:
            certified = self._credentials.certificate_identity(context.auth_context())
        except CertificateRefused as refused:
            facts = {"identity": refused.name, "peer": context.peer(), "error": str(refused), "outcome": "denied"}
            self._rarely.log(logging.WARNING, "certificate refused", refused.name, facts, burst=audit.BURST)
            return NOBODY
        if certified is not None:
            return Identity(certified.kind, certified.name)
        presented = next((value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION), None)
        if presented is not None:
            return self._of_token(presented)
        return self._of_user(peer_user(context.peer(), self._listening()))

    def identify_http(self, host: str, port: int, local: Address, authorization: str) -> Identity:
        """Who makes an HTTP request, from `host`, `port`, to `local`."""
        if authorization:
            return self._of_token(authorization)
        return self._of_user(user_of(host, port, local))

    def _of_token(self, presented: str | bytes) -> Identity:
        name = self._credentials.token_identity(presented)
        return NOBODY if name is None else Identity(Kind.TOKEN, name)

    def _of_user(self, uid: int | None) -> Identity:
        return Identity(Kind.USER, str(uid)) if self._trust_user and uid == os.geteuid() else NOBODY

    def knows(self, identity: Identity) -> Sees:
        """Which databases it has any role at."""
        return lambda database: bool(self.roles(identity, database))

    async def require(
        self, context: Context, role: Role, database: str, method: str, *, asked: str | None = None
    ) -> Identity:
        """The identity of a call, which has this role at this database; the call is ended if it has not. `asked`: the
        name that was asked for, where that stands for this database."""
        identity = self.identify(context)
        if role not in self.roles(identity, database):
            await self.deny(context, identity, role, database, method, asked=asked)
        return identity

    async def deny(
        self,
        context: Context,
        identity: Identity,
        role: Role,
        database: str,
        method: str,
        *,
        asked: str | None = None,
    ) -> NoReturn:
        """End the call of an identity that does not have this role at this database, of which it is told no more than
        it asked for."""
        audit.record_denied(str(identity), context.peer(), method, database, str(role))
        if identity == NOBODY:
            detail = (
                f"{method} needs the role {role!s}, and who asks is not known: run it as the user of this node on its "
                "machine, or show a certificate (--tls) or a token (--token-file) that it accepts"
            )
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, detail)
        named = database if asked is None else asked
        where = f" at the database {named!r}" if named else ""
        detail = (
            f"{method} needs the role {role!s}{where}, which {identity} does not have: see access in the configuration"
        )
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, detail)
