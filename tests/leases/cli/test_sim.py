"""`leasehold sim`: what it prints, what it ends with, and that a seed can be looked at again."""

from __future__ import annotations

import json
import shlex

import pytest

from leases.cli.main import main
from paxos import election

RIVALS = shlex.split("--hosts 2 --leases 1 --clients 2 --period 10 --hold 10 --shared 0 --faults late=0.01 --hours 2")


def test_a_run_without_violations(capsys):
    assert main(["sim", "--seed", "3", "--hosts", "2", "--hours", "0.1", "--faults", "gentle"]) == 0
    out = capsys.readouterr().out
    for word in ("seed", "0.10 hours of 2 hosts", "operations", "grants", "violations", "none"):
        assert word in out


def test_the_two_owners_of_the_reference_are_shown_with_a_legend(capsys):
    codes = [main(["sim", "--rules", "reference", "--seed", str(seed), *RIVALS]) for seed in (27, 104)]
    out = capsys.readouterr().out
    assert 1 in codes
    assert "one owner: r1 exclusive" in out and "l landed late" in out and " l r1 leader" in out


@pytest.mark.parametrize("more", [[], ["--reference", "1"]])
def test_our_own_rules_pass_the_same_seed(more, capsys):
    assert main(["sim", "--seed", "27", *more, *RIVALS]) == 0


def test_many_seeds_are_added_up_and_resumed(tmp_path, capsys):
    command = ["sim", "--hosts", "2", "--hours", "0.05", "--faults", "none", "--json", "--jobs", "1"]
    command += ["--state", str(tmp_path / "state")]
    assert main([*command, "--seeds", "1-2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*command, "--seeds", "1-3"]) == 0
    then = json.loads(capsys.readouterr().out)
    assert (first["runs"], then["runs"]) == (2, 3)
    assert then["operations"] > first["operations"] > 0 and then["violations"] == 0


@pytest.fixture
def eager(monkeypatch):
    """A planted bug: leases of hosts that may be alive are taken."""
    monkeypatch.setattr(election, "claims", lambda scene, member: [])


def test_a_failure_gives_seed_trace_and_a_smaller_run(eager, capsys):
    words = ["sim", "--seed", "1", "--hosts", "3", "--hours", "0.5", "--faults", "slow=0.01", "--shrink"]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "seed" in out and "with these faults alone" in out and " V " in out


def test_a_failure_among_many_seeds_is_told_with_its_seed(eager, capsys):
    assert main(["sim", "--seeds", "1-2", "--hosts", "2", "--hours", "0.5", "--faults", "none", "--jobs", "1"]) == 1
    assert "seed 1: " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--seeds", "9-2"], ["--faults", "sometimes"], ["--shared", "2"], ["--hosts", "0"]])
def test_what_makes_no_sense_is_refused(words, capsys):
    assert main(["sim", *words]) == 64
    assert capsys.readouterr().err.startswith("leasehold: ")
