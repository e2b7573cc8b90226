"""stub"""

import contextlib


@contextlib.contextmanager
def resumable(folder, every=30.0):
    yield
