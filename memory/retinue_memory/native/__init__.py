"""The built-in memory: rows in SQLite, an index of each scope in memory, ranked by words, meaning and what is around them.

Nothing of this package is imported before a native memory is opened; what reads texts (`reading`, `lasting`, `words`) may be,
for it needs no database and no arrays.
"""

import os

# One thread a query: the arrays are small, and threads that wait for each other cost 5-10 ms on busy cores. Both are
# read when the libraries load, and what the user has set stays.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
