"""The built-in memory: rows in a database, an index of each scope in memory, ranked by words, meaning and context.

Nothing of this package is imported before a native memory is opened, except `reading`, `lasting` and `words`, which need neither
a database nor arrays.
"""

import os

# One thread for a query: the arrays are small, and threads that wait for each other cost 5-10 ms on busy cores. The libraries
# read both variables when they load; a user's own values stay.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
