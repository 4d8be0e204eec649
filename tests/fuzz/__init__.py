"""Bytes from outside, mutated: whatever comes, only walcast's own errors go out, in bounded time and memory.

One module for each boundary. It has

    target(data)   decodes as the code at that boundary does; raises what is no finding as `ALLOWED`, or returns
    seeds()        real inputs to begin with
    ALLOWED        beside WalcastError: what its callers handle (none, if it has none)
    TOKENS         words of the format, for the mutations (may be missing)
    running()      a context in which the target runs (may be missing)
    SHORT          inputs of a short run (may be missing)

`fuzz.engine` runs them.
"""
