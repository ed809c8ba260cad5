"""Train an agent: `python train.py agent=dreamer env=memory_maze preset=laptop`; `--help` lists every field."""

import sys

from torchmem.allocator import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()  # before torch is imported
    from torchmem.training.command import main

    sys.exit(main(sys.argv[1:]))
