"""Files that the tests of the tools share."""

import pytest

from tests.tools.loras import Files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tools"))
