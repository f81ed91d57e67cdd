"""All sagas by kind. A saga that stands here is run through every failure by the tests."""

from manager.sagas.add_backend import ADD_BACKEND
from manager.sagas.attach_volume import ATTACH_VOLUME
from manager.sagas.create_volume import CREATE_VOLUME
from manager.sagas.delete_backend import DELETE_BACKEND
from manager.sagas.delete_volume import DELETE_VOLUME
from manager.sagas.detach_volume import DETACH_VOLUME
from manager.sagas.edit_backend import EDIT_BACKEND
from manager.sagas.evacuate_backend import EVACUATE_BACKEND
from manager.sagas.initialize_backend import INITIALIZE_BACKEND
from manager.sagas.replace_bytes import MIGRATE_VOLUME, REVERT_VOLUME
from manager.sagas.resize_volume import RESIZE_VOLUME
from manager.sagas.steps import SagaDef

SAGAS: dict[str, SagaDef] = {
    saga.kind: saga
    for saga in (
        ADD_BACKEND,
        EDIT_BACKEND,
        DELETE_BACKEND,
        INITIALIZE_BACKEND,
        CREATE_VOLUME,
        DELETE_VOLUME,
        RESIZE_VOLUME,
        ATTACH_VOLUME,
        DETACH_VOLUME,
        MIGRATE_VOLUME,
        REVERT_VOLUME,
        EVACUATE_BACKEND,
    )
}
