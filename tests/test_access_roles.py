"""Which identity has which role at which database, by the rules of the configuration file or by its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from walcast.access import ALL, NOBODY, Identity, Kind, Policy, Role, Rule
from walcast.errors import ConfigError
from walcast_node.config.configuration import load_config

STATUS, REPLICATE, MEMBER, OPERATE = Role.STATUS, Role.REPLICATE, Role.MEMBER, Role.OPERATE


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        (Kind.USER, ALL),
        (Kind.NODE, {STATUS, REPLICATE, MEMBER}),
        (Kind.TOKEN, {STATUS, REPLICATE, MEMBER}),
        (Kind.OTHER, {STATUS, REPLICATE}),
        (Kind.OPERATOR, {STATUS, REPLICATE, OPERATE}),
        (Kind.CLIENT, {STATUS}),
        (Kind.NOBODY, set()),
    ],
)
def test_without_rules_the_kind_of_an_identity_decides(kind: Kind, roles: set[Role]) -> None:
    identity = Identity(kind, "" if kind is Kind.NOBODY else "x")
    assert Policy().roles(identity, "app") == roles


def test_the_first_rule_that_matches_decides() -> None:
    policy = Policy(
        (
            Rule("edge-9", frozenset()),
            Rule("edge-*", frozenset((STATUS,)), databases=("tenants/*",)),
            Rule("edge-*", frozenset((OPERATE,)), kinds=frozenset((Kind.NODE,))),
            Rule("anyone", frozenset((REPLICATE,)), databases=("public",)),
        )
    )
    assert policy.roles(Identity(Kind.NODE, "edge-9"), "tenants/a") == set()
    assert policy.roles(Identity(Kind.NODE, "edge-1"), "tenants/a") == {STATUS}
    assert policy.roles(Identity(Kind.NODE, "edge-1"), "app") == {OPERATE}
    assert policy.roles(Identity(Kind.CLIENT, "edge-1"), "app") == {STATUS}  # its kind's
    assert policy.roles(NOBODY, "public") == {REPLICATE}
    assert policy.roles(NOBODY, "app") == set()
    assert policy.roles(Identity(Kind.NODE, "edge-1"), "") == {OPERATE}  # what concerns all databases


def test_nobody_matches_no_pattern_of_names() -> None:
    policy = Policy((Rule("*", ALL),))
    assert policy.roles(NOBODY, "app") == set()


def test_whoever_has_proven_nothing_never_has_a_place_in_the_set_whatever_the_rules_say() -> None:
    assert Policy((Rule("anyone", ALL),)).roles(NOBODY, "app") == {STATUS, REPLICATE}


def test_a_node_is_bound_to_its_own_id() -> None:
    assert Identity(Kind.NODE, "edge-1").may_be("edge-1")
    assert not Identity(Kind.NODE, "edge-1").may_be("edge-2")
    assert not NOBODY.may_be("")
    assert Identity(Kind.USER, "1000").may_be("edge-2")


def config_of(tmp_path: Path, text: str) -> Policy:
    file = tmp_path / "walcast.yml"
    file.write_text(text)
    return load_config(file).access


def test_the_configuration_file_has_rules(tmp_path: Path) -> None:
    policy = config_of(
        tmp_path,
        "access:\n"
        "  - who: edge-*\n    kinds: [node, token]\n    databases: [app, 'tenants/*']\n    roles: [status, member]\n"
        "  - who: anyone\n    roles: []\n",
    )
    assert policy == Policy(
        (
            Rule(
                "edge-*",
                frozenset((STATUS, MEMBER)),
                ("app", "tenants/*"),
                frozenset((Kind.NODE, Kind.TOKEN)),
            ),
            Rule("anyone", frozenset()),
        )
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("access:\n  - roles: [status]\n", 2),
        ("access:\n  - who: x\n", 2),
        ("access:\n  - who: x\n    roles: [admin]\n", 3),
        ("access:\n  - who: x\n    kinds: [friend]\n    roles: [status]\n", 3),
        ("access:\n  - who: anyone\n    roles: [status, operate]\n", 3),
        ("access:\n  - who: x\n    kinds: [nobody]\n    roles: [member]\n", 4),
        ("access:\n  - who: x\n    role: [status]\n", 3),
        ("access:\n  - who: anyone\n    kinds: []\n    roles: [operate]\n", 3),
        ("access:\n  - who: x\n    databases: []\n    roles: [status]\n", 3),
        ("access: everybody\n", 1),
    ],
)
def test_a_rule_that_says_nothing_is_an_error_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=f"walcast.yml:{line}: "):
        config_of(tmp_path, text)
