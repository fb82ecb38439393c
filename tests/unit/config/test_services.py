from opsplane_server.app import BUILDERS
from opsplane_server.config import SERVICES
from opsplane_server.supervisor.database import rooms


def test_every_service_that_can_be_chosen_can_be_built_and_has_migrations() -> None:
    assert tuple(BUILDERS) == SERVICES
    assert all(room.files() for room in rooms(SERVICES))
