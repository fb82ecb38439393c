from tests.unit.config.reference import documented, reference


def test_every_setting_is_documented() -> None:
    assert documented() == reference(), "run `python -m tests.unit.config.reference`"
