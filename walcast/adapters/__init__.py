"""Replicas in the terms of web frameworks: one module each, imported by nobody but the app that uses it.

    walcast.adapters.flask        an extension: this request's connection, reads after writes
    walcast.adapters.sqlalchemy   an engine for a replica, a session that reads there and writes at the primary
    walcast.adapters.django       an entry of DATABASES, a router

Each imports its framework, and `walcast` never imports any of them.
"""
