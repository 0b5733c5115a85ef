"""One thread per process, set before torch is imported: the ranks of these tests are forked from this process."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
