"""`few_descriptors.py ARGUMENTS…`: a walcast process that may have FEW_DESCRIPTORS of them, also as its hard limit."""

from __future__ import annotations

import os
import resource

from walcast_node.cli import main

FEW = int(os.environ.get("FEW_DESCRIPTORS", "400"))
resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))
main()
