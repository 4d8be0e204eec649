"""The part of the configuration file that says who may do what:

    access:
      - who: edge-*                        # names of identities; "anyone" matches everybody
        kinds: [node, token]               # only these kinds of identities; all without it
        databases: [app, "tenants/*"]      # only these databases; all without it
        roles: [status, replicate, member]
    trust-user: false                      # processes of the same user are nobody in particular

The first rule that matches decides.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import yaml

from walcast.access import Kind, Policy, Role, Rule
from walcast.access.roles import ANYONE, FOR_STRANGERS
from walcast_node.config.yaml_values import Keys, Yaml

KEYS = frozenset(("access", "trust-user"))
RULES_MOST = 1000

_RULE = frozenset(("who", "kinds", "databases", "roles"))

E = TypeVar("E", bound=StrEnum)


def read_access(reader: Yaml, keys: Keys) -> Policy:
    """ConfigError, with the line, for a rule that says nothing or gives strangers a place in the set."""
    node = keys.get("access")
    if node is None:
        return Policy()
    nodes = list(reader.items(node))
    if len(nodes) > RULES_MOST:
        raise reader.error(node, f"access: {len(nodes)} rules; {RULES_MOST} are the most")
    return Policy(tuple(_rule(reader, one) for one in nodes))


def _rule(reader: Yaml, node: yaml.Node) -> Rule:
    keys = reader.mapping(node, "access.", _RULE)
    for needed in ("who", "roles"):
        if needed not in keys:
            raise reader.error(node, f"access: a rule needs {needed!r}")
    who = reader.text(keys["who"])
    roles = frozenset(_member(reader, one, Role) for one in reader.items(keys["roles"]))
    if who == ANYONE and roles - FOR_STRANGERS and "kinds" not in keys:
        raise reader.error(keys["roles"], "access: 'anyone' may have the roles status and replicate only")
    for some in ("kinds", "databases"):
        if some in keys and not list(reader.items(keys[some])):
            raise reader.error(keys[some], f"access: {some!r} is empty: leave it out where all are meant")
    kinds = frozenset(_member(reader, one, Kind) for one in reader.items(keys["kinds"])) if "kinds" in keys else None
    if kinds is not None and Kind.NOBODY in kinds and roles - FOR_STRANGERS:
        raise reader.error(keys["roles"], "access: 'nobody' may have the roles status and replicate only")
    databases = tuple(reader.text(one) for one in reader.items(keys["databases"])) if "databases" in keys else ()
    return Rule(who, roles, databases, kinds or frozenset())


def _member(reader: Yaml, node: yaml.Node, of: type[E]) -> E:
    text = reader.text(node)
    try:
        return of(text)
    except ValueError:
        raise reader.error(node, f"{text!r} is none of {', '.join(of)}") from None
