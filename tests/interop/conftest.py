"""What other libraries warn of beside the point; whatever else they say is an error."""

import warnings

import pytest


@pytest.fixture
def quiet_libraries():
    """Let them deprecate what they like."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@pytest.fixture
def quiet_peft(quiet_libraries):
    """PEFT's advice on tied embeddings, on fan_in_fan_out and on a base model without a config; not on keys."""
    warnings.filterwarnings("ignore", message=r"Model has `tie_word_embeddings|.*tied|fan_in_fan_out is set")
    warnings.filterwarnings("ignore", message=r"Could not find a config file|Setting `save_embedding_layers`")
