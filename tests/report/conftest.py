import pytest
from support.reports import Result, make_result


@pytest.fixture(scope="session")
def result() -> Result:
    return make_result()
