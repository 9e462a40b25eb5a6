import pytest

from torchtitan_lighthouse.data.corpora import CORPORA


@pytest.fixture(autouse=True)
def _corpora_are_looked_at_anew():
    for corpus, _ in CORPORA.values():
        corpus.cache_clear()
