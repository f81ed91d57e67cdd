"""All sagas by kind. A saga that stands here is run through every failure by the tests."""

from manager.sagas.add_backend import ADD_BACKEND
from manager.sagas.delete_backend import DELETE_BACKEND
from manager.sagas.edit_backend import EDIT_BACKEND
from manager.sagas.initialize_backend import INITIALIZE_BACKEND
from manager.sagas.steps import SagaDef

SAGAS: dict[str, SagaDef] = {
    saga.kind: saga for saga in (ADD_BACKEND, EDIT_BACKEND, DELETE_BACKEND, INITIALIZE_BACKEND)
}
