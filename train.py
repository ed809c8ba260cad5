"""Train an agent: `python train.py agent=dreamer env=memory_maze preset=laptop`; `--help` lists every field."""

import sys

from torchmem.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # before torch is imported
    from torchmem.training.command import main

    sys.exit(main(sys.argv[1:]))
