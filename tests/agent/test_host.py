"""The verbs: what is recorded before, kept on failure, and found again after `kill -9`."""

import asyncio

import msgspec
import pytest

from agent.drivers.base import Deadline, ProbeReport
from agent.errors import AgentFault
from agent.journal import RecordState
from schemas.backends import Capacity, HealthStatus
from schemas.credentials import Credentials
from schemas.faults import FaultCode
from schemas.ids import new_id
from tests.agent.conftest import MakeRig
from tests.agent.fakes import REPORT, Rig, World, target
from tests.agent.waiting import until


async def killed_during(rig: Rig, verb: str, backend_id: str, acting: "asyncio.Task[object]") -> None:
    """The agent is gone while its driver is in the verb; the caller goes on with a new rig."""
    await until(lambda: rig.world.running[verb + backend_id])
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)
    del rig.world.gates[verb]


async def test_attach_proves_records_and_reports(rig: Rig, world: World, backend_id: str) -> None:
    observation = await rig.host.attach(target(backend_id), establish=True)
    assert observation.status is HealthStatus.HEALTHY
    assert rig.host.held()[0].generation == 1
    assert backend_id in world.mounted
    assert rig.board.latest(backend_id) == observation
    assert (rig.state.backends / backend_id).stat().st_mode & 0o777 == 0o700


async def test_attach_credentials_not_held_touches_nothing(rig: Rig, world: World, backend_id: str) -> None:
    with pytest.raises(AgentFault) as caught:
        await rig.host.attach(target(backend_id, version=1), establish=True)
    assert caught.value.fault.code is FaultCode.NEEDS_CREDENTIALS
    assert rig.host.held() == ()
    assert world.calls["attach"] == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": "floppy"}, FaultCode.KIND_UNSUPPORTED),
        ({"fleet_id": new_id()}, FaultCode.FAILED),
        ({"config": {"server": "nas", "export": "relative"}}, FaultCode.FAILED),
        ({"config": {"server": "nas", "export": "/x", "options": "exec"}}, FaultCode.FAILED),
        ({"config": {"server": "nas", "export": "/x", "new_field": 1}}, FaultCode.FAILED),
    ],
)
async def test_attach_target_that_is_not_for_this_agent_is_refused(
    rig: Rig, world: World, backend_id: str, change: dict[str, object], code: FaultCode
) -> None:
    with pytest.raises(AgentFault) as caught:
        await rig.host.attach(msgspec.structs.replace(target(backend_id), **change), establish=True)
    assert caught.value.fault.code is code
    assert not world.calls
    assert rig.host.held() == ()


async def test_attach_new_credentials_drops_older_ones_only_when_proven(
    rig: Rig, world: World, backend_id: str
) -> None:
    world.password = "old"
    rig.hold_credentials(backend_id, 1, "old")
    await rig.host.attach(target(backend_id, version=1), establish=True)
    rig.hold_credentials(backend_id, 2, "new")
    with pytest.raises(AgentFault):
        await rig.host.attach(target(backend_id, version=2, generation=2), establish=False)
    assert rig.store.versions(backend_id) == (1, 2)
    record = rig.journal.record(backend_id)
    assert record is not None
    assert (record.state, record.target.credential_version) == (RecordState.ATTACHED, 1)
    world.password = "new"
    await rig.host.attach(target(backend_id, version=2, generation=2), establish=False)
    assert rig.store.versions(backend_id) == (2,)


async def test_attach_new_config_in_use_keeps_the_old_one_attached(rig: Rig, world: World, backend_id: str) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.fail("attach", FaultCode.IN_USE)
    with pytest.raises(AgentFault):
        await rig.host.attach(target(backend_id, server="nas2", generation=2), establish=False)
    assert rig.host.held()[0].generation == 1
    assert (await rig.host.probe(backend_id)).status is HealthStatus.HEALTHY


async def test_attach_killed_between_record_and_effect_is_held_and_released(
    make_rig: MakeRig, world: World, backend_id: str
) -> None:
    rig = make_rig()
    world.hold("attach")
    await killed_during(
        rig, "attach", backend_id, asyncio.create_task(rig.host.attach(target(backend_id), establish=True))
    )
    world.mounted[backend_id] = dict(target(backend_id).config)
    after = make_rig()
    assert [held.backend_id for held in after.host.held()] == [backend_id]
    assert after.host.held()[0].generation == 0
    await after.host.release(backend_id, remove_marker=True)
    assert backend_id not in world.mounted
    assert after.host.held() == ()


async def test_attach_killed_while_changing_config_releases_old_and_new(
    make_rig: MakeRig, world: World, backend_id: str
) -> None:
    rig = make_rig()
    await rig.host.attach(target(backend_id), establish=True)
    world.hold("attach")
    changing = asyncio.create_task(rig.host.attach(target(backend_id, server="b", generation=2), establish=False))
    await killed_during(rig, "attach", backend_id, changing)
    after = make_rig()
    record = after.journal.record(backend_id)
    assert record is not None
    assert record.previous is not None
    assert record.previous.config["server"] == "nas"
    await after.host.release(backend_id, remove_marker=False)
    assert world.calls["release"] == 2


async def test_release_twice_and_of_the_unknown_is_success(rig: Rig, backend_id: str) -> None:
    rig.hold_credentials(backend_id, 1)
    await rig.host.attach(target(backend_id, version=1), establish=True)
    report = await rig.host.release(backend_id, remove_marker=True)
    assert report.left == ("some files on nas:/tank",)
    assert (await rig.host.release(backend_id, remove_marker=True)).left == ()
    assert rig.host.held() == ()
    assert rig.store.versions(backend_id) == ()
    assert not (rig.state.backends / backend_id).exists()


async def test_release_that_fails_keeps_record_and_credentials(rig: Rig, world: World, backend_id: str) -> None:
    rig.hold_credentials(backend_id, 1)
    await rig.host.attach(target(backend_id, version=1), establish=True)
    world.fail("release", FaultCode.IN_USE)
    with pytest.raises(AgentFault):
        await rig.host.release(backend_id, remove_marker=True)
    assert rig.host.held()[0].credential_version == 1
    world.heal()
    await rig.host.release(backend_id, remove_marker=True)
    assert rig.host.held() == ()


async def test_trial_leaves_nothing_and_uses_the_staged_credentials(rig: Rig, world: World, backend_id: str) -> None:
    world.password = "new"
    rig.hold_credentials(backend_id, 1, "old")
    rig.hold_credentials(backend_id, 2, "new")
    assert (await rig.host.trial(target(backend_id, version=2))).status is HealthStatus.HEALTHY
    with pytest.raises(AgentFault):
        await rig.host.trial(target(backend_id, version=1))
    assert world.mounted == {}
    assert rig.journal.trials() == ()
    assert not (rig.state.backends / backend_id).exists()


async def test_trial_killed_is_cleaned_up_at_the_next_start(make_rig: MakeRig, world: World, backend_id: str) -> None:
    rig = make_rig()
    world.hold("trial")
    await killed_during(rig, "trial", backend_id, asyncio.create_task(rig.host.trial(target(backend_id))))
    assert backend_id in world.trials
    after = make_rig()
    assert [held.backend_id for held in after.host.held()] == [backend_id]
    await after.host.clean_trials()
    assert world.trials == set()
    assert after.host.held() == ()


async def test_trial_whose_clean_up_fails_is_remembered_until_it_is_cleaned(
    make_rig: MakeRig, world: World, backend_id: str
) -> None:
    rig = make_rig()
    world.fail("trial", FaultCode.TIMED_OUT)
    world.fail("clean_trial", FaultCode.TIMED_OUT)
    rig.journal.begin_trial(target(backend_id))
    with pytest.raises(AgentFault):
        await rig.host.trial(target(backend_id))
    assert [held.backend_id for held in rig.host.held()] == [backend_id]
    world.heal()
    await rig.host.release(backend_id, remove_marker=False)
    assert (world.trials, rig.host.held()) == (set(), ())


async def test_trial_that_fails_while_it_cleans_up_is_still_held(rig: Rig, world: World, backend_id: str) -> None:
    """The driver's own clean-up may be what failed, so a fault of the trial alone does not end it."""
    world.fail("trial", FaultCode.TIMED_OUT)
    gate = world.hold("clean_trial")
    trying = asyncio.create_task(rig.host.trial(target(backend_id)))
    await until(lambda: trying.done() or world.running["clean_trial" + backend_id])
    gate.set()
    with pytest.raises(AgentFault):
        await trying
    assert world.calls["clean_trial"] == 1
    assert rig.journal.trials() == ()


async def test_attach_whose_kernel_does_not_answer_tells_the_fault_that_came_first(
    rig: Rig, world: World, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.fail("attach", FaultCode.EXPORT_NOT_FOUND)
    world.fail("is_attached", FaultCode.HUNG)
    with pytest.raises(AgentFault) as caught:
        await rig.host.attach(target(backend_id, server="b", generation=2), establish=False)
    assert caught.value.fault.code is FaultCode.EXPORT_NOT_FOUND
    record = rig.journal.record(backend_id)
    assert record is not None
    assert (record.state, record.target.generation) == (RecordState.ATTACHED, 1)


async def test_stale_handle_counts_as_lost_until_it_is_attached_anew(rig: Rig, world: World, backend_id: str) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    wanted = rig.host.checked(target(backend_id))
    assert await rig.host.is_current(wanted)
    world.fail("probe", FaultCode.STALE_HANDLE)
    await rig.host.probe(backend_id)
    assert await rig.host.has_lost(backend_id)
    assert not await rig.host.is_current(wanted)
    world.heal()
    await rig.host.attach(target(backend_id), establish=False)
    assert await rig.host.is_current(wanted)


async def test_symptom_is_shown_as_the_reason_that_an_attach_has_found_until_it_works_again(
    rig: Rig, world: World, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    wanted = rig.host.checked(target(backend_id))
    world.fail("probe", FaultCode.SERVER_UNREACHABLE)
    assert (await rig.host.probe(backend_id)).code is FaultCode.SERVER_UNREACHABLE
    assert await rig.host.needs_sync(backend_id)
    assert not await rig.host.is_current(wanted)

    world.fail("attach", FaultCode.AUTH_FAILED)
    rig.host.note_failure(wanted, world.faults["attach"].fault)

    for _ in range(2):
        seen = await rig.host.probe(backend_id)
        assert (seen.status, seen.code) == (HealthStatus.UNREACHABLE, FaultCode.AUTH_FAILED)
    # It is tried again at the reconciler's pace; the probes ask for nothing more.
    assert await rig.host.has_lost(backend_id)
    assert not await rig.host.needs_sync(backend_id)
    world.heal()
    assert (await rig.host.probe(backend_id)).status is HealthStatus.HEALTHY
    assert await rig.host.is_current(wanted)
    world.fail("probe", FaultCode.SERVER_UNREACHABLE)
    assert (await rig.host.probe(backend_id)).code is FaultCode.SERVER_UNREACHABLE


async def test_symptom_is_not_shown_as_the_reason_why_a_newer_form_cannot_be_attached(
    rig: Rig, world: World, backend_id: str
) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    world.fail("probe", FaultCode.SERVER_UNREACHABLE)
    await rig.host.probe(backend_id)
    world.fail("attach", FaultCode.NAME_NOT_RESOLVED)
    rig.host.note_failure(target(backend_id, server="nas2", generation=2), world.faults["attach"].fault)
    assert (await rig.host.probe(backend_id)).code is FaultCode.SERVER_UNREACHABLE


async def test_probe_asked_twice_runs_once(rig: Rig, world: World, backend_id: str) -> None:
    await rig.host.attach(target(backend_id), establish=True)
    gate = world.hold("probe")
    asking = [asyncio.create_task(rig.host.probe(backend_id)) for _ in range(3)]
    await until(lambda: world.running["probe" + backend_id])
    asking.pop().cancel()
    gate.set()
    first, second = await asyncio.gather(*asking)
    assert first == second
    assert world.calls["probe"] == 1


async def test_probe_beyond_its_limit_is_timed_out_and_red(make_rig: MakeRig, world: World, backend_id: str) -> None:
    rig = make_rig()
    await rig.host.attach(target(backend_id), establish=True)
    world.hold("probe")
    observation = await rig.host.probe(backend_id)
    assert (observation.status, observation.code) == (HealthStatus.UNREACHABLE, FaultCode.TIMED_OUT)


@pytest.mark.parametrize(
    ("latency_ms", "available", "code"),
    [(3.0, 50, None), (501.0, 50, FaultCode.SLOW), (3.0, 5, FaultCode.NEARLY_FULL), (3.0, 6, None)],
)
async def test_probe_slow_or_nearly_full_is_degraded(
    rig: Rig, world: World, backend_id: str, latency_ms: float, available: int, code: FaultCode | None
) -> None:
    observation = await rig.host.attach(target(backend_id), establish=True)
    capacity = Capacity(
        total_bytes=100, used_bytes=100 - available, available_bytes=available, observed_at=observation.observed_at
    )
    world.reports[backend_id] = ProbeReport(latency_ms=latency_ms, capacity=capacity, capabilities=REPORT.capabilities)
    observation = await rig.host.probe(backend_id)
    assert observation.code is code
    assert observation.status is (HealthStatus.HEALTHY if code is None else HealthStatus.DEGRADED)


async def test_probe_of_what_is_not_attached_says_so(rig: Rig, world: World, backend_id: str) -> None:
    with pytest.raises(AgentFault) as caught:
        await rig.host.probe(backend_id)
    assert caught.value.fault.code is FaultCode.CONVERGING
    world.fail("attach", FaultCode.NEEDS_INITIALIZATION)
    with pytest.raises(AgentFault):
        await rig.host.attach(target(backend_id), establish=True)
    assert (await rig.host.probe(backend_id)).status is HealthStatus.PENDING


async def test_initialize_that_fails_is_held_until_released(rig: Rig, world: World, backend_id: str) -> None:
    world.fail("initialize", FaultCode.FOREIGN_DATA)
    with pytest.raises(AgentFault):
        await rig.host.initialize(target(backend_id), wwid="w1", force=False, deadline=Deadline(0.0))
    assert [held.generation for held in rig.host.held()] == [0]
    await rig.host.release(backend_id, remove_marker=True)
    assert world.calls["release"] == 1


async def test_preflight_keeps_neither_credentials_nor_record(rig: Rig, world: World, backend_id: str) -> None:
    world.password = "pw"
    report = await rig.host.preflight(target(backend_id, version=1), Credentials({"password": "pw"}))
    assert [check.is_ok for check in report.checks] == [True, True]
    bad = await rig.host.preflight(target(backend_id, version=1), Credentials({"password": "no"}))
    assert bad.checks[-1].is_ok is False
    assert bad.observation is not None
    assert bad.observation.code is FaultCode.AUTH_FAILED
    assert rig.host.held() == ()
    assert not list(rig.state.credentials.iterdir())
    assert not list(rig.state.backends.iterdir())
