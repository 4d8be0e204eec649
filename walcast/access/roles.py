"""Roles, and which identity has which at which database. Pure.

Whoever has not proven who it is has no role. Rules come from the configuration file; the first that matches an
identity and a database decides, as in PostgreSQL's `pg_hba.conf`. Where none matches, the kind of identity decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

ANYONE = "anyone"


class Role(StrEnum):
    """What may be asked of a node."""

    STATUS = "status"  # positions, followers, barriers
    REPLICATE = "replicate"  # the stream and copies
    MEMBER = "member"  # its acknowledgements count, and it may be a candidate, under its own id
    OPERATE = "operate"  # switchover, promotion, and what else changes roles


ALL = frozenset(Role)
FOR_STRANGERS = frozenset((Role.STATUS, Role.REPLICATE))  # the most that whoever has proven nothing can have


class Kind(StrEnum):
    """How an identity was proven, and what for it was made."""

    USER = "user"  # a process of the user that this one runs as, on this machine
    NODE = "node"  # a certificate that `walcast certs node` made
    CLIENT = "client"  # ... `walcast certs client`
    OPERATOR = "operator"  # ... `walcast certs client --operate`
    OTHER = "other"  # a certificate that somebody else made
    TOKEN = "token"
    NOBODY = "nobody"


CLAIMED_IN_CERTIFICATES = frozenset((Kind.NODE, Kind.CLIENT, Kind.OPERATOR))
"""What a certificate of `walcast certs` can say that it is for. Nobody becomes a user or a token by a certificate."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `name` is the node's id, the client's or the token's name, or the user's id; empty for nobody."""

    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)

    def may_be(self, node_id: str) -> bool:
        """May it act as the node of that id? Processes of our own user may be any."""
        return self.kind is Kind.USER or (bool(self.name) and self.name == node_id)


NOBODY = Identity(Kind.NOBODY)

DEFAULTS = {
    Kind.USER: ALL,
    Kind.NODE: frozenset((Role.STATUS, Role.REPLICATE, Role.MEMBER)),
    Kind.TOKEN: frozenset((Role.STATUS, Role.REPLICATE, Role.MEMBER)),
    Kind.OTHER: frozenset((Role.STATUS, Role.REPLICATE)),
    Kind.OPERATOR: frozenset((Role.STATUS, Role.REPLICATE, Role.OPERATE)),
    Kind.CLIENT: frozenset((Role.STATUS,)),
    Kind.NOBODY: frozenset[Role](),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`who` is a pattern of names (`*`, `?`, `[…]`), or `anyone`, which matches everybody, also nobody; `kinds` and
    `databases` restrict the rule where they are not empty."""

    who: str
    roles: frozenset[Role]
    databases: tuple[str, ...] = ()
    kinds: frozenset[Kind] = frozenset()

    def matches(self, identity: Identity, database: str) -> bool:
        """`database` is empty for what concerns all of them: then a rule for some of them does not match."""
        if self.kinds and identity.kind not in self.kinds:
            return False
        if self.databases and not any(fnmatchcase(database, pattern) for pattern in self.databases):
            return False
        return self.who == ANYONE or (bool(identity.name) and fnmatchcase(identity.name, self.who))


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a node, in order."""

    rules: tuple[Rule, ...] = ()

    def roles(self, identity: Identity, database: str) -> frozenset[Role]:
        """Of this identity at this database."""
        for rule in self.rules:
            if rule.matches(identity, database):
                return rule.roles & FOR_STRANGERS if identity.kind is Kind.NOBODY else rule.roles
        return DEFAULTS[identity.kind]
