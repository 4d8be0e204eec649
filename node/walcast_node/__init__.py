"""The process and the command line."""

import os

# What goes wrong is said by walcast, in one line. Read by gRPC's core when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
