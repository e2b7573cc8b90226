import os

import pytest

import lofit_lens as ll


@pytest.fixture(scope="session")
def smollm2():
    return ll.load_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3():
    accepted = os.environ.get("LOFIT_LENS_ACCEPT_LICENSE", "").split(",")
    if "gemma" not in accepted:
        pytest.skip("Gemma's licence is not accepted here: set LOFIT_LENS_ACCEPT_LICENSE=gemma to run this test")
    return ll.load_model("gemma-3-270m", accept_license=accepted)


@pytest.fixture(params=["smollm2", "gemma3"])
def real_model(request):
    return request.getfixturevalue(request.param)
