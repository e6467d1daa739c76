"""Deliberate bugs: each is found by its seed or one soon after it, and the code without them passes the same seeds."""

from __future__ import annotations

import inspect
from collections import defaultdict
from dataclasses import replace

import pytest

from leases.cli.main import main
from leases.sim import hunt
from leases.sim.mutants import Edit, Mutant, planted
from leases.sim.mutants.grounds import GROUNDS
from paxos import ballot, election
from paxos.errors import InvalidUse
from paxos.lease_area import Scene

HARMLESS = Mutant(
    "harmless",
    "the same in other words",
    "nothing",
    (Edit("paxos.ballot:number_above", "if highest == 0:", "if not highest:"),),
    "a competitor wrote the leader",
)

SEEDS_BY_GROUND: dict[str, set[int]] = defaultdict(set)
for _mutant in hunt.MUTANTS:
    SEEDS_BY_GROUND[_mutant.ground] |= {_mutant.seed, _mutant.seed + 1}


@pytest.mark.parametrize("mutant", hunt.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_killed(mutant):
    kill = hunt.hunt(mutant, hunt.around(mutant))
    assert kill is not None, f"{mutant.what}, and nobody noticed"


@pytest.mark.parametrize("mutant", hunt.EXPLORED, ids=lambda mutant: mutant.name)
def test_the_mutant_is_found_by_exploring_every_order_as_well(mutant):
    kill = hunt.hunt(mutant)
    assert kill is not None and "while host" in kill.what


@pytest.mark.parametrize("ground", SEEDS_BY_GROUND)
def test_without_a_mutant_nothing_is_broken_by_the_same_seeds(ground):
    assert hunt.clean(ground, sorted(SEEDS_BY_GROUND[ground])) is None


def test_there_are_many_and_each_has_a_name_of_its_own_and_says_what_it_breaks():
    names = [mutant.name for mutant in hunt.MUTANTS]
    assert len(names) == len(set(names)) >= 50
    assert all(mutant.what and mutant.breaks and mutant.ground in GROUNDS for mutant in hunt.MUTANTS)


def test_a_mutant_is_planted_wherever_the_function_is_used_and_taken_out_again():
    original = ballot.number_above
    with planted(HARMLESS):
        assert ballot.number_above is election.number_above is not original
    assert ballot.number_above is election.number_above is original


def test_methods_and_properties_can_be_edited_too():
    original = inspect.getattr_static(Scene, "next_lver")
    with planted(next(mutant for mutant in hunt.MUTANTS if mutant.name == "below-a-begun-version")):
        assert inspect.getattr_static(Scene, "next_lver") is not original
    assert inspect.getattr_static(Scene, "next_lver") is original


def test_a_mutant_that_does_not_fit_the_code_is_an_error():
    stale = replace(HARMLESS, edits=(Edit("paxos.ballot:number_above", "no such line", ""),))
    with pytest.raises(InvalidUse, match="no such line"), planted(stale):
        pass


def test_a_survivor_is_told():
    assert hunt.hunt(HARMLESS) is None
    lines: list[str] = []
    assert hunt.report([HARMLESS, hunt.named(["released-ignored"])[0]], lines.append) == 1
    assert "SURVIVES: the same in other words" in lines[1]
    assert "host 2 was refused" in lines[2]
    assert lines[-1] == "1 of 2 mutants killed"


def test_mutants_are_asked_for_by_name():
    assert [mutant.name for mutant in hunt.named(["already-mine"])] == ["already-mine"]
    assert hunt.named([]) == (*hunt.MUTANTS, *hunt.EXPLORED)
    with pytest.raises(InvalidUse, match="no mutant is called nobody"):
        hunt.named(["nobody"])


def test_the_command_hunts_them(capsys):
    assert main(["sim", "--mutants", "released-ignored"]) == 0
    assert "1 of 1 mutants killed" in capsys.readouterr().out
