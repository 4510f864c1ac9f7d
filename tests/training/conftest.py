"""Images for the tests of trainings."""

import pytest

from supernet.config import Data
from supernet.data.images import Splits
from supernet.data.load import load


@pytest.fixture(scope="session")
def digits() -> Splits:
    """All digits at their own size."""
    return load(Data(size=8))
