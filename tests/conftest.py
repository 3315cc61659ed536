"""What every test process is set up with."""

import os

# Torch's threads spin while they wait: beside a second busy process, two of them are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
