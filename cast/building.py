"""One model is built at a time.

While transformers builds a model it replaces methods of its own base class, for all threads, and puts back
what it found. Two threads that build at once can leave the replaced ones in place: from then on no model's
tied weights are tied, and none with such weights can be loaded.
"""

import threading

ONE_AT_A_TIME = threading.RLock()
