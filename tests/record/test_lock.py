"""requirements.lock against requirements.txt: the same versions, every file by its hash."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, list[str]]:
    """Each requirement of a file, with the words that follow it."""
    lines = (ROOT / name).read_text().replace("\\\n", "").splitlines()
    found = [line.split("#")[0].split() for line in lines]
    return {words[0]: words[1:] for words in found if words}


def test_the_lock_pins_and_hashes_all_that_requirements_txt_brings():
    asked, locked = pins("requirements.txt"), pins("requirements.lock")
    assert len(locked) > 3 * len(asked)  # what those need in turn
    for requirement, hashes in locked.items():
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+]+", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
    assert [x for x in asked if x not in locked and f"{x}+cpu" not in locked] == []
