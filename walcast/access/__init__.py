"""Who may do what: identities and how they are proven, roles, and the rules that give the ones to the others."""

from walcast.access.roles import ALL, NOBODY, Identity, Kind, Policy, Role, Rule

__all__ = ["ALL", "NOBODY", "Identity", "Kind", "Policy", "Role", "Rule"]
